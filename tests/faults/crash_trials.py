"""Puts a fault at the first effect of an operation, at its second, ..., until it passes without meeting the fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from crash_matrix import Fault
from crash_operations import OPERATIONS, Does, Operation
from crash_outcomes import Outcome
from crash_sessions import Session, Stage
from memory_contract import DURABLE, SYNC, Backend
from servers import redis_client

MOST_EFFECTS = 150
"""An operation that needs more has run wild."""

Run = Callable[[Session, Operation, Fault], tuple[Outcome, Any]]
"""Runs an operation with a fault; answers what became of it, and the manager that met the fault, if it lives."""

WRITING = [one for one in OPERATIONS if one.does is not Does.NOTHING or one.method in ("get_context", "drain")]
"""Those that change something, be it only the copy in Redis."""


def named(operations: list[Operation] | tuple[Operation, ...]) -> list[Any]:
    return [pytest.param(operation, id=operation.name) for operation in operations]


@contextmanager
def stage_of(mode: str, redis_url: str, database_url: str, tenant: str) -> Iterator[Stage]:
    backend = Backend(SYNC, mode, redis_url, database_url if mode == DURABLE else None, tenant)
    with redis_client(redis_url) as raw:
        table = psycopg.connect(database_url, autocommit=True) if mode == DURABLE else None
        try:
            yield Stage(backend, raw, table)
        finally:
            backend.close()
            if table is not None:
                table.close()


USUAL = ("empty", "before a trigger", "folded", "evicted", "unlogged", "unlogged, evicted")
"""The states that most of an operation's paths begin in."""
WHOLE = ("empty", "folded", "unlogged, evicted")


def states_of(stage: Stage, operation: Operation) -> list[str]:
    """Return every state for those that change something, and the usual ones for the others."""
    return list(stage.states) if operation in WRITING else usual_states(stage, operation)


def usual_states(stage: Stage, operation: Operation) -> list[str]:
    """Return those with paths of their own; whoever takes a session as a whole has few, and long ones."""
    return [state for state in (WHOLE if operation.store == "retention" else USUAL) if state in stage.states]


def one_state_of(stage: Stage, operation: Operation) -> str:
    """Return a state in which the operation has something to do, where one state is enough."""
    needs_unlogged = operation.method in ("drain", "unlogged_sessions") and stage.is_durable
    return "unlogged" if needs_unlogged else "before a trigger"


def work_through(stage: Stage, operation: Operation, states: list[str], kinds: tuple[str, ...], run: Run) -> int:
    """Put each kind of fault at each effect, in each state; answers how many there were."""
    table, faults = {}, 0
    for state in states:
        for kind in kinds:
            for number in range(1, MOST_EFFECTS):
                fault = Fault(kind, number)
                session = stage.session_for(operation, state)
                outcome, survivor = run(session, operation, fault)
                try:
                    stage.assert_law(session, operation, outcome, survivor)
                except AssertionError as exc:
                    raise AssertionError(f"{operation.name}, {state}, {fault}, {outcome}") from exc
                if not outcome.has_fired:
                    break
                faults += 1
            else:
                raise AssertionError(f"{operation.name}, {state}: does not end")
            table[state] = outcome.effects
            assert outcome.effects == number - 1, "effects nobody harmed"
    print(
        f"{operation.name:42}",
        f"{faults} faults",
        *(f"{state}: {effects}" for state, effects in table.items()),
        sep="  ",
    )
    return faults


NO_EFFECTS = ("wait_for_folds", "close", "buffer_store.close", "summary_store.close", "session_store.close")


def expects_effects(stage: Stage, operation: Operation) -> bool:
    """Whether an operation talks to a server at all."""
    return operation.method not in NO_EFFECTS and (stage.is_durable or not operation.needs_log)
