"""Every operation, in every state of its session, with a fault at its first effect, its second, ...: the law holds.

The places are not written down: an operation is run again and again with the fault one effect later, until it passes
without meeting it. With ``-s`` each test prints how many effects its operation had in each state.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy as sa
from crash_matrix import (
    CANCEL_IN_FLIGHT,
    CANCELLATIONS,
    DATABASE,
    ERROR_AFTER,
    ERROR_BEFORE,
    HANG,
    KILL_AFTER,
    KILL_BEFORE,
    OUTAGE,
    REDIS,
    AsyncInterposition,
    Fault,
    Interposition,
    name_of,
    server_of,
)
from crash_operations import BY_NAME, LIMITS, OPERATIONS, PATIENT, UNTOUCHED, Does, Errand, Nursery, Operation
from crash_outcomes import Outcome
from crash_sessions import Session, Stage
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend, BlockingView
from server_faults import ServerFaults, waited_for
from servers import PrivateServers

from contract_engine.memory import (
    AsyncMemoryManager,
    BufferStore,
    MemoryManager,
    PostgresSessionStore,
    StoreUnavailableError,
    SummaryStore,
)
from contract_engine.memory.errors import MemoryServiceError

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
    with redis.Redis.from_url(redis_url) as raw:
        table = psycopg.connect(database_url, autocommit=True) if mode == DURABLE else None
        try:
            yield Stage(backend, raw, table)
        finally:
            backend.close()
            if table is not None:
                table.close()


@pytest.fixture(scope="module", params=[DURABLE, EPHEMERAL])
def stage(request: pytest.FixtureRequest, redis_url: str, database_url: str) -> Iterator[Stage]:
    """One for all tests of a mode: it keeps a template of each state."""
    with stage_of(request.param, redis_url, database_url, f"matrix-{request.param}") as found:
        yield found


@pytest.fixture(scope="module")
def durable_stage(redis_url: str, database_url: str) -> Iterator[Stage]:
    with stage_of(DURABLE, redis_url, database_url, "matrix-outage") as found:
        yield found


USUAL = ("empty", "before a trigger", "folded", "evicted", "unlogged", "unlogged, evicted")
"""The states that most of an operation's paths begin in."""


def states_of(stage: Stage, operation: Operation) -> list[str]:
    """Return every state for those that change something, and the usual ones for the others."""
    return list(stage.states) if operation in WRITING else usual_states(stage)


def usual_states(stage: Stage) -> list[str]:
    return [state for state in USUAL if state in stage.states]


def work_through(stage: Stage, operation: Operation, states: list[str], kinds: tuple[str, ...], run: Run) -> int:
    """Put each kind of fault at each effect, in each state; answers how many there were."""
    table, faults = {}, 0
    for state in states:
        for kind in kinds:
            for number in range(1, MOST_EFFECTS):
                fault = Fault(kind, number)
                session = stage.session(state)
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
    print(f"{operation.name:42}", *(f"{state}: {effects}" for state, effects in table.items()), sep="  ")
    return faults


NO_EFFECTS = ("wait_for_folds", "close", "buffer_store.close", "summary_store.close", "session_store.close")


def expects_effects(stage: Stage, operation: Operation) -> bool:
    """Whether an operation talks to a server at all."""
    return operation.method not in NO_EFFECTS and (stage.is_durable or not operation.needs_log)


def test_every_public_method_is_in_the_matrix() -> None:
    public = set()
    stores = {"buffer_store.": BufferStore, "summary_store.": SummaryStore, "session_store.": PostgresSessionStore}
    for prefix, kind in {"": MemoryManager, **stores}.items():
        for name, _ in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                public.add(prefix + name)
    assert public == {operation.method for operation in OPERATIONS}
    assert len(BY_NAME) == len(OPERATIONS), "two of the same name"


# -- effects that fail


class Trials:
    """Runs each operation in a blocking manager of its own, with one server away all along if need be."""

    def __init__(self, stage: Stage, *, away: str | None = None) -> None:
        self._config = stage.backend.config(limits=LIMITS, **PATIENT)
        self._away = away
        self._lender = stage.backend.open(**PATIENT)

    def run(self, session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, MemoryManager]:
        manager = MemoryManager(config=self._config)
        # It gets connections that are open already: to open one to PostgreSQL takes longer than all the rest.
        lent = self._lender._runtime
        manager._runtime._redis, manager._runtime._database = lent._redis, lent._database
        interposition = Interposition(manager, fault, away=self._away)
        outcome = Outcome()
        try:
            outcome.value = operation.call(manager, session.id, len(session.said))
        except MemoryServiceError as exc:
            outcome.error = exc
        manager.wait_for_folds()
        manager._runtime.background.close()
        interposition.remove()
        outcome.take(interposition)
        return outcome, manager


