"""The matrix of faults for what comes from outside: processes that are killed, tasks cancelled, servers hung."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
from crash_attempts import attempt_in, attempt_in_task, bare, lend, named_url, outlast
from crash_hangs import IMPATIENT, Hangs
from crash_matrix import (
    CANCEL_IN_FLIGHT,
    CANCELLATIONS,
    ERROR_AFTER,
    ERROR_BEFORE,
    HANG,
    KILL_AFTER,
    KILL_BEFORE,
    Fault,
    name_of,
)
from crash_operations import LIMITS, OPERATIONS, PATIENT, UNTOUCHED, Errand, Nursery, Operation
from crash_outcomes import Outcome
from crash_sessions import Session, Stage
from crash_trials import (
    MOST_EFFECTS,
    WRITING,
    expects_effects,
    named,
    one_state_of,
    usual_states,
    work_through,
)
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend, BlockingView
from server_faults import waited_for

from contract_engine.memory import AsyncMemoryManager, MemoryManager

pytest_plugins = ("crash_fixtures",)

ERRORS = (ERROR_BEFORE, ERROR_AFTER)
KILLS = (KILL_BEFORE, KILL_AFTER)

# -- a process that is killed


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


class Kills:
    """Has a process of its own make each call; ``deaths`` counts those that were killed."""

    def __init__(self, stage: Stage, nursery: Nursery) -> None:
        backend = stage.backend
        self._settings = {
            "redis_url": backend.redis_url,
            "database_url": backend.database_url,
            "tenant": backend.tenant,
        }
        self._nursery = nursery
        self._effects: dict[str, int] = {}
        self.deaths = 0

    def run(self, session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, None]:
        if fault.kind == KILL_AFTER:
            if fault.number > 1:  # all there is to do with this kind
                return Outcome(is_silent=True, effects=fault.number - 1), None
            fault = Fault(KILL_AFTER, self._effects[session.state])
        count = len(session.said)
        status = self._nursery.send(Errand(self._settings | PATIENT, session.id, count, operation.name, fault, None))
        outcome = Outcome(is_silent=True, has_fired=status == -signal.SIGKILL)
        if not outcome.has_fired:
            assert status >= UNTOUCHED, f"the child failed: {status}"
            outcome.effects = self._effects[session.state] = status - UNTOUCHED
        self.deaths += outcome.has_fired
        return outcome, None


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_the_process_is_killed(stage: Stage, nursery: Nursery, operation: Operation) -> None:
    """Before each effect, and after the last one: the moment after an effect is the one before the next."""
    kills = Kills(stage, nursery)
    states = usual_states(stage, operation) if operation in WRITING else [one_state_of(stage, operation)]
    work_through(stage, operation, states, KILLS, kills.run)
    assert kills.deaths >= 2 * len(states) or not expects_effects(stage, operation)


# -- a task that is cancelled


class Tasks:
    """An event loop, and connections for the managers of tasks that are cancelled."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._application = f"cancelled-{stage.backend.tenant}"
        url = stage.backend.database_url
        self._url = None if url is None else named_url(url, self._application)
        self._loop = asyncio.new_event_loop()
        self._lender = self._manager()

    def _manager(self) -> AsyncMemoryManager:
        config = self._stage.backend.config(limits=LIMITS, database_url=self._url, **PATIENT)
        return AsyncMemoryManager(config=config)

    def run(self, session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, BlockingView]:
        manager = self._manager()
        lend(self._lender, manager)
        outcome = self._loop.run_until_complete(self._attempt(manager, session, operation, fault))
        return outcome, BlockingView(manager, self._loop)

    async def _attempt(
        self, manager: AsyncMemoryManager, session: Session, operation: Operation, fault: Fault
    ) -> Outcome:
        if fault.kind == CANCEL_IN_FLIGHT:
            await self._lender.health()  # else it would be the opening of a connection that is cancelled
        count = len(session.said)
        outcome = await attempt_in_task(manager, fault, lambda: operation.call(manager, session.id, count))
        if fault.kind == CANCEL_IN_FLIGHT:
            await outlast(
                outcome, self._lender, raw=self._stage.raw, table=self._stage.table, application=self._application
            )
        return outcome

    def close(self) -> None:
        self._loop.run_until_complete(self._lender.aclose())
        self._loop.close()


