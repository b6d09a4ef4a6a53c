"""What every manager keeps to: limits of size and memory, the turns of others, records without a memory, settings."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from working_memory_contract import (
    KINDS,
    STACKS,
    SYNC,
    WORKING,
    ManualClock,
    MemoryBackend,
    ask,
    say,
    texts_of,
)
from wrapper_fixtures import KEYS

from contract_engine.memory import ConfigurationError, InvalidInputError
from contract_engine.memory.errors import CorruptDataError
from contract_engine.working_memory import (
    AsyncEncrypted,
    AsyncInMemoryManager,
    AsyncRedisWorkingMemoryManager,
    Audited,
    Compressed,
    Encrypted,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    KeyRing,
    RedisWorkingMemoryManager,
    Retrying,
    RichMemory,
    SQLMemoryManager,
    TTLStrategy,
    Versioned,
    WorkingMemoryManager,
    acting_as,
    train_dictionary,
)
from contract_engine.working_memory.expiring_entries import ExpiringEntries
from contract_engine.working_memory.layers import run
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.stored_records import decode_record, encode_record
from contract_engine.working_memory.stores import SCAN_BATCH


@pytest.fixture(params=KINDS)
def backend(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str, tmp_path: Path
) -> Iterator[MemoryBackend]:
    made = MemoryBackend(request.param, SYNC, STACKS["bare"], tenant, redis_url, database_url, tmp_path)
    with closing(made) as found:
        yield found


# -- size


def _size(manager: WorkingMemoryManager) -> int:
    """Return the bytes of all texts and metadata, as JSON has them."""
    found = manager.retrieve(ask("c1", limit=None))
    return sum(len(memory.working_memory.encode()) + len(str(memory.metadata).encode()) for memory in found)


def test_a_record_that_grows_by_metadata_has_a_limit() -> None:
    manager = InMemoryManager(max_bytes=1000)
    manager.store_rich("c1", RichMemory("x", metadata={"a": "x" * 800}))
    with pytest.raises(InvalidInputError, match="bytes, at most 1,000"):
        manager.store_rich("c1", RichMemory("y", metadata={"a": "y" * 800}))
    assert len(manager.retrieve(ask("c1"))) == 1
    assert _size(manager) < 1000


def test_an_update_that_adds_metadata_has_a_limit() -> None:
    manager = InMemoryManager(max_bytes=1000)
    manager.store(say("c1", "x", metadata={"a": "x" * 600}))
    with pytest.raises(InvalidInputError):
        manager.update(say("c1", "x", metadata={"b": "x" * 600}))
    with pytest.raises(InvalidInputError):
        manager.update(IMemoryInput("c1", WORKING, [IWorkingMemory("x", {"b": "x" * 600})]))
    manager.update(say("c1", "x", metadata={"a": "y" * 900}))
    assert _size(manager) < 1000


def test_a_limit_is_of_bytes_and_not_of_characters() -> None:
    manager = InMemoryManager(max_bytes=1000)
    manager.store(say("c1", "🦊" * 200))
    with pytest.raises(InvalidInputError):
        manager.store_rich("c1", RichMemory("🦊" * 200))
    with pytest.raises(InvalidInputError):
        manager.store(say("c2", "🦊" * 251))
    assert _size(manager) < 1000


def test_one_record_written_for_a_month_takes_the_memory_of_one() -> None:
    clock = ManualClock()
    entries = ExpiringEntries(max_entries=10, clock=clock)
    for _ in range(10_000):
        entries.put("name", b"body", 30 * 86_400)
        clock.seconds += 1
    assert len(entries) == 1
    assert len(entries._buckets) == 1
    assert len(entries._seconds) <= 2000
    clock.seconds += 40 * 86_400
    entries.put("other", b"body", 1)
    assert len(entries) == 1
    assert len(entries._seconds) == 1


def test_records_that_come_and_go_leave_nothing() -> None:
    clock = ManualClock()
    entries = ExpiringEntries(max_entries=100, clock=clock)
    for number in range(10_000):
        entries.put(f"evicted-{number}", b"body", 30 * 86_400 + number)
        entries.put("removed", b"body", 20 * 86_400)
        assert entries.remove("removed")
        clock.seconds += 1
    assert 99 <= len(entries) <= 100
    assert len(entries._buckets) <= 100
    assert len(entries._seconds) <= 2000


# -- records as bytes


def test_a_record_without_a_memory_is_damaged_in_every_call(backend: MemoryBackend) -> None:
    manager = backend.open()
    backend.plant(f"{backend.prefix}:WORKING_MEMORY:c1", b'{"data": [], "metadata": {}}')
    for call in (
        lambda: manager.retrieve(ask("c1")),
        lambda: manager.retrieve_safe(ask("c1")),
        lambda: manager.update(say("c1", "x")),
        lambda: manager.store_rich("c1", RichMemory("x")),
        lambda: manager.get_memory_history("c1"),
        lambda: manager.get_important_memories("c1"),
    ):
        with pytest.raises(CorruptDataError):
            call()
    manager.store(say("c1", "x"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["x"]


times = st.sampled_from(["2027-01-15T08:00:00+00:00", "2027-01-15T08:00:00.000001+00:00", "", 'x"\\'])


@given(st.text(st.characters(exclude_categories=())), times, times)
def test_a_plain_record_is_written_like_any_other(text: str, created: str, updated: str) -> None:
    """There is a short way for nearly all of them; what makes a record take the long one is taken away again."""
    plain = Record((Item(text, "1"),), {}, created, updated)
    body = encode_record(plain)
    assert decode_record(body) == plain
    long_way = encode_record(plain, change="0" * 16)
    assert long_way.replace(b',"change":"0000000000000000"', b"") == body


def test_two_equal_changes_at_once_are_both_there(backend: MemoryBackend) -> None:
    """In the same microsecond too; what one has made is not taken for what the other has sent twice."""
    one = backend.open()
    one.store_rich("c1", RichMemory("the same"))
    begun: list[str] = []

    def revise(record: Record | None) -> Record:
        assert record is not None
        if not begun:
            begun.append("other")
            run(one.layer.change(key, revise))  # in between our look and our exchange
        added = replace(record.items[0], memory_id=str(len(record.items) + 1))
        return replace(record, items=(*record.items, added))

    key = RecordKey.under(one.prefix, WORKING, "c1")
    run(one.layer.change(key, revise))
    assert begun == ["other"]
    assert texts_of(one.retrieve(ask("c1"))) == ["the same"] * 3


# -- the turns of others


class Turns:
    """Counts how often another task has its turn meanwhile."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> Turns:
        self._task = asyncio.ensure_future(self._run())
        await asyncio.sleep(0)
        self.count = 0
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def test_others_have_their_turn_while_all_records_are_looked_at() -> None:
    manager = AsyncEncrypted(AsyncInMemoryManager(), keys=KEYS)
    steps = 6
    await manager.store_many([say(f"c{number}", "x") for number in range(steps * SCAN_BATCH)])
    async with Turns() as turns:
        assert (await manager.storage_stats())["total_entries"] == steps * SCAN_BATCH
    assert turns.count >= steps
    async with Turns() as turns:
        assert await manager.reencrypt("memory:*", everything=True) == 0
    assert turns.count >= steps
    async with Turns() as turns:
        assert await manager.cleanup("memory:*", everything=True) == steps * SCAN_BATCH
    assert turns.count >= steps


