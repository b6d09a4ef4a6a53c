"""A dual write, a relay or a change of phase fails or dies at its first effect, its second, ...: both stores agree."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_matrix import (
    DATABASE,
    ERROR_AFTER,
    ERROR_BEFORE,
    KILL_AFTER,
    KILL_BEFORE,
    OUTAGE,
    Fault,
    Interposition,
)
from dual_stores import HASTY, contents, open_store, say, talk
from dual_write_worker import UNTOUCHED, do
from legacy_stores import KnowingStore, ListStore, TableStore
from memory_contract import Backend

from contract_engine.memory import StoreUnavailableError
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import MemoryServiceError
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("memory_fixtures",)

WORKER = Path(__file__).parent / "dual_write_worker.py"
OPERATIONS = ("write", "relay", "read", "forward", "back")
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
    assert contents(store.get_chat_history(session_id)) in allowed
    assert store.settle(60)
    logged = contents(store.memory_manager.session_store.get_chat_history(session_id))
    assert logged in allowed
    assert legacy.contents(session_id) == logged
    for phase in ("full", "coexistence"):
        store.set_phase(phase)
        assert contents(store.get_chat_history(session_id)) == logged
    assert store.backlog().messages == 0


def legacy_list() -> ListStore:
    return ListStore()


@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER, OUTAGE])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("make", [legacy_list, KnowingStore])
def test_an_effect_fails(blocking: Backend, make: Callable[[], ListStore], operation: str, kind: str) -> None:
    legacy = make()
    faults = 0
    lender = blocking.open()
    with open_store(blocking, legacy) as healthy:
        for number in range(1, MOST_EFFECTS):
            session_id = f"s{number}"
            brought_about(healthy, session_id)
            manager = blocking.open()
            lent = lender._runtime  # connections that are open already
            manager._runtime._redis, manager._runtime._database = lent._redis, lent._database
            breaker = CircuitBreaker(5, 0.05, name="legacy")
            store = EnhancedSessionStore(manager, legacy, relay=HASTY, is_relaying=False, breaker=breaker)
            interposition = Interposition(manager, Fault(kind, number))
            has_new: bool | None = operation == "write"
            try:
                do(store, operation, session_id)
            except MemoryServiceError:
                has_new = None if operation == "write" else False
            interposition.remove()
            assert_converged(healthy, legacy, session_id, has_new=has_new)
            if interposition.fired is None:
                assert len(interposition.effects) == number - 1
                break
            faults += 1
        else:
            raise AssertionError("does not end")
    expected = {"write": 2, "relay": 6, "read": 4, "forward": 1, "back": 1}
    assert faults >= expected[operation], faults


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
@pytest.mark.parametrize("operation", ["write", "relay", "forward"])
def test_a_process_dies_at_an_effect(blocking: Backend, table: TableStore, operation: str, kind: str) -> None:
    deaths = 0
    with open_store(blocking, table) as healthy:
        for number in range(1, MOST_EFFECTS):
            session_id = f"s{number}"
            brought_about(healthy, session_id)
            errand = {"operation": operation, "kind": kind, "number": number, "session": session_id}
            process = started(blocking, table._table, **errand)
            process.communicate(timeout=120)
            has_met_it = process.returncode == -9
            assert has_met_it or process.returncode == UNTOUCHED
            has_new = None if has_met_it and operation == "write" else operation == "write"
            assert_converged(healthy, table, session_id, has_new=has_new)
            if not has_met_it:
                break
            deaths += 1
        else:
            raise AssertionError(f"{operation}: does not end")
    assert deaths >= {"write": 2, "relay": 6, "forward": 1}[operation]


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
