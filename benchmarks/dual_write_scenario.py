"""What it costs to write two stores instead of one after the other, and how fast a backlog drains."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg.types.json import Jsonb
from scenario import CALLS, WIDE, Bench, Scenario, Timer, message, usual_call

from contract_engine.memory import LegacySwisperStore, MemoryManager
from contract_engine.memory.intake import Intake
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.migration import EnhancedSessionStore

BACKLOG = 4000
REACH_PER_SECOND = 2000
SESSIONS = 100
SWISPER_HISTORIES = 200, 1000
"""Messages that each row of the original's table has before anything is relayed to it."""

SHORT_SESSIONS = 1000
"""Sessions that share a backlog where each has a few messages of it, and whose rows begin empty."""

ROWS_RUN = 1
"""The sessions that these rows are of."""

RELAYS = 4
"""Threads that relay, as many as ``contract-memory relay`` has."""


class ListStore:
    """A legacy store in the process."""

    def __init__(self) -> None:
        self.sessions: dict[str, list[dict[str, Any]]] = {}

    def add_chat_message(self, session_id: str, one: dict[str, Any]) -> None:
        self.sessions.setdefault(session_id, []).append(one)

    def get_chat_history(self, session_id: str) -> list[dict[str, Any]]:
        return list(self.sessions.get(session_id, ()))

    def close(self) -> None:
        self.sessions.clear()


class TableStore:
    """A legacy store in PostgreSQL: a row per message, a commit per message, a connection per thread."""

    def __init__(self, url: str, table: str = "legacy_bench") -> None:
        self._url, self._table = url, table
        self._local = threading.local()
        self._opened: list[psycopg.Connection[Any]] = []
        self._execute(f"DROP TABLE IF EXISTS {table}")
        self._execute(f"CREATE TABLE {table} (id bigserial PRIMARY KEY, session_id text, message jsonb)")
        self._execute(f"CREATE INDEX ON {table} (session_id, id)")

    def _execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> psycopg.Cursor[Any]:
        if not hasattr(self._local, "connection"):
            self._local.connection = psycopg.connect(self._url, autocommit=True)
            self._opened.append(self._local.connection)
        found: psycopg.Cursor[Any] = self._local.connection.execute(sql, parameters)
        return found

    def add_chat_message(self, session_id: str, one: dict[str, Any]) -> None:
        self._execute(f"INSERT INTO {self._table} (session_id, message) VALUES (%s, %s)", (session_id, Jsonb(one)))

    def get_chat_history(self, session_id: str) -> list[dict[str, Any]]:
        rows = self._execute(f"SELECT message FROM {self._table} WHERE session_id = %s ORDER BY id", (session_id,))
        return [row[0] for row in rows.fetchall()]

    def close(self) -> None:
        self._execute(f"DROP TABLE {self._table}")
        for connection in self._opened:
            connection.close()


class BatchStore(TableStore):
    """One that takes several messages in one commit."""

    def add_chat_messages(self, session_id: str, several: list[dict[str, Any]]) -> None:
        self._execute(
            f"INSERT INTO {self._table} (session_id, message) SELECT %s, unnest(%s::jsonb[])",
            (session_id, [Jsonb(one) for one in several]),
        )


def _manager(bench: Bench) -> MemoryManager:
    manager = MemoryManager(
        redis_url=bench.redis_url, database_url=bench.database_url, limits=WIDE, tenant=f"dual-{time.time_ns()}"
    )
    manager.token_counter.warm()
    return manager