@pytest.fixture(scope="module")
def tasks(stage: Stage) -> Iterator[Tasks]:
    found = Tasks(stage)
    yield found
    found.close()


@pytest.mark.parametrize("operation", named(WRITING))
def test_the_task_is_cancelled(stage: Stage, tasks: Tasks, operation: Operation) -> None:
    states = usual_states(stage, operation)
    faults = work_through(stage, operation, states, CANCELLATIONS, tasks.run)
    assert faults >= len(CANCELLATIONS) * len(states) or not expects_effects(stage, operation)


# -- effects that fail in a task


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_an_effect_of_a_task_fails(stage: Stage, tasks: Tasks, operation: Operation) -> None:
    """What ``test_crash_matrix`` shows of threads in every state, in those with the longest paths."""
    longest = [state for state in ("folded", "unlogged, evicted") if state in stage.states]
    states = longest if operation in WRITING else [one_state_of(stage, operation)]
    faults = work_through(stage, operation, states, ERRORS, tasks.run)
    assert faults >= len(ERRORS) * len(states) or not expects_effects(stage, operation)


# -- a server that hangs

HANG_STATES = ("before a trigger", "evicted", "unlogged, evicted")
"""One effect that hangs takes its deadline, so of the states those with the longest paths must do."""


# Health looks at both servers at once and goes by its last look for a second: test_health stops servers under it.
HANGING = [operation for operation in OPERATIONS if operation.method != "health"]


IN_BOTH_MODES = pytest.mark.parametrize("hangs", [DURABLE, EPHEMERAL], indirect=True)


@IN_BOTH_MODES
@pytest.mark.parametrize("operation", named(HANGING))
def test_a_server_hangs(hangs: Hangs, operation: Operation) -> None:
    longest = [state for state in HANG_STATES if state in hangs.stage.states]
    states = longest if operation in WRITING else [one_state_of(hangs.stage, operation)]
    counts = [hang_at_each_effect(hangs, SYNC, operation, state) for state in states]
    assert all(counts) == expects_effects(hangs.stage, operation)


@IN_BOTH_MODES
@pytest.mark.parametrize("operation", named(HANGING))
def test_a_server_hangs_that_a_task_waits_for(hangs: Hangs, operation: Operation) -> None:
    """In the state with the longest paths, where the operation has something to do there."""
    has_more_to_do = operation in WRITING and operation.method != "drain"
    longest = "unlogged, evicted" if hangs.stage.is_durable else "folded"
    state = longest if has_more_to_do else one_state_of(hangs.stage, operation)
    assert (hang_at_each_effect(hangs, ASYNC, operation, state) > 0) == expects_effects(hangs.stage, operation)


def hang_at_each_effect(hangs: Hangs, colour: str, operation: Operation, state: str) -> int:
    """Stop the server of the first effect, of the second, ..., each in a session of its own; answers how many."""
    hangs.given_up.clear()
    for number in range(1, MOST_EFFECTS):
        session = hangs.stage.session_for(operation, state)
        with hangs.backend(colour, number) as backend:
            try:
                outcome, survivor = hung(backend, hangs, session, operation, Fault(HANG, number))
                hangs.stage.assert_law(session, operation, outcome, survivor)
            except AssertionError as exc:
                raise AssertionError(f"{operation.name}, {state}, hang at {number}") from exc
        if not outcome.has_fired:
            break
        assert len(hangs.given_up) == number, "it did not hang"
        assert outcome.lost == {hangs.given_up[-1]}, "another server than the effect's"
    else:
        raise AssertionError(f"{operation.name}, {state}: does not end")
    print(f"{operation.name:42}", f"{state}: {hangs.given_up}", sep="  ")
    return len(hangs.given_up)


def hung(
    backend: Backend, hangs: Hangs, session: Session, operation: Operation, fault: Fault
) -> tuple[Outcome, MemoryManager]:
    manager = backend.open(limits=LIMITS, **IMPATIENT)
    assert waited_for(lambda: manager.health().status == "healthy"), "it is not to hang while it connects"
    count = len(session.said)
    outcome = attempt_in(
        backend, manager, fault, lambda: operation.call(bare(manager), session.id, count), hang=hangs.hang
    )
    assert outcome.effects < MOST_EFFECTS, [name_of(effect) for effect in outcome.begun]
    return outcome, manager
