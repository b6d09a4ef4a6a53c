"""One contract for four managers: {sync, async} x {durable, ephemeral}.

The asyncio manager is shown through the blocking interface, on a loop of its own, so that a test is written once. The
fixtures that give a test each combination in turn are in ``memory_fixtures``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import psycopg
import redis
from lost_messages import nothing_lost

from contract_engine.memory import (
    AsyncBufferStore,
    AsyncMemoryManager,
    AsyncPostgresSessionStore,
    AsyncRetention,
    AsyncSummaryStore,
    BufferStore,
    MemoryConfig,
    MemoryManager,
    PostgresSessionStore,
    SummaryStore,
)
from contract_engine.memory._effects import Flow, Query, RedisCall, Transaction
from contract_engine.memory.keys import SessionKeys, session_keys
from contract_engine.memory.summarizers import FactsWriter

T = TypeVar("T")

SYNC, ASYNC = "sync", "async"
DURABLE, EPHEMERAL = "durable", "ephemeral"
TABLES = (
    "memory_sessions",
    "memory_messages",
    "memory_summaries",
    "memory_recall",
    "memory_outbox",
    "memory_relays",
)

_ASYNC_TYPES = (AsyncMemoryManager, AsyncBufferStore, AsyncSummaryStore, AsyncPostgresSessionStore, AsyncRetention)


class BlockingView:
    """An asyncio object called without ``await``; its stores are shown the same way."""

    def __init__(self, target: object, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, "aclose" if name == "close" else name)
        if inspect.iscoroutinefunction(value):
            return lambda *args, **kwargs: self._loop.run_until_complete(value(*args, **kwargs))
        return BlockingView(value, self._loop) if isinstance(value, _ASYNC_TYPES) else value


PATIENT: dict[str, Any] = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 20.0}
"""The deadlines of a test that is not about deadlines: a busy machine may stand still for longer than the default."""


@dataclass
class Backend:
    """Opens managers and stores of one colour in one mode, all of one tenant, and closes them in the end."""

    colour: str
    mode: str
    redis_url: str
    database_url: str | None
    tenant: str
    opened: list[Any] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_durable(self) -> bool:
        return self.mode == DURABLE

    def config(self, **settings: Any) -> MemoryConfig:
        given = {"redis_url": self.redis_url, "database_url": self.database_url, "tenant": self.tenant}
        return MemoryConfig(**(given | PATIENT | settings))

    def open(
        self,
        *,
        summary_trigger_tokens: int | None = None,
        max_buffer_tokens: int | None = None,
        max_buffer_messages: int | None = None,
        facts_writer: FactsWriter | None = None,
        **settings: Any,
    ) -> MemoryManager:
        """Open one more manager: to the servers it is another process."""
        kind: type[MemoryManager] | type[AsyncMemoryManager]
        kind = MemoryManager if self.colour == SYNC else AsyncMemoryManager
        manager = kind(
            summary_trigger_tokens,
            max_buffer_tokens,
            max_buffer_messages=max_buffer_messages,
            config=self.config(**settings),
            facts_writer=facts_writer,
        )
        return cast("MemoryManager", self.keep(manager))

    def open_buffer(self, max_messages: int | None = None, max_tokens: int | None = None) -> BufferStore:
        """Open a buffer store that stands alone."""
        kind = BufferStore if self.colour == SYNC else AsyncBufferStore
        return cast("BufferStore", self.keep(kind(max_messages, max_tokens, config=self.config())))

    def open_summaries(self, **settings: Any) -> SummaryStore:
        """Open a summary store that stands alone."""
        kind = SummaryStore if self.colour == SYNC else AsyncSummaryStore
        return cast("SummaryStore", self.keep(kind(config=self.config(**settings))))

    def open_log(self, **settings: Any) -> PostgresSessionStore:
        """Open a session store that stands alone."""
        kind = PostgresSessionStore if self.colour == SYNC else AsyncPostgresSessionStore
        return cast("PostgresSessionStore", self.keep(kind(config=self.config(**settings))))

    def keys(self, session_id: str) -> SessionKeys:
        return session_keys("contract", self.tenant, session_id)

    def run(self, manager: MemoryManager, flow: Flow[T]) -> T:
        """Run a flow of the package in one of these managers."""
        answer: Any = manager._runtime.run(flow)
        if self.colour == ASYNC:
            assert self.loop is not None
            answer = self.loop.run_until_complete(answer)
        return cast("T", answer)

    def close(self) -> None:
        for opened in reversed(self.opened):
            opened.close()
        if self.loop is not None:
            self.loop.close()

    def keep(self, opened: object) -> Any:
        """Close it in the end; answers it as tests of any colour use it."""
        if self.colour == ASYNC:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
            opened = BlockingView(opened, self.loop)
        self.opened.append(opened)
        return opened


def say(number: int, *, words: int = 6, role: str = "user") -> dict[str, Any]:
    """Return message ``number``; each word beyond the first ones costs about one token."""
    return {"role": role, "content": f"This is message {number:04d} of the session." + " detail" * words}


def talk(count: int, *, start: int = 1, words: int = 6) -> list[dict[str, Any]]:
    """Return the messages ``start`` and following, ``count`` of them."""
    return [say(number, words=words) for number in range(start, start + count)]


def assert_caps(context: Mapping[str, Any]) -> None:
    """Hold a context against the caps it names itself: only a message that stands alone may be larger."""
    info = context["buffer_info"]
    count, tokens = len(context["buffer_messages"]), info["total_tokens"]
    assert count <= info["max_messages"]
    assert tokens <= info["max_tokens"] or count == 1
    assert context["message_count"] == info["message_count"] == count
    beside = context["pinned_tokens"] + context.get("recalled_tokens", 0)
    assert context["total_tokens"] == tokens + context["summary_tokens"] + beside
    assert all(pinned["seq"] <= context["watermark"] for pinned in context["pinned_messages"])


def assert_context(context: Mapping[str, Any], said: Sequence[object]) -> None:
    """Hold a context against everything that was said: a summary of 1..W and the rest word for word."""
    watermark = context["watermark"]
    assert context["complete"] is True
    with nothing_lost():
        assert 0 <= watermark <= len(said)
        assert context["last_seq"] == len(said)
        assert context["buffer_messages"] == list(said[watermark:])
    assert bool(context["current_summary"]) == (watermark > 0)
    assert_caps(context)


def same(left: object, right: object) -> bool:
    """Compare two JSON values with their types: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return repr(left) == repr(right) if isinstance(left, float) else left == right


