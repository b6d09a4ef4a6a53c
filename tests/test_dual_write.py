"""Two stores side by side: what is acknowledged is in both, in order and once, whichever of them is read."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from dual_stores import HASTY, contents, open_store, say, talk
from legacy_stores import AsyncListStore, BatchStore, KnowingStore, ListStore
from memory_contract import Backend
from server_faults import waited_for

from contract_engine.memory import (
    AsyncMemoryManager,
    ConfigurationError,
    InvalidInputError,
    MemoryManager,
    MessageConflictError,
    PostgresSessionStore,
    StoreUnavailableError,
)
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import LegacyUnavailableError
from contract_engine.memory.legacy import overlap
from contract_engine.memory.migration import (
    AsyncEnhancedSessionStore,
    EnhancedSessionStore,
    Phase,
    RelaySettings,
)
from contract_engine.memory.migration_control import MigrationControl
from contract_engine.memory.phases import bucket, check_phase

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")

PATIENCE = 30.0


# -- both are written


def test_both_stores_get_every_message_in_order(durable: Backend, legacy: ListStore) -> None:
    store = open_store(durable, legacy)
    for number in range(20):
        assert store.add_chat_message("s", say(number)) is True
    assert legacy.contents("s") == []
    assert contents(store.get_chat_history("s")) == talk(*range(20))
    assert contents(store.get_chat_history("s", 3)) == talk(17, 18, 19)
    assert store.backlog().messages == 20
    assert store.settle()
    assert legacy.contents("s") == talk(*range(20))
    assert contents(store.memory_manager.session_store.get_chat_history("s")) == talk(*range(20))
    assert store.backlog() == (0, 0, 0, 0, None, 0)
    assert store.stats[:3] == (20, 20, 0)
    assert contents(store.get_chat_history("s", 3)) == talk(17, 18, 19)
    assert store.get_chat_history("s", 0) == []


def test_a_thread_beside_relays_without_being_asked(blocking: Backend, legacy: ListStore) -> None:
    with open_store(blocking, legacy, is_relaying=True) as store:
        store.add_chat_message("s", say(1))
        assert waited_for(lambda: legacy.contents("s") == talk(1), PATIENCE)
        assert waited_for(lambda: store.backlog().messages == 0, PATIENCE)


async def test_a_task_beside_relays_to_a_store_of_either_kind(redis_url: str, database_url: str, tenant: str) -> None:
    for session_id, legacy in (("a", AsyncListStore()), ("b", ListStore())):
        async with (
            AsyncMemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as manager,
            AsyncEnhancedSessionStore(manager, legacy, relay=HASTY) as store,
        ):
            for number in range(5):
                assert await store.add_chat_message(session_id, say(number))
            until = time.monotonic() + PATIENCE
            while legacy.contents(session_id) != talk(*range(5)):
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert contents(await store.get_chat_history(session_id)) == talk(*range(5))


def test_a_message_sent_again_under_its_id_is_in_both_once(store: EnhancedSessionStore, legacy: ListStore) -> None:
    first = store.append("s", say(1), message_id="one")
    assert store.append("s", say(1), message_id="one").seq == first.seq
    assert store.settle()
    assert store.append("s", say(1), message_id="one").seq == first.seq
    with pytest.raises(MessageConflictError):
        store.append("s", say(2), message_id="one")
    assert store.settle()
    assert legacy.contents("s") == talk(1)


def test_relays_at_once_give_every_message_once_and_in_order(blocking: Backend, legacy: ListStore) -> None:
    sessions = [f"s{number}" for number in range(12)]
    with open_store(blocking, legacy) as store, ThreadPoolExecutor(8) as pool:
        stop = threading.Event()

        def relay() -> int:
            count = 0
            while not stop.is_set():
                count += store.relay_once()
            return count

        relays = [pool.submit(relay) for _ in range(4)]
        for number in range(20):
            list(pool.map(lambda session_id, number=number: store.add_chat_message(session_id, say(number)), sessions))
        assert waited_for(lambda: store.backlog().messages == 0, PATIENCE)
        stop.set()
        assert sum(one.result() for one in relays) == 240
    assert {session_id: legacy.contents(session_id) for session_id in sessions} == {
        session_id: talk(*range(20)) for session_id in sessions
    }


def test_what_takes_several_messages_is_given_several(blocking: Backend, database_url: str, tenant: str) -> None:
    legacy = BatchStore(database_url, f"legacy_{tenant}")
    try:
        with open_store(blocking, legacy) as store:
            for number in range(50):
                store.add_chat_message("s", say(number))
            assert store.relay_once() == 50
            assert legacy.contents("s") == talk(*range(50))
            assert contents(store.get_chat_history("s", 2)) == talk(48, 49)
    finally:
        legacy.close()


def test_erasing_a_session_leaves_nothing_of_it_to_relay(store: EnhancedSessionStore, database_url: str) -> None:
    store.add_chat_message("s", say(1))
    tenant = store.memory_manager.config.tenant
    assert store.memory_manager.clear_session_memory("s")
    with psycopg.connect(database_url) as connection:
        for table in ("memory_outbox", "memory_relays"):
            assert connection.execute(f"SELECT count(*) FROM {table} WHERE tenant = %s", (tenant,)).fetchall() == [(0,)]
    assert store.relay_once() == 0
    store.add_chat_message("s", say(2))
    assert contents(store.get_chat_history("s")) == talk(2)


# -- the legacy store fails


def test_a_legacy_store_that_is_down_costs_a_backlog_and_nothing_else(
    blocking: Backend, legacy: ListStore, tenant: str
) -> None:
    legacy.fails = legacy.fails_reads = True
    breaker = CircuitBreaker(5, 0.2, name="legacy")
    with open_store(blocking, legacy, is_relaying=True, breaker=breaker) as store, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(store.add_chat_message, f"s{number % 8}", say(number)) for number in range(160)]
        assert all(one.result() is True for one in answers)
        assert waited_for(lambda: breaker.snapshot().failed >= 5, PATIENCE)
        backlog = store.backlog()
        manager = blocking.open()
        assert (backlog.messages, backlog.sessions, backlog.parked) == (160, 8, 0)
        assert backlog.oldest_seconds is not None
        assert MigrationControl(manager).backlog().messages == 160
        assert legacy.calls < 160, "it was asked for every message"
        with pytest.raises(LegacyUnavailableError):
            store.get_chat_history("s0")
        legacy.fails = legacy.fails_reads = False
        assert store.settle(PATIENCE)
        for session in range(8):
            name = f"s{session}"
            logged = contents(store.memory_manager.session_store.get_chat_history(name))
            assert sorted(logged) == sorted(talk(*range(session, 160, 8)))
            assert legacy.contents(name) == logged
            assert contents(store.get_chat_history(name)) == logged


def test_a_lost_answer_is_found_out_and_nothing_is_written_twice(
    store: EnhancedSessionStore, legacy: ListStore
) -> None:
    store.add_chat_message("s", say(0))
    assert store.settle()
    for _ in range(3):
        store.add_chat_message("s", say(7))  # the same thing said again and again
    legacy.loses_answers = True
    assert store.relay_once() == 0
    assert legacy.contents("s") == talk(0, 7)
    assert contents(store.get_chat_history("s")) == talk(0, 7, 7, 7)
    assert contents(store.get_chat_history("s", 2)) == talk(7, 7)
    assert store.backlog().in_doubt == 1
    legacy.loses_answers = False
    assert store.settle()
    assert legacy.contents("s") == talk(0, 7, 7, 7)


def test_a_store_that_knows_ids_is_asked_instead(blocking: Backend) -> None:
    legacy = KnowingStore()
    with open_store(blocking, legacy) as store:
        legacy.loses_answers = True
        store.add_chat_message("s", say(7))
        store.add_chat_message("s", say(7))
        store.relay_once()
        legacy.sessions["s"].append(say(99))  # somebody else writes there too, so that comparing would not do
        legacy.loses_answers = False
        assert store.settle()
        assert legacy.contents("s") == talk(7, 99, 7)


def test_a_message_that_is_refused_parks_its_session_and_no_other(
    blocking: Backend, legacy: ListStore, caplog: pytest.LogCaptureFixture
) -> None:
    legacy.poison = "message 1"
    with open_store(blocking, legacy, breaker=CircuitBreaker(100, name="legacy")) as store:
        for number in range(3):
            store.add_chat_message("bad", say(number))
        store.add_chat_message("good", say(1000))
        assert waited_for(lambda: bool(store.relay_once() or store.backlog().parked), PATIENCE)
        assert waited_for(lambda: store.relay_once() == 0 and store.backlog().parked == 1, PATIENCE)
        assert legacy.contents("bad") == talk(0)
        assert legacy.contents("good") == talk(1000)
        (parked,) = store.waiting_sessions()
        assert parked[:5] == ("bad", 2, HASTY.park_after, "LegacyError", True)
        assert contents(store.get_chat_history("bad")) == talk(0, 1, 2)
        store.add_chat_message("bad", say(3))
        assert store.relay_once() == 0, "its order is kept"
        legacy.poison = None
        assert store.retry("good") == []
        assert store.retry("bad") == ["bad"]
        assert store.settle()
        assert legacy.contents("bad") == talk(0, 1, 2, 3)
    assert "message 1" not in caplog.text
    assert "parked after 5 attempts: LegacyError" in caplog.text


def test_a_lease_that_its_holder_left_behind_is_taken_over(blocking: Backend, legacy: ListStore) -> None:
    settings = RelaySettings(lease_seconds=0.3, first_delay_seconds=0.01, max_delay_seconds=0.1, poll_seconds=0.05)
    with open_store(blocking, legacy, relay=settings) as store:
        store.add_chat_message("s", say(0))
        assert store.settle()
        store.add_chat_message("s", say(1))
        outbox = store._flows.outbox
        run = store.memory_manager._runtime.run
        assert [one.session_id for one in run(outbox.claim("the dead", sessions=5, lease_seconds=0.3))] == ["s"]
        legacy.add_chat_message("s", say(1))  # that was its last deed
        assert store.relay_once() == 0
        assert contents(store.get_chat_history("s")) == talk(0, 1)
        assert store.settle()
        assert legacy.contents("s") == talk(0, 1)


@pytest.mark.parametrize(
    ("held", "preceding", "pending", "count"),
    [
        ("", "", "a", 0),
        ("a", "", "a", 0),  # it may be from before the log
        ("ab", "ab", "c", 0),
        ("abc", "ab", "c", 1),
        ("abcd", "ab", "cde", 2),
        ("xa", "xa", "a", 0),
        ("xaa", "xa", "a", 1),
        ("aaa", "aaa", "aaa", 0),
        ("old", "", "a", 0),
        ("olda", "", "a", 0),
        ("xya", "x", "a", 0),  # from somebody else
        ("bc", "ab", "cd", 1),
        ("", "ab", "c", 0),
        ("abXc", "ab", "cd", 0),
        ("abX", "ab", "cd", 0),
    ],
)
def test_the_end_of_a_history_tells_what_was_written(held: str, preceding: str, pending: str, count: int) -> None:
    def messages(text: str, **more: Any) -> list[dict[str, Any]]:
        return [{"content": one, **more} for one in text]

    assert overlap(messages(held, added_by_the_store=1), messages(preceding), messages(pending)) == count


# -- both servers fail


def test_with_both_servers_away_a_message_is_in_neither_store(blocking: Backend, legacy: ListStore) -> None:
    away = Backend(blocking.colour, blocking.mode, "redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/x", "t")
    with open_store(away, legacy) as store:
        assert store.add_chat_message("s", say(1)) is False
        with pytest.raises(StoreUnavailableError):
            store.append("s", say(1))
    assert legacy.calls == 0
    away.close()


# -- phases


def test_the_phase_says_which_store_is_read(durable: Backend, legacy: ListStore) -> None:
    store = open_store(durable, legacy)
    store.add_chat_message("s", say(1))
    assert store.settle()
    legacy.sessions["s"].append({"content": "legacy"})
    assert store.get_phase() == (Phase.COEXISTENCE, 0)
    assert contents(store.get_chat_history("s"))[-1] == "legacy"
    assert store.set_phase("full") == (Phase.FULL, 100)
    assert contents(store.get_chat_history("s")) == talk(1)
    store.set_phase(Phase.GRADUAL, 0)
    assert contents(store.get_chat_history("s"))[-1] == "legacy"
    store.set_phase(Phase.GRADUAL, 100)
    assert contents(store.get_chat_history("s")) == talk(1)
    other = open_store(durable, legacy, phase="coexistence")
    assert other.get_phase() == (Phase.GRADUAL, 100), "what is stored counts"
    other.set_phase("coexistence")
    assert waited_for(lambda: contents(store.get_chat_history("s"))[-1] == "legacy", PATIENCE)


def test_a_percentage_is_stable_and_a_larger_one_keeps_its_sessions() -> None:
    names = [f"session-{number}" for number in range(2000)]
    served = [{name for name in names if check_phase("gradual", share).serves_new(name)} for share in (10, 30, 100)]
    assert served[0] < served[1] < served[2] == set(names)
    assert 120 < len(served[0]) < 280
    assert bucket("session-1") == pytest.approx(51.5769491202, abs=1e-9), "where it has always been"


def test_phases_that_make_no_sense_are_refused(store: EnhancedSessionStore) -> None:
    for phase, percentage in (("later", None), ("gradual", None), ("gradual", 101), ("gradual", True), ("full", 50)):
        with pytest.raises(InvalidInputError):
            store.set_phase(phase, percentage)
    assert store.get_phase().phase is Phase.COEXISTENCE


def test_a_phase_switched_under_load_never_shows_a_reader_less(blocking: Backend, legacy: ListStore) -> None:
    stop = threading.Event()
    reads = 0
    with open_store(blocking, legacy, is_relaying=True) as store, open_store(blocking, legacy) as reader:
        written: dict[str, list[str]] = {f"s{number}": [] for number in range(3)}

        def write(name: str) -> None:
            for number in range(1_000_000):
                if stop.is_set():
                    return
                assert store.add_chat_message(name, say(number))
                written[name].append(f"message {number}")

        def read() -> None:
            nonlocal reads
            while not stop.is_set():
                for name, known in written.items():
                    least = list(known)
                    found = contents(reader.get_chat_history(name))
                    assert found == talk(*range(len(found))), "each once and in order"
                    assert len(found) >= len(least), "less than was acknowledged"
                    reads += 1

        with ThreadPoolExecutor(4) as pool:
            tasks = [*(pool.submit(write, name) for name in written), pool.submit(read)]
            try:
                for _ in range(3):
                    for phase, percentage in (("gradual", 50), ("full", None), ("gradual", 20), ("coexistence", None)):
                        store.set_phase(phase, percentage)
                        enough = reads + 6
                        assert waited_for(lambda most=enough: reads >= most or tasks[-1].done(), PATIENCE)  # type: ignore[misc]  # bound above
            finally:
                stop.set()
            for one in tasks:
                one.result()
        assert store.settle(PATIENCE)
        for name, known in written.items():
            assert legacy.contents(name) == known
    assert reads > 60


def test_comparisons_count_what_differs_and_log_ids_alone(
    blocking: Backend, legacy: ListStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "contract_engine")
    with open_store(blocking, legacy, phase="gradual", percentage=0, shadow_rate=1.0) as store:
        for name in ("same", "other", "less"):
            for number in range(4):
                store.add_chat_message(name, say(number))
        assert store.settle()
        legacy.sessions["other"][2] = {"content": "canary"}
        del legacy.sessions["less"][1]
        for name in ("same", "other", "less"):
            store.get_chat_history(name)
            store.get_chat_history(name, 3)
        assert store.memory_manager.wait_for_folds(PATIENCE)
        assert (store.stats.compared, store.stats.mismatches) == (6, 4)
    assert caplog.text.count("the stores differ") == 4
    assert "canary" not in caplog.text
    assert "session same" not in caplog.text


# -- what is refused


def test_ephemeral_mode_is_refused_and_says_why(redis_url: str, legacy: ListStore) -> None:
    with MemoryManager(redis_url=redis_url) as manager, EnhancedSessionStore(manager, legacy) as store:
        with pytest.raises(ConfigurationError, match="needs a database: in ephemeral mode nothing would hold"):
            store.add_chat_message("s", say(1))
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            store.get_chat_history("s")
    assert legacy.calls == 0


def test_stores_that_cannot_be_called_are_refused(blocking: Backend, legacy: ListStore) -> None:
    manager = blocking.open()
    with pytest.raises(ConfigurationError, match="no method add_chat_message"):
        EnhancedSessionStore(manager, object())
    wrong: Any = AsyncMemoryManager()
    with pytest.raises(ConfigurationError, match="AsyncEnhancedSessionStore"):
        EnhancedSessionStore(wrong, legacy)
    wrong = manager
    with pytest.raises(ConfigurationError, match="use EnhancedSessionStore"):
        AsyncEnhancedSessionStore(wrong, legacy)
    with pytest.raises(InvalidInputError, match="shadow_rate"):
        EnhancedSessionStore(manager, legacy, shadow_rate=2)
    with pytest.raises(InvalidInputError, match="percentage"):
        EnhancedSessionStore(manager, legacy, percentage=10)


def test_the_same_log_by_another_way_is_refused(blocking: Backend, database_url: str) -> None:
    manager = blocking.open()
    parts = urlsplit(database_url)
    assert parts.hostname == "127.0.0.1"
    address = parts.netloc.replace("127.0.0.1", "localhost")
    for url in (database_url, urlunsplit(parts._replace(netloc=address))):
        log = PostgresSessionStore(config=replace(blocking.config(), database_url=url))
        with log, EnhancedSessionStore(manager, log, is_relaying=False) as store:
            if url == database_url:
                store.append("s", say(1))
                assert store.backlog().messages == 0
                continue
            with pytest.raises(ConfigurationError, match="same URL"):
                store.append("s", say(2))
            with pytest.raises(ConfigurationError, match="legacy_store"):
                store.get_chat_history("s")
    assert contents(manager.session_store.get_chat_history("s")) == talk(1)


def test_without_arguments_the_log_is_both_stores(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, database_url: str, tenant: str
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("CONTRACT_MEMORY_TENANT", tenant)
    with EnhancedSessionStore() as store:
        assert store.add_chat_message("s", say(1))
        assert store.legacy_store.get_chat_history("s") == [say(1)]
        assert store.memory_manager.get_context("s")["buffer_messages"] == [say(1)]
        assert store.get_chat_history("s") == [say(1)]
        assert store.backlog().messages == 0
