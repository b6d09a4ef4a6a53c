"""A dual write, a relay or a change of phase fails or dies at its first effect, its second, ...: both stores agree."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from crash_attempts import attempt_in, bare, lend, named_url, outlast
from crash_hangs import IMPATIENT, Hangs
from crash_matrix import (
    CANCEL_IN_FLIGHT,
    CANCELLATIONS,
    DATABASE,
    ERROR_AFTER,
    ERROR_BEFORE,
    HANG,
    KILL_AFTER,
    KILL_BEFORE,
    NOT_PERFORMED,
    OUTAGE,
    Fault,
    Hang,
    Interposition,
)
from crash_outcomes import Outcome
from dual_stores import adapter, contents, end_leases, open_store, say, talk
from dual_write_worker import SWITCHES, UNTOUCHED, do
from legacy_stores import AsyncListStore, KnowingStore, ListStore, TableStore
from legacy_tables import Older
from memory_contract import ASYNC, DURABLE, SYNC, Backend
from server_faults import waited_for

from contract_engine.memory import AsyncLegacySwisperStore, LegacySwisperStore, MemoryManager, StoreUnavailableError
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.migration import EnhancedSessionStore
from contract_engine.memory.phases import PhaseSetting, check_phase

pytest_plugins = ("memory_fixtures", "crash_fixtures")

WORKER = Path(__file__).parent / "dual_write_worker.py"
EFFECTS = {"write": 2, "relay": 6, "read": 4, "forward": 1, "gradual": 1, "back": 1}
"""The operations, and how many effects each has at least."""
BEFORE = {"back": "full"}
"""The phase an operation begins in, where that is not coexistence."""
MOST_EFFECTS = 40
SAID = talk(0, 1, 1, 1, 2)
"""Acknowledged before the fault: two of them relayed; the same thing is said again and again."""


def brought_about(store: EnhancedSessionStore, session_id: str) -> None:
    """Write what was said, with the last three still to be relayed, and nobody between two."""
    for number, text in enumerate(SAID):
        store.append(session_id, {"role": "user", "content": text}, message_id=f"id{number}")
        if number == 1:
            assert store.settle()


def assert_converged(store: EnhancedSessionStore, legacy: Any, session_id: str, *, has_new: bool | None) -> None:
    """Nothing acknowledged is missing for a reader, now or later; in the end the stores have the same.

    ``has_new``: whether the message that met the fault was acknowledged; None: nobody knows.
    """
    may_be = [SAID, [*SAID, "message 900"]]
    allowed = may_be[1:] if has_new else may_be[:1] if has_new is False else may_be
    for reader in (store, anew(store)):
        assert contents(reader.get_chat_history(session_id)) in allowed
    end_leases(store)
    assert store.settle(60)
    logged = contents(store.memory_manager.session_store.get_chat_history(session_id))
    assert logged in allowed
    assert legacy.contents(session_id) == logged
    for phase, percentage in SWITCHES.values():
        store.set_phase(phase, percentage)
        assert contents(store.get_chat_history(session_id)) == logged
    assert store.backlog().messages == 0


def anew(store: EnhancedSessionStore) -> EnhancedSessionStore:
    """Make an adapter that goes by no phase read before."""
    return EnhancedSessionStore(store.memory_manager, store.legacy_store, is_relaying=False)


def begin_in(store: EnhancedSessionStore, operation: str) -> tuple[PhaseSetting, PhaseSetting]:
    """Bring about the phase an operation begins in; answers it, and the one that is to be in force afterwards."""
    before = store.set_phase(BEFORE.get(operation, "coexistence"))
    after = check_phase(*SWITCHES[operation]) if operation in SWITCHES else before
    assert (after != before) == (operation in SWITCHES), "nothing would be switched"
    return before, after


def phases_possible(outcome: Outcome, kind: str, before: PhaseSetting, after: PhaseSetting) -> set[PhaseSetting]:
    """Return the phases one of which must be in force when an operation has met a fault."""
    if outcome.error is None and not outcome.is_silent:
        return {after}
    # A switch is one effect: where that was not performed, nothing has been changed.
    return {before} if kind in NOT_PERFORMED else {before, after}


Run = Callable[[str, str, Fault], Outcome]
"""Does an operation in a session, with a fault."""


def work_through(
    healthy: EnhancedSessionStore,
    legacy: Any,
    operation: str,
    kind: str,
    run: Run,
    *,
    least: Mapping[str, int] = EFFECTS,
) -> int:
    """Put a fault at the first effect of an operation, at its second, ..., each in a session of its own; answers how
    many there were.
    """
    for number in range(1, MOST_EFFECTS):
        session_id = f"s{number}"
        brought_about(healthy, session_id)
        before, after = begin_in(healthy, operation)
        outcome = run(operation, session_id, Fault(kind, number))
        assert anew(healthy).get_phase() in phases_possible(outcome, kind, before, after)
        is_heard = outcome.error is None and not outcome.is_silent
        is_write = operation == "write"
        assert_converged(healthy, legacy, session_id, has_new=is_write if is_heard else None if is_write else False)
        if not outcome.has_fired:
            assert is_heard, outcome
            assert outcome.effects == number - 1, "effects nobody harmed"
            assert outcome.effects >= least[operation]
            return outcome.effects
    raise AssertionError(f"{operation}: does not end")


class Trials:
    """Does operations in adapters of their own, whose connections are open already."""

    def __init__(self, backend: Backend, legacy: Any) -> None:
        self.backend, self.legacy = backend, legacy
        self.lender = backend.open()

    def run(self, operation: str, session_id: str, fault: Fault) -> Outcome:
        manager = self.backend.open()
        lend(self.lender, manager)
        return self.attempt(manager, operation, session_id, fault)

    def attempt(
        self, manager: MemoryManager, operation: str, session_id: str, fault: Fault, *, hang: Hang | None = None
    ) -> Outcome:
        breaker = CircuitBreaker(5, 0.05, name="legacy")
        store = bare(adapter(self.backend, manager, self.legacy, breaker=breaker))
        return attempt_in(self.backend, manager, fault, lambda: do(store, operation, session_id), hang=hang)


@pytest.fixture
def tasks(blocking: Backend) -> Iterator[Backend]:
    """What ``blocking`` is for threads, with connections that are told apart from others."""
    assert blocking.database_url is not None
    url = named_url(blocking.database_url, f"tasks-{blocking.tenant}")
    with closing(Backend(ASYNC, DURABLE, blocking.redis_url, url, blocking.tenant)) as found:
        yield found


@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER, OUTAGE])
@pytest.mark.parametrize("operation", EFFECTS)
@pytest.mark.parametrize("make", [ListStore, KnowingStore])
def test_an_effect_fails(blocking: Backend, make: Callable[[], ListStore], operation: str, kind: str) -> None:
    legacy = make()
    with open_store(blocking, legacy) as healthy:
        assert work_through(healthy, legacy, operation, kind, Trials(blocking, legacy).run) >= EFFECTS[operation]


@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER, OUTAGE])
@pytest.mark.parametrize("operation", EFFECTS)
@pytest.mark.parametrize("make", [AsyncListStore, KnowingStore])
def test_an_effect_of_a_task_fails(
    blocking: Backend, tasks: Backend, make: Callable[[], AsyncListStore | KnowingStore], operation: str, kind: str
) -> None:
    """With coroutines of a legacy store that are awaited, and with methods that run beside the event loop."""
    legacy = make()
    with open_store(blocking, legacy.inner if isinstance(legacy, AsyncListStore) else legacy) as healthy:
        assert work_through(healthy, legacy, operation, kind, Trials(tasks, legacy).run) >= EFFECTS[operation]


@pytest.mark.parametrize("kind", CANCELLATIONS)
@pytest.mark.parametrize("operation", EFFECTS)
def test_the_task_is_cancelled(blocking: Backend, tasks: Backend, raw: redis.Redis, operation: str, kind: str) -> None:
    legacy = ListStore()
    trials = Trials(tasks, legacy)
    loop = tasks.loop
    assert loop is not None
    assert blocking.database_url is not None
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(blocking.database_url, autocommit=True) as table,
        open_store(blocking, legacy) as healthy,
    ):
        loop.set_default_executor(thread)

        def run(operation: str, session_id: str, fault: Fault) -> Outcome:
            trials.lender.health()  # else it would be the opening of a connection that is cancelled
            outcome = trials.run(operation, session_id, fault)
            if kind == CANCEL_IN_FLIGHT:
                lender, application = bare(trials.lender), f"tasks-{tasks.tenant}"
                loop.run_until_complete(outlast(outcome, lender, raw=raw, table=table, application=application))
                thread.submit(int).result()  # what the legacy store was asked for is done before this
            return outcome

        work_through(healthy, legacy, operation, kind, run)


@pytest.fixture
def older(hangs: Hangs) -> Iterator[Older]:
    """A table of the original on the servers that hang."""
    backend = hangs.stage.backend
    assert backend.database_url is not None
    with ExitStack() as stack:
        yield Older(backend.database_url, backend.redis_url, backend.tenant, stack)


class Contents:
    """A table of the original, looked at as the other legacy stores are."""

    def __init__(self, older: Older) -> None:
        self._store = older.store

    def contents(self, session_id: str) -> list[str]:
        return contents(self._store.get_chat_history(session_id))


@pytest.mark.parametrize("operation", EFFECTS)
@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_a_server_hangs(hangs: Hangs, older: Older, tenant: str, colour: str, operation: str) -> None:
    """Redis, PostgreSQL, or the legacy store: each with a deadline of its own."""
    hangs.given_up.clear()
    kind = LegacySwisperStore if colour == SYNC else AsyncLegacySwisperStore

    def run(operation: str, session_id: str, fault: Fault) -> Outcome:
        with hangs.backend(colour, fault.number, tenant) as backend:
            legacy: Any = kind(older.url, table=older.table, timeout_seconds=IMPATIENT["database_timeout_seconds"])
            manager = backend.open(**IMPATIENT)
            # They are to hang while they answer, and not while they connect.
            assert backend.keep(legacy).get_chat_history(session_id)
            assert waited_for(lambda: manager.health().status == "healthy")
            outcome = Trials(backend, legacy).attempt(manager, operation, session_id, fault, hang=hangs.hang)
        assert len(hangs.given_up) == fault.number - (not outcome.has_fired), "it did not hang"
        return outcome

    made = replace(hangs.stage.backend, tenant=tenant, opened=[])
    with closing(made), open_store(made, older.store) as healthy:
        # The table takes what has gathered at once.
        work_through(healthy, Contents(older), operation, HANG, run, least={**EFFECTS, "relay": 4})


@pytest.fixture
def table(database_url: str, tenant: str) -> Iterator[TableStore]:
    store = TableStore(database_url, f"legacy_{tenant}")
    yield store
    store.close()


def started(backend: Backend, table: str, **given: Any) -> subprocess.Popen[str]:
    """Start a process that writes."""
    settings = {
        "redis_url": backend.redis_url,
        "database_url": backend.database_url,
        "tenant": backend.tenant,
        "redis_timeout_seconds": 10.0,
        "database_timeout_seconds": 20.0,
    }
    errand = json.dumps({"settings": settings, "table": table, **given})
    return subprocess.Popen([sys.executable, "-W", "error", str(WORKER), errand], stdout=subprocess.PIPE, text=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [KILL_BEFORE, KILL_AFTER])
@pytest.mark.parametrize("operation", EFFECTS)
def test_a_process_dies_at_an_effect(blocking: Backend, table: TableStore, operation: str, kind: str) -> None:
    def run(operation: str, session_id: str, fault: Fault) -> Outcome:
        errand = {"operation": operation, "kind": fault.kind, "number": fault.number, "session": session_id}
        process = started(blocking, table._table, **errand)
        process.communicate(timeout=120)
        is_dead = process.returncode == -signal.SIGKILL
        assert is_dead or process.returncode == UNTOUCHED
        return Outcome(is_silent=is_dead, has_fired=is_dead, effects=fault.number - 1)

    with open_store(blocking, table) as healthy:
        work_through(healthy, table, operation, kind, run)


@pytest.mark.timeout(600)
def test_processes_killed_in_the_middle_of_dual_writes_leave_no_difference(
    blocking: Backend, table: TableStore
) -> None:
    sessions = [f"s{number}" for number in range(4)]
    acknowledged: list[str] = []
    killed_in_doubt = 0
    with open_store(blocking, table) as healthy:
        # Without ids the first message of a session may be written twice: nothing precedes it that would place it.
        for name in sessions:
            healthy.append(name, say(0))
        assert healthy.settle(60)
        for life in range(5):
            process = started(blocking, table._table, sessions=sessions, life=life)
            assert process.stdout is not None
            lines = list(itertools.islice(process.stdout, 40 + 13 * life))
            process.kill()
            acknowledged += [*lines, *process.stdout]
            process.wait(30)
            process.stdout.close()
            killed_in_doubt += healthy.backlog().messages > 0
            for name in sessions:  # what is read while the dead one's lease still runs
                found = contents(healthy.get_chat_history(name))
                mine = [line.strip() for line in acknowledged if line.startswith(f"{name} ")]
                assert [one for one in found if one in set(mine)] == mine
        assert killed_in_doubt, "it never died with something to be relayed"
        assert healthy.settle(60)
        for name in sessions:
            logged = contents(healthy.memory_manager.session_store.get_chat_history(name))
            assert table.contents(name) == logged
            assert len(set(logged)) == len(logged)


def test_what_was_acknowledged_while_the_database_was_away_reaches_both(blocking: Backend) -> None:
    legacy = ListStore()
    with open_store(blocking, legacy) as store:
        store.add_chat_message("s", say(0))
        outage = Interposition(store.memory_manager, away=DATABASE)
        receipts = [store.append("s", say(number)) for number in (1, 2)]
        assert not any(one.durable for one in receipts)
        with pytest.raises(StoreUnavailableError):
            store.get_chat_history("s")
        outage.remove()
        assert contents(store.get_chat_history("s")) == talk(0, 1, 2)
        store.add_chat_message("s", say(3))
        assert store.settle()
        assert legacy.contents("s") == talk(0, 1, 2, 3)
    with open_store(blocking, legacy) as fresh:
        outage = Interposition(fresh.memory_manager, away=DATABASE)
        # Nobody knows yet whether the tenant writes to two stores: then nothing is acknowledged.
        assert fresh.add_chat_message("s", say(4)) is False
        outage.remove()
        assert contents(fresh.get_chat_history("s")) == talk(0, 1, 2, 3)


def test_what_waited_goes_before_what_was_logged_later_in_the_outbox_too(blocking: Backend) -> None:
    """A drain takes back what was logged behind messages that waited: their rows are numbered anew."""
    legacy = ListStore()
    with open_store(blocking, legacy) as away, open_store(blocking, legacy) as other:
        away.add_chat_message("s", say(0))
        outage = Interposition(away.memory_manager, away=DATABASE)
        away.add_chat_message("s", say(1))
        time.sleep(0.01)  # times tell what was acknowledged later
        other.memory_manager.session_store.append("s", {"role": "user", "content": "by hand"})
        time.sleep(0.01)
        outage.remove()
        other.add_chat_message("s", say(2))
        assert contents(other.get_chat_history("s")) == talk(0, 1, 2)
        assert contents(other.memory_manager.session_store.get_chat_history("s")) == [
            "message 0",
            "message 1",
            "by hand",
            "message 2",
        ]
        assert other.settle()
        assert legacy.contents("s") == talk(0, 1, 2)