@pytest.mark.parametrize("operation", named(OPERATIONS))
def test_an_effect_fails(stage: Stage, operation: Operation) -> None:
    kinds = (ERROR_BEFORE, ERROR_AFTER, OUTAGE)
    states = states_of(stage, operation)
    faults = work_through(stage, operation, states, kinds, Trials(stage).run)
    assert faults >= len(kinds) * len(states) or not expects_effects(stage, operation)


NEEDS = {
    REDIS: ("drain", "buffer_store.clear_buffer"),
    DATABASE: (
        "save_context",
        "set_session_config",
        "summary_store.add_summary",
        "summary_store.clear_summaries",
        *(operation.method for operation in WRITING if operation.store == "session_store"),
    ),
}
"""The methods that ask nothing of the other server when this one is away: it is the first they need."""


@pytest.mark.parametrize("away", [REDIS, DATABASE])
@pytest.mark.parametrize("operation", named(WRITING))
def test_an_effect_fails_while_the_other_server_is_away(durable_stage: Stage, operation: Operation, away: str) -> None:
    kinds = (ERROR_BEFORE, ERROR_AFTER)
    states = usual_states(durable_stage)
    faults = work_through(durable_stage, operation, states, kinds, Trials(durable_stage, away=away).run)
    assert (faults == 0) == (operation.method in NEEDS[away]), f"{faults} faults with {away} away"


# -- a process that is killed


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.mark.parametrize("operation", named(WRITING))
def test_the_process_is_killed(stage: Stage, nursery: Nursery, operation: Operation) -> None:
    """Before each effect, and after the last one: the moment after an effect is the one before the next."""
    backend = stage.backend
    settings = {"redis_url": backend.redis_url, "database_url": backend.database_url, "tenant": backend.tenant}
    effects: dict[str, int] = {}
    deaths = 0

    def run(session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, None]:
        nonlocal deaths
        if fault.kind == KILL_AFTER:
            if fault.number > 1:  # all there is to do with this kind
                return Outcome(is_silent=True, effects=fault.number - 1), None
            fault = Fault(KILL_AFTER, effects[session.state])
        count = len(session.said)
        status = nursery.send(Errand(settings | PATIENT, session.id, count, operation.name, fault, None))
        outcome = Outcome(is_silent=True, has_fired=status == -signal.SIGKILL)
        if not outcome.has_fired:
            assert status >= UNTOUCHED, f"the child failed: {status}"
            outcome.effects = effects[session.state] = status - UNTOUCHED
        deaths += outcome.has_fired
        return outcome, None

    states = usual_states(stage)
    work_through(stage, operation, states, (KILL_BEFORE, KILL_AFTER), run)
    assert deaths >= 2 * len(states) or not expects_effects(stage, operation)


# -- a task that is cancelled


class Tasks:
    """An event loop, and connections for the managers of tasks that are cancelled."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._application = f"cancelled-{stage.backend.tenant}"
        self._url = stage.backend.database_url
        if self._url is not None:
            url = sa.make_url(self._url).update_query_dict({"application_name": self._application})
            self._url = url.render_as_string(hide_password=False)
        self._loop = asyncio.new_event_loop()
        self._lender = self._manager()

    def _manager(self) -> AsyncMemoryManager:
        config = self._stage.backend.config(limits=LIMITS, database_url=self._url, **PATIENT)
        return AsyncMemoryManager(config=config)

    def run(self, session: Session, operation: Operation, fault: Fault) -> tuple[Outcome, BlockingView]:
        manager = self._manager()
        manager._runtime._redis, manager._runtime._database = (
            self._lender._runtime._redis,
            self._lender._runtime._database,
        )
        outcome = self._loop.run_until_complete(self._attempt(manager, session, operation, fault))
        return outcome, BlockingView(manager, self._loop)

    async def _attempt(
        self, manager: AsyncMemoryManager, session: Session, operation: Operation, fault: Fault
    ) -> Outcome:
        outcome = Outcome()
        interposed = []
        if fault.kind == CANCEL_IN_FLIGHT:
            await self._lender.health()  # else it would be the opening of a connection that is cancelled

        async def call() -> Any:
            interposed.append(AsyncInterposition(manager, fault))
            return await operation.call(manager, session.id, len(session.said))

        try:
            outcome.value = await asyncio.create_task(call())
        except asyncio.CancelledError:
            outcome.is_silent = True
        except MemoryServiceError as exc:
            outcome.error = exc
        await manager._runtime.background.join()
        (interposition,) = interposed
        interposition.remove()
        outcome.take(interposition)
        if fault.kind == CANCEL_IN_FLIGHT and interposition.fired is not None:
            await self._settle(server_of(interposition.fired))
        return outcome

    async def _settle(self, server: str | None) -> None:
        """Wait until the server has done what nobody waits for any more."""
        if server == REDIS:
            for _ in range(2):  # what lay in its sockets at the first one is done at the second
                self._stage.raw.ping()
            return
        database, table = self._lender._runtime._database, self._stage.table
        assert database is not None
        assert table is not None
        await database.close()
        assert waited_for(lambda: backends(table, self._application) == 0)

    def close(self) -> None:
        self._loop.run_until_complete(self._lender.aclose())
        self._loop.close()


def backends(table: psycopg.Connection[Any], application: str) -> int:
    """Return how many connections an application has."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return int(table.execute(query, (application,)).fetchall()[0][0])


