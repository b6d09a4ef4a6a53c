"""How a relay goes about a backlog: nobody waits for it without need, and what it has no time for is no failure."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from crash_matrix import Interposition, name_of
from dual_stores import HASTY, contents, open_store, say, talk
from legacy_stores import ListStore, Messages
from legacy_tables import Older
from memory_contract import Backend
from server_faults import waited_for

from contract_engine.memory import AsyncLegacySwisperStore, AsyncMemoryManager, LegacySwisperStore
from contract_engine.memory._log_outbox import HAS_PENDING
from contract_engine.memory.intake import Intake
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore, RelaySettings
from contract_engine.memory.relaying import BYTES

pytest_plugins = ("memory_fixtures", "legacy_fixtures")

PATIENCE = 30.0


class Slow(ListStore):
    """Takes its time for each message, and tells somebody first."""

    def __init__(self, seconds: float, before: Callable[[str], object] = lambda _: None) -> None:
        super().__init__()
        self._seconds, self.before = seconds, before

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        self.before(session_id)
        time.sleep(self._seconds)
        super().add_chat_message(session_id, message)


class Batches(ListStore):
    """Takes several messages at once."""

    def add_chat_messages(self, session_id: str, messages: Messages) -> None:
        self.sessions.setdefault(session_id, []).extend(messages)


def rows(backend: Backend, sql: str) -> list[tuple[Any, ...]]:
    assert backend.database_url is not None
    with psycopg.connect(backend.database_url) as connection:
        return connection.execute(sql, {"tenant": backend.tenant}).fetchall()


def leased(backend: Backend) -> set[str]:
    sql = "SELECT session_id FROM memory_relays WHERE tenant = %(tenant)s AND leased_until > clock_timestamp()"
    return {row[0] for row in rows(backend, sql)}


def fill(store: EnhancedSessionStore, *, sessions: int, each: int) -> None:
    """Have a backlog gather, as an outage of the legacy store leaves it."""
    manager = store.memory_manager
    intake = Intake(manager.token_counter, max_message_bytes=2**20)
    log = LogFlows(manager.config)
    batch = intake.batch([say(number) for number in range(each)])
    for session in range(sessions):
        relayed = [one._replace(is_relayed=True, message_id=f"{session}.{place}") for place, one in enumerate(batch)]
        manager._runtime.run(log.append(f"s{session}", relayed))


def test_a_session_waits_for_its_own_relay_and_for_no_other(blocking: Backend) -> None:
    held: list[set[str]] = []
    legacy = Slow(0.02, lambda _: held.append(leased(blocking)))
    names = {f"s{number}" for number in range(8)}
    with open_store(blocking, legacy, relay=RelaySettings(lease_seconds=60.0)) as store:
        for name in names:
            for number in range(15):
                store.append(name, say(number))
        first = store.relay_once()
        assert first >= 15
        assert held[0] == names, "they were claimed together"
        assert all(len(one) == 1 for one in held[14:]), "and given back, as soon as the first took its time"
        assert leased(blocking) == set()
        assert store.backlog().in_doubt == 0
        del held[:]
        assert store.settle(PATIENCE)
        assert {name: legacy.contents(name) for name in names} == {name: talk(*range(15)) for name in names}
        assert (store.stats.relayed, store.stats.failed) == (8 * 15, 0)
        assert len(min(held, key=len)) == 1
        assert sum(map(len, held)) < 4 * len(held), "fewer are claimed where they take long"


HUNG_SECONDS = 10.0
"""The deadline of a legacy store that hangs."""


@contextmanager
def hanging(older: Older) -> Iterator[Callable[[], bool]]:
    """Lock the table of the original, so that whoever asks for it hangs; yields what tells whether anybody does."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    with psycopg.connect(older.url) as holder, psycopg.connect(older.url, autocommit=True) as watcher:
        holder.execute(f"LOCK TABLE {older.table} IN ACCESS EXCLUSIVE MODE")
        yield lambda: watcher.execute(waiting, (older.table,)).fetchall() != [(0,)]


def test_a_legacy_store_that_hangs_holds_up_no_append(blocking: Backend, older: Older) -> None:
    with (
        closing(LegacySwisperStore(older.url, table=older.table, timeout_seconds=HUNG_SECONDS)) as legacy,
        EnhancedSessionStore(blocking.open(), legacy, relay=HASTY) as store,
    ):
        with hanging(older) as is_waited_for:
            store.append("s", say(0))
            assert waited_for(is_waited_for)
            taken = []
            for number in range(1, 21):
                started = time.monotonic()
                store.append("s", say(number))
                taken.append(time.monotonic() - started)
            assert is_waited_for(), "the relay has hung all the while"
        assert max(taken) < HUNG_SECONDS / 4, taken
        assert sum(taken) < HUNG_SECONDS / 2, taken
        assert store.settle(PATIENCE)
        assert contents(older.store.get_chat_history("s")) == talk(*range(21))


async def test_nor_does_it_an_append_of_a_task(redis_url: str, database_url: str, tenant: str, older: Older) -> None:
    async with (
        AsyncMemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as manager,
        AsyncLegacySwisperStore(older.url, table=older.table, timeout_seconds=HUNG_SECONDS) as legacy,
        AsyncEnhancedSessionStore(manager, legacy, relay=HASTY) as store,
    ):
        with hanging(older) as is_waited_for:
            await store.append("s", say(0))
            until = time.monotonic() + PATIENCE
            while not is_waited_for():
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
            taken = []
            for number in range(1, 21):
                started = time.monotonic()
                await store.append("s", say(number))
                taken.append(time.monotonic() - started)
            assert is_waited_for(), "the relay has hung all the while"
        assert max(taken) < HUNG_SECONDS / 4, taken
        assert sum(taken) < HUNG_SECONDS / 2, taken
        assert await store.settle(PATIENCE)
        assert contents(older.store.get_chat_history("s")) == talk(*range(21))


