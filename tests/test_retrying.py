"""Retrying: a moment without the store is not noticed, and nothing is applied twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
import redis
from server_faults import ServerFaults
from servers import PrivateServers
from wrapper_fixtures import KEYS

from contract_engine.memory.errors import (
    ConfigurationError,
    ContentionError,
    DatabaseUnavailableError,
    InvalidInputError,
    RedisUnavailableError,
    StoreUnavailableError,
)
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RichMemory,
)
from contract_engine.working_memory.compression import Compressed
from contract_engine.working_memory.encryption import Encrypted
from contract_engine.working_memory.in_memory_manager import InMemoryStore
from contract_engine.working_memory.layers import Pause
from contract_engine.working_memory.redis_memory_manager import (
    AsyncRedisWorkingMemoryManager,
    RedisWorkingMemoryManager,
)
from contract_engine.working_memory.redis_store import RedisAwayError
from contract_engine.working_memory.retrying import AsyncRetrying, Retrying
from contract_engine.working_memory.versions import Versioned

WORKING = ConversationMemoryType.WORKING_MEMORY


def of(*texts: str, **fields: Any) -> IMemoryInput:
    return IMemoryInput("c", WORKING, [IWorkingMemory(text) for text in texts] or None, **fields)


class Unsteady:
    """A store that fails, as often as it is told to, before or after it has done what was asked."""

    def __init__(self, store: InMemoryStore) -> None:
        self._store = store
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.before:
                raise self.before.pop(0)
            answer = getattr(self._store, name)(*arguments)
            if self.after and name in ("put", "exchange", "remove"):
                raise self.after.pop(0)
            return answer

        return call


class UnsteadyManager(InMemoryManager):
    """A manager over such a store."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.unsteady = Unsteady(self._entries)

    @property
    def store_of_records(self) -> Any:
        return self.unsteady


def away() -> RedisUnavailableError:
    return RedisUnavailableError("connection refused")


def test_a_call_is_made_again_by_named_errors_only() -> None:
    inner = UnsteadyManager()
    manager = Retrying(inner, base_seconds=0)
    inner.unsteady.before = [away(), DatabaseUnavailableError("gone")]
    manager.store(of("text"))
    assert inner.unsteady.before == []
    assert len(manager.retrieve(of())) == 1
    inner.unsteady.before = [away(), away(), away()]
    with pytest.raises(RedisUnavailableError):
        manager.retrieve(of())
    assert inner.unsteady.before == []
    inner.unsteady.before = [ContentionError("c", 1)]
    with pytest.raises(ContentionError):
        manager.retrieve(of())
    inner.unsteady.before = [away(), away()]
    with pytest.raises(RedisUnavailableError):
        Retrying(inner, on=(ContentionError,), base_seconds=0).retrieve(of())
    assert len(inner.unsteady.before) == 1
    inner.unsteady.before.clear()
    before = len(inner.unsteady.calls)
    with pytest.raises(InvalidInputError):
        manager.store(of())
    assert len(inner.unsteady.calls) == before


def test_retrieve_safe_tries_again_first() -> None:
    inner = UnsteadyManager()
    manager = Retrying(inner, base_seconds=0)
    manager.store(of("text"))
    inner.unsteady.before = [away(), away()]
    assert [memory.working_memory for memory in manager.retrieve_safe(of())] == ["text"]
    inner.unsteady.before = [away(), away(), away()]
    assert manager.retrieve_safe(of()) == []
    assert inner.unsteady.before == []


