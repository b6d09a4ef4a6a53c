"""Every operation, in every state of its session, with a fault at its first effect, its second, ...: the law holds.

The places are not written down: an operation is run again and again with the fault one effect later, until it passes
without meeting it. With ``-s`` each test prints how many effects its operation had in each state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
from crash_attempts import attempt, lend
from crash_matrix import DATABASE, ERROR_AFTER, ERROR_BEFORE, OUTAGE, REDIS, Fault
from crash_operations import BY_NAME, LIMITS, OPERATIONS, PATIENT, Operation
from crash_outcomes import Outcome
from crash_sessions import Session, Stage
from crash_trials import (
    WRITING,
    expects_effects,
    named,
    stage_of,
    states_of,
    usual_states,
    work_through,
)
from memory_contract import DURABLE

from contract_engine.memory import MemoryManager

pytest_plugins = ("crash_fixtures",)


@pytest.fixture(scope="module")
def durable_stage(redis_url: str, database_url: str) -> Iterator[Stage]:
    with stage_of(DURABLE, redis_url, database_url, "matrix-outage") as found:
        yield found


def test_every_public_method_is_in_the_matrix(redis_url: str, database_url: str) -> None:
    """Those of a manager, and those of whatever it hands out that can reach a server."""
    public = set()
    with MemoryManager(redis_url=redis_url, database_url=database_url) as manager:
        handed_out = {name: getattr(manager, name) for name in dir(manager) if not name.startswith("_")}
        reaching = {f"{name}.": value for name, value in handed_out.items() if hasattr(value, "_runtime")}
        assert set(reaching) >= {"buffer_store.", "summary_store.", "session_store.", "retention."}
        for prefix, value in {"": manager, **reaching}.items():
            for name, _ in inspect.getmembers(value, inspect.ismethod):
                if not name.startswith("_") and name != "within":
                    public.add(prefix + name)
    assert public == {operation.method for operation in OPERATIONS}
    assert len(BY_NAME) == len(OPERATIONS), "two of the same name"


# -- effects that fail


class Trials:
    """Runs each operation in a blocking manager of its own, with one server away all along if need be."""

    def __init__(self, stage: Stage, *, away: str | None = None) -> None:
        self.stage = stage
        self._config = stage.backend.config(limits=LIMITS, **PATIENT)
        self._away = away
        self._lender = stage.backend.open(**PATIENT)

    def run(self, session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, MemoryManager]:
        manager = MemoryManager(config=self._config)
        lend(self._lender, manager)
        count = len(session.said)
        outcome = attempt(manager, fault, lambda: operation.call(manager, session.id, count), away=self._away)
        manager._runtime.background.close()
        return outcome, manager


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_an_effect_fails(stage: Stage, operation: Operation) -> None:
    kinds = (ERROR_BEFORE, ERROR_AFTER, OUTAGE)
    states = states_of(stage, operation)
    faults = work_through(stage, operation, states, kinds, Trials(stage).run)
    assert faults >= len(kinds) * len(states) or not expects_effects(stage, operation)


NEEDS = {
    REDIS: (
        "drain",
        "buffer_store.clear_buffer",
        "retention.erase",
        "retention.export_session",
        "retention.import_sessions",
    ),
    DATABASE: (
        "save_context",
        "set_session_config",
        "unpin",
        "set_summary_instructions",
        "summary_store.add_summary",
        "summary_store.clear_summaries",
        "summary_store.quarantine",
        "summary_store.resummarize",
        "retention.purge",
        *(operation.method for operation in WRITING if operation.store == "session_store"),
    ),
}
"""The methods that ask nothing of the other server when this one is away: it is the first they need."""


@pytest.mark.parametrize("away", [REDIS, DATABASE])
@pytest.mark.parametrize("operation", named(WRITING))
def test_an_effect_fails_while_the_other_server_is_away(durable_stage: Stage, operation: Operation, away: str) -> None:
    kinds = (ERROR_BEFORE, ERROR_AFTER)
    states = usual_states(durable_stage, operation)
    faults = work_through(durable_stage, operation, states, kinds, Trials(durable_stage, away=away).run)
    assert (faults == 0) == (operation.method in NEEDS[away]), f"{faults} faults with {away} away"