def test_what_there_is_no_time_for_is_no_failure(blocking: Backend, caplog: pytest.LogCaptureFixture) -> None:
    legacy = Slow(0.05)
    settings = RelaySettings(lease_seconds=0.8, first_delay_seconds=60.0)
    with open_store(blocking, legacy, relay=settings) as store:
        for number in range(30):
            store.append("s", say(number))
        assert 0 < store.relay_once() < 30
        (waiting,) = store.waiting_sessions()
        assert (waiting.attempts, waiting.error, waiting.in_doubt) == (0, None, False)
        assert store.settle(PATIENCE)
        assert legacy.contents("s") == talk(*range(30))
        assert store.stats.failed == 0
    assert "not relayed" not in caplog.text


def test_so_many_bytes_are_read_at_once_and_no_more(blocking: Backend) -> None:
    legacy = ListStore()
    long = "x" * (BYTES // 10)
    with open_store(blocking, legacy) as store:
        for name in ("a", "b", "c"):
            for number in range(8):
                store.append(name, {"role": "user", "content": f"{number}{long}"})
        answers: list[int] = []
        while count := store.relay_once():
            answers.append(count)
        assert sum(answers) == 24
        assert max(answers) <= 11, "each round has read as much as there was room for"
        assert store.backlog().messages == 0
        assert all([one[0] for one in legacy.contents(name)] == list("01234567") for name in ("a", "b", "c"))
        assert store.stats.failed == 0


def test_one_message_larger_than_that_is_relayed_too(blocking: Backend) -> None:
    legacy = ListStore()
    manager = blocking.open(max_message_bytes=2 * BYTES)
    with EnhancedSessionStore(manager, legacy, is_relaying=False) as store:
        for name in ("a", "b"):
            store.append(name, {"role": "user", "content": "x" * (BYTES + 9)})
        assert [store.relay_once(), store.relay_once(), store.relay_once()] == [1, 1, 0]


def test_while_it_is_relayed_a_reader_asks_for_ids_alone(blocking: Backend) -> None:
    with open_store(blocking, ListStore()) as store:
        for number in range(5):
            store.append("s", say(number))
        claimed = store._flows.outbox.claim("somebody slow", sessions=5, lease_seconds=PATIENCE)
        assert store.memory_manager._runtime.run(claimed)
        effects = Interposition(store.memory_manager)
        assert contents(store.get_chat_history("s")) == talk(*range(5))
        effects.remove()
        asked = Counter(name_of(effect) for effect in effects.effects)
        assert asked["pending_messages"] == 1
        assert asked["pending_ids"] == 6
        assert asked["LegacyCall"] == 1


def test_each_failure_doubles_the_delay_up_to_the_longest(blocking: Backend) -> None:
    legacy = ListStore()
    legacy.fails = True
    settings = RelaySettings(first_delay_seconds=1000, max_delay_seconds=3000, park_after=6)
    with open_store(blocking, legacy, relay=settings) as store:
        store.append("s", say(1))
        assert blocking.database_url is not None
        for number, longest in enumerate((1000, 2000, 3000, 3000, 3000), 1):
            assert store.relay_once() == 0
            (waiting,) = store.waiting_sessions()
            assert (waiting.attempts, waiting.is_parked) == (number, False)
            assert longest / 2 - 60 < waiting.due_seconds <= longest
            with psycopg.connect(blocking.database_url) as connection:
                connection.execute("UPDATE memory_relays SET due_at = now() WHERE tenant = %s", (blocking.tenant,))
            store.legacy_breaker.reset()
        store.relay_once()
        assert store.waiting_sessions()[0].is_parked
        legacy.fails = False
        store.legacy_breaker.reset()
        assert store.retry() == ["s"]
        assert store.settle()


@pytest.mark.timeout(300)
def test_what_an_hour_of_outage_leaves_drains_in_order_while_reads_go_on(blocking: Backend) -> None:
    sessions, each = 250, 200
    legacy = Batches()
    with open_store(blocking, legacy) as store:
        store.append("reader", say(0))
        assert store.settle()

        def read() -> float:
            started = time.perf_counter()
            assert store.get_chat_history("reader") == [say(0)]
            return time.perf_counter() - started

        before = [read() for _ in range(40)]
        fill(store, sessions=sessions, each=each)
        backlog = store.backlog()
        assert backlog[:3] == (sessions * each, sessions, 0)
        assert backlog.oldest_seconds is not None
        assert backlog.oldest_seconds > 0
        draining = threading.Thread(target=store.settle, args=(120,))
        during = []
        draining.start()
        while draining.is_alive():
            during.append(read())
        draining.join()
        assert store.backlog() == (0, 0, 0, 0, None, 0)
        assert all(legacy.contents(f"s{number}") == talk(*range(each)) for number in range(sessions))
        assert store.stats.relayed == sessions * each + 1
        assert len(during) > 20
        assert statistics.median(during) < 30 * statistics.median(before)


def test_waiting_for_a_relay_does_not_look_through_the_outbox(blocking: Backend) -> None:
    with open_store(blocking, Slow(0.1)) as store:
        for number in range(3):
            store.append(f"s{number}", say(number))
        effects = Interposition(store.memory_manager)
        assert store.settle()
        effects.remove()
        asked = Counter(name_of(effect) for effect in effects.effects)
        assert asked["outbox_has_pending"] >= 2
        assert asked["outbox_backlog"] == asked["outbox_counts"] == 0
        plans = rows(blocking, "EXPLAIN " + HAS_PENDING.sql.replace("%(of_tenant)s", "%(tenant)s"))
        assert "memory_outbox" not in str(plans)