@contextmanager
def dual_write(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """Add to both stores, with the relay at work beside; against adding to the one and then to the other."""
    with (
        _manager(bench) as manager,
        closing(TableStore(bench.database_url)) as legacy,
        EnhancedSessionStore(manager, legacy) as store,
    ):
        names = itertools.count()

        def dual() -> float:
            name, fresh = f"dual-{next(names)}", bench.fresh(CALLS)
            add = store.add_chat_message
            seconds = usual_call([lambda one=one: add(name, one) for one in fresh])  # type: ignore[misc]  # bound now
            assert store.settle(60), "the next round is not to pay for this one"
            return seconds

        def both() -> float:
            name, fresh = f"both-{next(names)}", bench.fresh(CALLS)

            def add(one: dict[str, Any]) -> None:
                manager.add_message(name, one)
                legacy.add_chat_message(name, one)

            return usual_call([lambda one=one: add(one) for one in fresh])  # type: ignore[misc]  # bound now

        yield dual, both


def drain(
    make: Callable[[Bench], Any], relays: int, *, run: int | None = None, sessions: int = SESSIONS
) -> Callable[[Bench], Any]:
    """Make the scenario of a backlog that is relayed: seconds per message, against those of the rate to reach.

    With a ``run`` each round goes to the sessions of that name, which grow.
    """

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        with (
            _manager(bench) as manager,
            closing(make(bench)) as legacy,
            EnhancedSessionStore(manager, legacy, is_relaying=False) as store,
        ):

            def timer() -> float:
                fill(manager, time.time_ns() if run is None else run, sessions)
                threads = [threading.Thread(target=store.settle, args=(120,)) for _ in range(relays)]
                started = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                seconds = time.perf_counter() - started
                assert store.backlog().messages == 0
                return seconds / BACKLOG

            yield timer, lambda: 1 / REACH_PER_SECOND

    return prepare


def drain_to_rows(history: int, sessions: int) -> Callable[[Bench], Any]:
    """Relay to the original's table: one row per session, which is written anew with all of its messages each time."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        table = f"swisper_{time.time_ns()}"

        def grown(bench: Bench) -> LegacySwisperStore:
            store = LegacySwisperStore(bench.database_url, table=table, timeout_seconds=30.0)
            store.create_table()
            older = bench.fresh(history)
            for session in range(sessions):
                store.add_chat_messages(f"{ROWS_RUN}-{session}", older)
            return store

        try:
            with drain(grown, RELAYS, run=ROWS_RUN, sessions=sessions)(bench) as timers:
                yield timers
        finally:
            with psycopg.connect(bench.database_url) as connection:
                connection.execute(f"DROP TABLE {table}")

    return prepare


@contextmanager
def drain_one_by_one(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """Relay to a store that commits each message; against as many threads that write to it and do nothing else."""
    with (
        drain(lambda _: TableStore(bench.database_url), RELAYS)(bench) as (timer, _),
        closing(TableStore(bench.database_url, "legacy_alone")) as alone,
        ThreadPoolExecutor(RELAYS) as pool,
    ):

        def write(session: int) -> None:
            for number in range(BACKLOG // SESSIONS):
                alone.add_chat_message(str(session), message(number))

        def reference() -> float:
            started = time.perf_counter()
            list(pool.map(write, range(SESSIONS)))
            return (time.perf_counter() - started) / BACKLOG

        yield timer, reference


def fill(manager: MemoryManager, run: int, sessions: int) -> None:
    """Have a backlog gather, of the shape that an outage leaves: many messages of many sessions."""
    intake = Intake(manager.token_counter, max_message_bytes=2**20)
    log, each = LogFlows(manager.config), BACKLOG // sessions
    for session in range(sessions):
        batch = intake.batch([message(session * each + number) for number in range(each)])
        relayed = [one._replace(is_relayed=True) for one in batch]
        manager._runtime.run(log.append(f"{run}-{session}", relayed))


SCENARIOS = (
    Scenario("add_chat_message to two stores", "to the one, then to the other", 1.0, dual_write),
    Scenario("relay of a message, list", "2,000 a second", 1.0, drain(lambda _: ListStore(), 1), rounds=3),
    Scenario(
        "relay of a message, table, batches",
        "2,000 a second",
        1.0,
        drain(lambda bench: BatchStore(bench.database_url), RELAYS),
        rounds=3,
    ),
    *(
        Scenario(
            f"relay of a message, original's table, rows of {history}",
            "2,000 a second",
            1.0,
            drain_to_rows(history, SESSIONS),
            rounds=3,
        )
        for history in SWISPER_HISTORIES
    ),
    Scenario(
        "relay of a message, original's table, short rows",
        "2,000 a second",
        1.0,
        drain_to_rows(0, SHORT_SESSIONS),
        rounds=3,
    ),
    Scenario("relay of a message, table, one by one", "the same without a relay", 1.5, drain_one_by_one, rounds=3),
)