def test_a_scan_does_not_hold_the_lock_while_it_looks() -> None:
    """Another thread has the store between two steps, and a step looks at so many names and no more."""
    clock = ManualClock()
    manager = InMemoryManager(ttl=10, clock=clock)
    manager.store_many([say(f"c{number}", "x") for number in range(3 * SCAN_BATCH)])
    store = manager.store_of_records
    batch = store.scan("memory:*", None)
    assert len(batch.names) == SCAN_BATCH
    manager.delete(ask(f"c{SCAN_BATCH}"))
    manager.store(say("later", "x"))
    second = store.scan("memory:*", batch.cursor)
    assert len(second.names) == SCAN_BATCH - 1
    clock.seconds += 10
    assert store.scan("memory:*", second.cursor).names == []


# -- settings


@pytest.mark.parametrize(
    "settings",
    [
        *({"pool_size": value} for value in (0, -1, True, "5", 1.5, None)),
        *({"timeout_seconds": value} for value in (0, -1, True, "x", None, float("nan"), float("inf"), 1e300)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", [RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager])
def test_bad_settings_are_refused(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind("redis://localhost", **settings)
    assert caught.value.field == next(iter(settings))


class _Cluster(redis.RedisCluster):
    """A client that has not looked for its nodes: nothing is asked of it."""

    def __init__(self) -> None:
        pass

    def __del__(self) -> None:
        pass


class _OnACluster(RedisWorkingMemoryManager):
    """A manager that sets its client itself."""

    def __init__(self) -> None:
        self.redis_client = _Cluster()


class _AsyncOnACluster(AsyncRedisWorkingMemoryManager):
    """The same on an event loop."""

    def __init__(self) -> None:
        self.redis_client = redis.asyncio.RedisCluster(host="127.0.0.1", port=1)  # connects when it is asked


async def test_a_cluster_is_refused_before_anything_is_asked_of_it() -> None:
    for blocking in (_OnACluster().store, _OnACluster().retrieve, lambda _: Retrying(_OnACluster())):
        with pytest.raises(ConfigurationError, match="redis_client: a client of a Cluster"):
            blocking(say("c1", "x"))
    for awaited in (_AsyncOnACluster().store, _AsyncOnACluster().retrieve):
        with pytest.raises(ConfigurationError, match="redis_client: a client of a Cluster"):
            await awaited(say("c1", "x"))
    with pytest.raises(ConfigurationError, match="storage_url"):
        RedisWorkingMemoryManager("redis+cluster://127.0.0.1:1")


# -- clocks


def test_durations_do_not_go_by_the_clock_on_the_wall(tmp_path: Path) -> None:
    """With the clocks that managers have by themselves, in a process whose time of day jumps by years at each look."""
    code = """
import itertools, sys, time
years = itertools.cycle((0, 1, -1))
time.time = lambda: 1_800_000_000.0 + next(years) * 365 * 86_400  # before anybody can have taken the real one
from contract_engine.memory import StoreUnavailableError
from contract_engine.working_memory import (
    Audited, ConversationMemoryType, IMemoryInput, InMemoryManager, IWorkingMemory, Retrying, SQLiteMemoryManager
)
request = IMemoryInput("c1", ConversationMemoryType.WORKING_MEMORY, [IWorkingMemory("x")])
manager, short = InMemoryManager(ttl=3600), InMemoryManager(ttl=0.05)
manager.store(request)
for _ in range(5):
    assert manager.retrieve(request), "expired by the time of day"
deadline = time.monotonic() + 30
short.store(request)
while short.retrieve(request):
    assert time.monotonic() < deadline, "never expires"
told = []
away = Retrying(Audited(SQLiteMemoryManager(sys.argv[1]), sink=told.append), base_seconds=0, deadline_seconds=30)
try:
    away.retrieve(request)
except StoreUnavailableError:
    assert len(told) == 3, "gave up by the time of day"
    print("well")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "none" / "memory.db")],
        env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "well\n", done.stderr


class Nonsense:
    """Is nothing that anybody asks for."""


REQUIRED: dict[type, dict[str, Any]] = {
    Compressed: {},
    Encrypted: {"keys": KEYS},
    Versioned: {},
    Retrying: {},
    Audited: {},
    TTLStrategy: {"strategies": {"guest": 60}},
}
MANAGERS = (InMemoryManager, RedisWorkingMemoryManager, SQLMemoryManager)
SETTINGS = [
    (kind, name)
    for kind in (*MANAGERS, *REQUIRED)
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.annotation != "bool"  # whatever is true or not
]


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=lambda value: getattr(value, "__name__", value))
def test_a_setting_of_a_wrong_type_is_refused_by_its_name(kind: type, name: str) -> None:
    given_first = [] if kind in MANAGERS or name == "manager" else [InMemoryManager()]
    settings = REQUIRED.get(kind, {}) | {name: Nonsense()}
    if kind is SQLMemoryManager and name != "url":
        settings["url"] = "sqlite://"
    with pytest.raises((ConfigurationError, InvalidInputError)) as caught:
        kind(*given_first, **settings)
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("texts", [None, 5, "text", b"text", [123], ["a", None]], ids=repr)
def test_a_dictionary_is_trained_on_texts(texts: Any) -> None:
    with pytest.raises(InvalidInputError, match="texts"):
        train_dictionary(texts)


@pytest.mark.parametrize("keys", [[], None, "a:b", ["a"]], ids=repr)
def test_a_ring_has_keys_by_id(keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="keys"):
        KeyRing(keys, active="a")


@pytest.mark.parametrize("active", [None, 5, ["a"], {"a": 1}, ""], ids=repr)
def test_one_key_of_a_ring_is_active(active: Any) -> None:
    with pytest.raises(ConfigurationError, match="active"):
        KeyRing({"a": bytes(32)}, active=active)


@pytest.mark.parametrize("max_bytes", ["5", None, True, 2.5, 10], ids=repr)
def test_a_dictionary_has_a_size(max_bytes: Any) -> None:
    with pytest.raises(InvalidInputError, match="max_bytes"):
        train_dictionary(["a text"], max_bytes=max_bytes)


def test_who_acts_has_a_name() -> None:
    who: Any = 5
    with pytest.raises(ConfigurationError, match="actor"), acting_as(who):
        pass
