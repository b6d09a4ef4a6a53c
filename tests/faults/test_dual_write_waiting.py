"""What waits in Redis while PostgreSQL is away reaches the legacy store if it was sent to both, and only then."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import redis
from crash_matrix import DATABASE, ERROR_AFTER, ERROR_BEFORE, OUTAGE, REDIS, Fault, Interposition
from dual_stores import contents, end_leases, log_alone, open_store, say, talk
from legacy_stores import KnowingStore, ListStore
from memory_contract import Backend

from contract_engine.memory import MemoryManager, StoreUnavailableError
from contract_engine.memory._log_backfill import HistoryRow
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.migration import EnhancedSessionStore

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")


def own_log(manager: MemoryManager) -> EnhancedSessionStore:
    """The adapter as it is without arguments: the log is both stores."""
    return EnhancedSessionStore(manager, manager.session_store, is_relaying=False)


def logged(store: EnhancedSessionStore) -> list[str]:
    return contents(store.memory_manager.session_store.get_chat_history("s"))


def lists(backend: Backend) -> tuple[Any, str]:
    return redis.Redis.from_url(backend.redis_url), backend.keys("s").unlogged


def test_what_went_to_the_log_alone_is_not_relayed(store: EnhancedSessionStore, legacy: ListStore) -> None:
    manager = store.memory_manager
    store.append("s", say(0))
    outage = Interposition(manager, away=DATABASE)
    manager.append("s", say(1))
    store.append("s", say(2), message_id="two")
    manager.add_messages("s", [say(3), say(4)])
    assert store.append("s", say(2), message_id="two").seq == 3, "sent again, and found by its id"
    outage.remove()
    assert contents(store.get_chat_history("s")) == talk(0, 2), "what the legacy store shows, and is to be given"
    assert logged(store) == talk(0, 1, 2, 3, 4)
    assert store.backlog().messages == 2
    assert store.settle()
    assert legacy.contents("s") == talk(0, 2)


@pytest.mark.parametrize("has_phase", [False, True])
def test_without_a_legacy_store_nothing_is_to_be_relayed(blocking: Backend, *, has_phase: bool) -> None:
    manager = blocking.open()
    with own_log(manager) as store:
        assert store.get_phase() == ("coexistence", 0)
        assert store.set_phase("gradual", 30) == ("coexistence", 0), "what is in force"
        if has_phase:  # as by ``phase set`` for a tenant mistyped
            with open_store(blocking, ListStore()) as other:
                other.set_phase("full")
            assert store.get_phase() == ("full", 100)
            assert store.set_phase("coexistence") == ("full", 100)
        store.append("s", say(0))
        outage = Interposition(manager, away=DATABASE)
        store.append("s", say(1))
        outage.remove()
        assert contents(store.get_chat_history("s")) == talk(0, 1)
        assert logged(store) == talk(0, 1)
        assert store.backlog().sessions == 0
        assert store.settle(0)
        assert manager.health().check("outbox") is None or has_phase


@pytest.mark.parametrize("is_dual", [False, True])
def test_what_an_older_version_left_waiting_goes_by_the_tenant(
    blocking: Backend, legacy: ListStore, *, is_dual: bool
) -> None:
    """Its elements do not say where they were sent: all of a tenant that writes to two stores are relayed."""
    manager = blocking.open()
    manager.append("s", say(0))
    outage = Interposition(manager, away=DATABASE)
    for number in (1, 2):
        manager.append("s", say(number))
    outage.remove()
    client, key = lists(blocking)
    with client:
        elements = client.lrange(key, 1, -1)
        assert [element[-3:] for element in elements] == [b",0]"] * 2
        for place, element in enumerate(elements, 1):
            client.lset(key, place, element[:-3] + b"]")
    with open_store(blocking, legacy) as store:
        if is_dual:
            store.get_phase()
        assert logged_of(manager, store) == talk(0, 1, 2)
        assert store.backlog().messages == (2 if is_dual else 0)
        assert store.settle()
        assert legacy.contents("s") == (talk(1, 2) if is_dual else [])


def logged_of(manager: MemoryManager, store: EnhancedSessionStore) -> list[str]:
    manager.drain("s")
    return logged(store)


def test_the_end_of_an_evicted_list_goes_by_the_tenant_too(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore
) -> None:
    store.append("s", say(0))
    outage = Interposition(store.memory_manager, away=DATABASE)
    store.append("s", say(1))
    outage.remove()
    client, key = lists(blocking)
    with client:
        assert client.delete(key) == 1
    assert contents(store.get_chat_history("s")) == talk(0, 1)
    assert store.settle()
    assert legacy.contents("s") == talk(0, 1)


@pytest.mark.parametrize("is_evicted", [False, True])
def test_what_waits_is_relayed_before_what_was_logged_behind_it(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, *, is_evicted: bool
) -> None:
    store.append("s", say(0))
    assert store.settle()
    outage = Interposition(store.memory_manager, away=DATABASE)
    store.append("s", say(1))
    outage.remove()
    with open_store(blocking, legacy) as other:
        log_alone(other, "s", say(2))
        if is_evicted:
            client, key = lists(blocking)
            with client:
                assert client.delete(key) == 1
        assert other.relay_once() == 1, "as many as were owed when it began"
        assert legacy.contents("s") == talk(0, 1)
        assert other.settle()
    assert legacy.contents("s") == talk(0, 1, 2) == logged(store)


def test_with_redis_away_what_is_logged_is_relayed(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore
) -> None:
    """Nobody can tell whether something waits there, and a migration does not stand still for it."""
    for number in range(3):
        store.append("s", say(number))
    with open_store(blocking, legacy) as other:
        outage = Interposition(other.memory_manager, away=REDIS)
        assert other.settle()
        outage.remove()
    assert legacy.contents("s") == talk(0, 1, 2)


@pytest.mark.parametrize("is_renumbered", [False, True])
def test_what_was_relayed_while_redis_was_away_has_its_place_for_good(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, *, is_renumbered: bool
) -> None:
    """What waited there, and could not be seen, comes behind it in both stores, and before what was logged since."""
    store.append("s", say(0))
    assert store.settle()
    outage = Interposition(store.memory_manager, away=DATABASE)
    store.append("s", say(1))
    time.sleep(0.002)  # the order within a millisecond is not known
    with open_store(blocking, legacy) as other:
        blind = Interposition(other.memory_manager, away=REDIS)
        for number in (2, 3):
            other.append("s", say(number))
        assert other.relay_once() == 2
        assert legacy.contents("s") == talk(0, 2, 3)
        other.append("s", say(4))
        if is_renumbered:
            older = HistoryRow("older", 1, 0, b'{"role":"user","content":"older"}')
            with LogWriter(other.memory_manager.config) as writer:
                assert writer.store("s", [older], after_id=None, is_covered=False, created_ms=0, updated_ms=0)
        blind.remove()
        outage.remove()
        store.append("s", say(5))
        assert other.settle()
    assert legacy.contents("s") == talk(0, 2, 3, 1, 4, 5)
    assert logged(store) == ["older"] * is_renumbered + talk(0, 2, 3, 1, 4, 5)


@pytest.mark.parametrize("kind", [ERROR_BEFORE, ERROR_AFTER, OUTAGE])
def test_a_relay_without_redis_that_meets_another_fault_leaves_one_order(blocking: Backend, kind: str) -> None:
    """At its first effect, its second, ...: of what it may have given on, nothing is moved."""
    legacy = KnowingStore()
    with open_store(blocking, legacy) as store, open_store(blocking, legacy) as other:
        for number in count(1):
            name = f"s{number}"
            store.append(name, say(0))
            assert store.settle()
            outage = Interposition(store.memory_manager, away=DATABASE)
            store.append(name, say(1))
            outage.remove()
            time.sleep(0.002)
            log_alone(other, name, say(2))
            blind = Interposition(other.memory_manager, Fault(kind, number), away=REDIS)
            with suppress(StoreUnavailableError):
                other.relay_once()
            blind.remove()
            end_leases(store)
            store.memory_manager.drain(name)
            for adapter in (store, other):
                adapter.legacy_breaker.reset()
                adapter.retry(name)
            assert store.settle()
            found = contents(store.memory_manager.session_store.get_chat_history(name))
            assert legacy.contents(name) == found
            assert found in (talk(0, 2, 1), talk(0, 1, 2))
            if blind.fired is None:
                assert len(blind.effects) >= 5, "claim, fix, read, give, note"
                assert found == talk(0, 2, 1)
                break


@pytest.mark.parametrize("noise", [b'[2,1,1,"id",{},"1"]', b'[2,1,1,"id",{},1,1]'])
def test_a_note_that_is_none_is_damage(
    blocking: Backend, store: EnhancedSessionStore, legacy: ListStore, noise: bytes, caplog: Any
) -> None:
    store.append("s", say(0))
    outage = Interposition(store.memory_manager, away=DATABASE)
    for number in (1, 2):
        store.append("s", say(number))
    store.memory_manager.append("s", say(3))
    outage.remove()
    client, key = lists(blocking)
    with client:
        client.lset(key, 2, noise)
    store.memory_manager.drain("s")
    assert "not a message" in caplog.text
    assert logged(store) == talk(0, 1, 2, 3), "the buffer has it"
    assert store.settle()
    assert legacy.contents("s") == talk(0, 1, 2), "of the others the notes are kept"