def redis_values(client: redis.Redis, pattern: str = "*") -> dict[bytes, bytes]:
    """Return every key that matches with all of its bytes."""
    return {key: b"\n".join([key, *_value_parts(client, key)]) for key in client.scan_iter(match=pattern, count=1000)}


def _value_parts(client: Any, key: bytes) -> list[bytes]:
    kind = client.type(key)
    if kind == b"string":
        return [client.get(key) or b""]
    if kind == b"list":
        return list(client.lrange(key, 0, -1))
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    if kind == b"set":
        return list(client.smembers(key))
    if kind == b"zset":
        return list(client.zrange(key, 0, -1))
    return [client.dump(key) or b""]


def rows_with(database_url: str, canary: str) -> list[str]:
    """Return the columns, of every table there is, that hold ``canary`` in any row; bytes are looked into as text."""
    found = []
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        ).fetchall()
        assert {table for table, _, _ in columns} >= set(TABLES)
        for table, column, kind in columns:
            text = f"encode({column}, 'escape')" if kind == "bytea" else f"{column}::text"
            query = f"SELECT count(*) FROM {table} WHERE strpos({text}, %s) > 0"
            row = connection.execute(query.encode(), (canary,)).fetchone()
            if row is not None and row[0]:
                found.append(f"{table}.{column}")
    return found


def row_counts(database_url: str, tenant: str) -> dict[str, int]:
    """Return how many rows a tenant has in each table."""
    counts = {}
    with psycopg.connect(database_url) as connection:
        for table in TABLES:
            row = connection.execute(f"SELECT count(*) FROM {table} WHERE tenant = %s".encode(), (tenant,)).fetchone()
            assert row is not None
            counts[table] = row[0]
    return counts


def logged(database_url: str, tenant: str, session_id: str) -> list[tuple[int, dict[str, Any]]]:
    """Return number and message of every row of a session, past the package."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT seq, body FROM memory_messages WHERE tenant = %s AND session_id = %s ORDER BY seq",
            (tenant, session_id),
        ).fetchall()
    return [(seq, json.loads(body)) for seq, body in rows]


def run_between(manager: MemoryManager, flow: Flow[T], *, after: int, action: Callable[[], object]) -> T:
    """Run a flow as its manager would, and ``action`` after ``after`` effects: what another process does meanwhile."""
    runtime = manager._runtime
    performed = 0
    try:
        effect = next(flow)
        while True:
            answer = runtime._perform(effect)
            performed += isinstance(effect, RedisCall | Query | Transaction)
            if performed == after:
                action()
                performed += 1
            effect = flow.send(answer)
    except StopIteration as stop:
        assert performed > after, "the flow ended before the action"
        return cast("T", stop.value)


def run_threads(count: int, work: Callable[[int], object]) -> None:
    """Run ``work(0)`` to ``work(count - 1)`` at once; the first error of any of them is raised here."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def body(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread of the test
            errors.append(exc)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


async def cancel_a_read(redis_url: str, tenant: str) -> None:
    """Cancel ``get_context`` while it is on its way."""
    async with AsyncMemoryManager(redis_url=redis_url, tenant=tenant) as manager:
        await manager.add_message("s", say(1))
        task = asyncio.create_task(manager.get_context("s"))
        await asyncio.sleep(0)  # one turn of the loop begins it, and no answer can be there yet
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