def test_the_like_of_another_is_not_taken_for_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that loses a race finds what the other made of the record; that it is equal says nothing."""
    inner = UnsteadyManager(wall_clock=lambda: 1_800_000_000.0)
    manager = Retrying(inner, base_seconds=0)
    manager.store_rich("c", RichMemory("first"))
    exchange, others = inner.unsteady._store.exchange, [inner]

    def slow(*arguments: Any) -> bool:
        if others:
            others.pop().store_rich("c", RichMemory("the same"))
        return exchange(*arguments)

    monkeypatch.setattr(inner.unsteady._store, "exchange", slow)
    manager.store_rich("c", RichMemory("the same"))
    found = manager.retrieve(of(limit=None))
    assert [memory.working_memory for memory in found] == ["first", "the same", "the same"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pauses(uniform: float, *, cost: float = 0.0, **settings: Any) -> list[float]:
    """Return how long a call that always fails waits between its attempts."""
    clock, waited = Clock(), list[float]()
    layer = Retrying(InMemoryManager(), uniform=lambda: uniform, clock=clock, **settings).layer
    flow = layer.read([])
    step = next(flow)
    with suppress(StoreUnavailableError):
        while True:
            if isinstance(step, Pause):
                waited.append(step.seconds)
                clock.now += step.seconds
                step = flow.send(None)
            else:
                clock.now += cost
                step = flow.throw(away())
    return waited


def test_pauses_grow_are_capped_and_random_in_their_full_length() -> None:
    settings = {"attempts": 7, "base_seconds": 0.1, "cap_seconds": 1.0, "deadline_seconds": 1000}
    assert pauses(1.0, **settings) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert pauses(0.5, **settings) == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])
    assert pauses(0.0, **settings) == [0.0] * 6
    assert pauses(1.0, **{**settings, "attempts": 1}) == []
    assert len(pauses(1.0, **{**settings, "attempts": 1000, "base_seconds": 1e-3})) == 999


def test_no_pause_begins_that_would_end_after_the_deadline() -> None:
    settings = {"attempts": 100, "base_seconds": 1.0, "cap_seconds": 1.0}
    assert len(pauses(1.0, deadline_seconds=5.5, **settings)) == 5
    assert len(pauses(1.0, deadline_seconds=5.5, cost=1.0, **settings)) == 2
    assert pauses(1.0, deadline_seconds=0.5, **settings) == []


ORDERS = list(permutations(("retrying", "versioned", "encrypted", "compressed")))


def stacked(inner: InMemoryManager, order: Sequence[str]) -> Any:
    made: Any = inner
    for name in order:
        if name == "retrying":
            made = Retrying(made, base_seconds=0, attempts=5)
        elif name == "versioned":
            made = Versioned(made)
        elif name == "encrypted":
            made = Encrypted(made, keys=KEYS)
        else:
            made = Compressed(made)
    return made


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_write_whose_answer_was_lost_is_not_applied_twice(order: Sequence[str]) -> None:
    inner = UnsteadyManager()
    manager = stacked(inner, order)

    def history() -> list[list[str]]:
        return [version["memories"] for version in manager.get_memory_history("c")]

    def lose() -> None:
        inner.unsteady.after = [away(), away()]

    for number in range(3):
        lose()
        manager.store(of(f"{number} " + "text " * 20, "beside"))
        assert len(inner.unsteady.after) < 2, "no answer was lost"
        inner.unsteady.after = []
    assert [texts[0][0] for texts in history()] == ["0", "1"]
    lose()
    manager.update(of("updated", memory_id="1"))
    assert len(inner.unsteady.after) == 1, "the answer was lost once, and the repeat had nothing to write"
    inner.unsteady.after = []
    assert [texts[0][0] for texts in history()] == ["0", "1", "2"]
    lose()
    manager.delete(of(memory_id="2"))
    inner.unsteady.after = []
    assert history()[-1] == ["updated", "beside"]
    assert len(history()) == 4
    lose()
    manager.restore_version("c", timestamp=manager.get_memory_history("c")[0]["timestamp"])
    inner.unsteady.after = []
    assert len(history()) == 5
    assert manager.retrieve(of())[0].working_memory.startswith("0 text")
    lose()
    manager.delete(of())
    inner.unsteady.after = []
    assert manager.retrieve(of()) == []


def test_of_a_batch_only_what_is_missing_is_written_again() -> None:
    inner = UnsteadyManager()
    manager = Retrying(Versioned(inner), base_seconds=0)
    for wave in ("first", "second"):
        inner.unsteady.after = [away()] if wave == "second" else []
        manager.store_many([IMemoryInput(name, WORKING, [IWorkingMemory(f"{wave} {name}")]) for name in "abc"])
        assert inner.unsteady.after == []
    for name in "abc":
        assert [version["content"] for version in manager.get_memory_history(name)] == [f"first {name}"]
    # Two of one batch for one conversation: the last one stays, also after a repeat.
    plain = Retrying(inner, base_seconds=0)
    inner.unsteady.after = [away()]
    plain.store_many([of("one"), of("two")])
    assert plain.retrieve(of())[0].working_memory == "two"


@pytest.mark.parametrize("error", [ConnectionError, OSError, redis.ConnectionError, redis.RedisError])
def test_an_outage_goes_by_any_name_that_it_has(error: type[Exception]) -> None:
    inner = UnsteadyManager()
    inner.unsteady.before = [RedisAwayError("connection refused")]
    Retrying(inner, on=(error,), base_seconds=0).store(of("text"))
    assert inner.unsteady.before == []
    inner.unsteady.before = [ContentionError("c", 250)]
    with pytest.raises(ContentionError):
        Retrying(inner, on=(error,), base_seconds=0).store(of("text"))


def test_a_repeated_write_is_recognised_while_the_clock_stands() -> None:
    inner = UnsteadyManager(wall_clock=lambda: 1_700_000_000.0)
    manager = Retrying(Versioned(inner), base_seconds=0)
    for text in ("one", "two", "three", "four"):
        inner.unsteady.after = [away()]
        manager.store(of(text))
        inner.unsteady.after = [away()]
        manager.update(of(text.upper()))
    contents = [version["content"] for version in manager.get_memory_history("c")]
    assert contents == ["one", "ONE", "two", "TWO", "three", "THREE", "four"]


def test_what_cannot_be_read_does_not_keep_a_repeated_write_away() -> None:
    inner = UnsteadyManager()
    Encrypted(inner, keys=KEYS).store(of("text"))
    inner.unsteady.before = [away()]
    Retrying(Encrypted(inner, keys=type(KEYS)({"other": bytes(32)}, active="other")), base_seconds=0).store(of("new"))
    assert inner.unsteady.before == []


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": 0}, {"attempts": True}, {"attempts": 1001}, {"base_seconds": -1}, {"cap_seconds": float("nan")},
        {"deadline_seconds": float("inf")}, {"on": ()}, {"on": (ValueError,)}, {"on": StoreUnavailableError},
        {"on": ("StoreUnavailableError",)}, {"on": (Exception,)}, {"on": (BaseException,)}, {"on": (object,)},
        {"on": (redis.DataError,)}, {"on": (ConnectionError, KeyError)}, {"on": (away(),)},
    ],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Retrying(InMemoryManager(), **settings)


def test_a_redis_that_dies_and_comes_back_is_not_noticed(private_servers: PrivateServers) -> None:
    servers = private_servers(postgres=False)
    with RedisWorkingMemoryManager(servers.redis_url) as inner:
        manager = Retrying(inner, attempts=1000, base_seconds=0.05, cap_seconds=0.1, deadline_seconds=60)
        manager.store(of("before"))
        ServerFaults(redis_server=servers).kill_redis()
        with pytest.raises(StoreUnavailableError):
            inner.retrieve(of())
        back = threading.Timer(0.5, servers.start)
        back.start()
        try:
            manager.store(of("after"))
        finally:
            back.join()
        assert [memory.working_memory for memory in manager.retrieve(of())] == ["after"]


async def test_the_twin_waits_without_holding_up_the_loop(private_servers: PrivateServers) -> None:
    servers = private_servers(postgres=False)
    inner = AsyncRedisWorkingMemoryManager(servers.redis_url)
    manager = AsyncRetrying(inner, attempts=1000, base_seconds=0.05, cap_seconds=0.1, deadline_seconds=60)
    async with manager:
        ServerFaults(redis_server=servers).kill_redis()
        with pytest.raises(StoreUnavailableError):
            await inner.retrieve(of())
        back = threading.Timer(0.5, servers.start)
        back.start()
        try:
            await manager.store(of("after"))
        finally:
            back.join()
        assert [memory.working_memory for memory in await manager.retrieve(of())] == ["after"]


async def test_the_twin_is_of_one_colour() -> None:
    with pytest.raises(InvalidInputError, match="manager"):
        AsyncRetrying(InMemoryManager())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="manager"):
        Retrying(AsyncInMemoryManager())  # type: ignore[arg-type]