@pytest.fixture(scope="module")
def tasks(stage: Stage) -> Iterator[Tasks]:
    found = Tasks(stage)
    yield found
    found.close()


@pytest.mark.parametrize("operation", named(WRITING))
def test_the_task_is_cancelled(stage: Stage, tasks: Tasks, operation: Operation) -> None:
    states = usual_states(stage)
    faults = work_through(stage, operation, states, CANCELLATIONS, tasks.run)
    assert faults >= len(CANCELLATIONS) * len(states) or not expects_effects(stage, operation)


# -- a server that hangs

HUNG = (
    ("append (with an id)", "before a trigger"),
    ("add_and_get_context", "folded"),
    ("get_context", "evicted"),
    ("set_session_config", "folded"),
    ("summary_store.add_summary", "folded"),
    ("clear_session_memory", "unlogged"),
    ("drain", "unlogged"),
    ("unlogged_sessions", "unlogged"),
)
"""Each kind of effect, alone and within a sequence."""

IMPATIENT: dict[str, Any] = {"redis_timeout_seconds": 0.2, "database_timeout_seconds": 0.5}


class Hangs:
    """Stops a server while an effect waits for it, and lets it go on when the caller has given up."""

    def __init__(self, faults: ServerFaults, stage: Stage, application: str) -> None:
        self._faults = faults
        self._stage = stage
        self._application = application
        self.given_up: list[str] = []

    @contextmanager
    def hang(self, server: str) -> Iterator[None]:
        if server == REDIS:
            self._faults.stop_redis()
        else:
            self._faults.stop_database()
        try:
            yield
        except StoreUnavailableError:
            self.given_up.append(server)
            raise
        finally:
            self._faults.go_on()
            self._settle(server)

    def _settle(self, server: str) -> None:
        """Wait until the server has done what it was sent while it was stopped."""
        if server == REDIS:
            for _ in range(2):
                self._stage.raw.ping()
            return
        table = self._stage.table
        assert table is not None
        assert waited_for(lambda: backends(table, self._application) == 0)


@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_a_server_hangs(private_servers: PrivateServers, tenant: str, colour: str) -> None:
    servers = private_servers()
    faults = ServerFaults(redis_server=servers, database=servers)
    fired = {REDIS: 0, DATABASE: 0}
    with stage_of(DURABLE, servers.redis_url, servers.database_url, tenant) as stage:
        for name, state in HUNG:
            for number in range(1, MOST_EFFECTS):
                application = f"hung-{number}"
                url = sa.make_url(servers.database_url).update_query_dict({"application_name": application})
                backend = Backend(colour, DURABLE, servers.redis_url, url.render_as_string(hide_password=False), tenant)
                hangs = Hangs(faults, stage, application)
                session = stage.session(state)
                operation = BY_NAME[name]
                try:
                    outcome, survivor = hung(backend, hangs, session, operation, Fault(HANG, number))
                    stage.assert_law(session, operation, outcome, survivor)
                except AssertionError as exc:
                    raise AssertionError(f"{name}, {state}, hang at {number}") from exc
                finally:
                    faults.go_on()
                    backend.close()
                assert len(hangs.given_up) == outcome.has_fired, "it did not hang"
                if not outcome.has_fired:
                    break
                fired[hangs.given_up[0]] += 1
    print(f"hung: {fired}")
    assert min(fired.values()) >= len(HUNG)


def hung(
    backend: Backend, hangs: Hangs, session: Session, operation: Operation, fault: Fault
) -> tuple[Outcome, MemoryManager]:
    manager = backend.open(limits=LIMITS, **IMPATIENT)
    assert manager.health()["status"] == "ok", "it is to hang while it answers, and not while it connects"
    outcome = Outcome()
    interposition: Interposition | AsyncInterposition
    if backend.colour == SYNC:
        interposition = Interposition(manager, fault, hang=hangs.hang)
        try:
            outcome.value = operation.call(manager, session.id, len(session.said))
        except MemoryServiceError as exc:
            outcome.error = exc
    else:
        target: Any = manager

        async def call() -> tuple[AsyncInterposition, Any]:
            found = AsyncInterposition(target._target, fault, hang=hangs.hang)
            try:
                return found, await operation.call(target._target, session.id, len(session.said))
            except MemoryServiceError as exc:
                return found, exc

        assert backend.loop is not None
        interposition, answer = backend.loop.run_until_complete(call())
        if isinstance(answer, Exception):
            outcome.error = answer
        else:
            outcome.value = answer
    manager.wait_for_folds()
    interposition.remove()
    outcome.take(interposition)
    assert outcome.effects < MOST_EFFECTS, [name_of(effect) for effect in interposition.effects]
    return outcome, manager
