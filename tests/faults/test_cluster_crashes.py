"""The matrix of faults on a Cluster of real nodes: each operation in one state, which none of the matrix is without."""

# ruff: noqa: F401, F811

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash_matrix import ERROR_AFTER, OUTAGE
from crash_operations import OPERATIONS, Nursery, Operation
from crash_sessions import Stage
from crash_trials import WRITING, expects_effects, named, one_state_of, stage_of, work_through
from memory_contract import DURABLE
from redis_topologies import Cluster
from test_cluster import nodes, redis_url, slot
from test_crash_interruptions import ERRORS, KILLS, Kills, Tasks, nursery, tasks
from test_crash_matrix import Trials


@pytest.fixture(scope="module")
def stage(nodes: Cluster, redis_url: str, database_url: str) -> Iterator[Stage]:
    with stage_of(DURABLE, redis_url, database_url, "matrix-cluster") as found:

        def node(session_id: str) -> int:
            return nodes.owner(slot(found.backend, session_id)).port

        found.may_copy = lambda source, target: node(source) == node(target)
        yield found


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_an_effect_fails(stage: Stage, operation: Operation) -> None:
    """Its answer is lost, and its servers are from it on."""
    kinds = (ERROR_AFTER, OUTAGE)
    faults = work_through(stage, operation, [one_state_of(stage, operation)], kinds, Trials(stage).run)
    assert faults >= len(kinds) or not expects_effects(stage, operation)


@pytest.mark.parametrize("operation", named(WRITING))
def test_an_effect_of_a_task_fails(stage: Stage, tasks: Tasks, operation: Operation) -> None:
    faults = work_through(stage, operation, [one_state_of(stage, operation)], ERRORS, tasks.run)
    assert faults >= len(ERRORS) or not expects_effects(stage, operation)


@pytest.mark.parametrize("operation", named(WRITING))
def test_the_process_is_killed(stage: Stage, nursery: Nursery, operation: Operation) -> None:
    kills = Kills(stage, nursery)
    work_through(stage, operation, [one_state_of(stage, operation)], KILLS, kills.run)
    assert kills.deaths >= 2 or not expects_effects(stage, operation)
