"""TTLStrategy: each record lives as long as its own metadata say, whoever else writes at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from contract_engine.memory.errors import InvalidInputError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
)
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.ttl_strategy import AsyncTTLStrategy, TTLStrategy

WORKING = ConversationMemoryType.WORKING_MEMORY
STRATEGIES = {"guest": 60, "premium": 600, "staff": None}


def of(name: str, *texts: str, kind: Any = None, **fields: Any) -> IMemoryInput:
    metadata = {} if kind is None else {"user_type": kind}
    return IMemoryInput(name, WORKING, [IWorkingMemory(text) for text in texts] or None, metadata=metadata, **fields)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(manager: InMemoryManager) -> set[str]:
    return {name.rpartition(":")[2] for name in manager.storage}


def test_each_record_has_its_own_time_to_live() -> None:
    clock = Clock()
    inner = InMemoryManager(ttl=300, clock=clock)
    manager = TTLStrategy(inner, STRATEGIES)
    for kind in ("guest", "premium", "staff", "unknown", None, ["guest"], 7):
        manager.store(of(str(kind), "text", kind=kind))
    everybody = names(inner)
    assert len(everybody) == 7
    clock.now = 59
    assert names(inner) == everybody
    clock.now = 61
    assert names(inner) == everybody - {"guest"}
    clock.now = 301
    assert names(inner) == {"premium", "staff"}
    clock.now = 601
    assert names(inner) == {"staff"}
    clock.now = 1e9
    assert names(inner) == {"staff"}
    assert inner.ttl == 300


def test_a_default_of_ones_own_and_another_field() -> None:
    clock = Clock()
    inner = InMemoryManager(ttl=300, clock=clock)
    manager = TTLStrategy(inner, {"short": 10}, field="kind", default=20)
    manager.store(IMemoryInput("a", WORKING, [IWorkingMemory("x")], metadata={"kind": "short"}))
    manager.store(IMemoryInput("b", WORKING, [IWorkingMemory("x")], metadata={"user_type": "short"}))
    forever = TTLStrategy(inner, {}, default=None)
    forever.store(IMemoryInput("c", WORKING, [IWorkingMemory("x")]))
    clock.now = 15
    assert names(inner) == {"b", "c"}
    clock.now = 1e9
    assert names(inner) == {"c"}


def test_an_update_goes_by_the_metadata_of_the_record() -> None:
    clock = Clock()
    inner = InMemoryManager(ttl=300, clock=clock)
    manager = TTLStrategy(inner, STRATEGIES)
    manager.store(of("stays", "text", kind="premium"))
    manager.store(of("changes", "text", kind="premium"))
    clock.now = 500
    manager.update(of("stays", "again"))
    manager.update(of("changes", "again", kind="guest"))
    clock.now = 561
    assert names(inner) == {"stays"}
    clock.now = 1099
    assert names(inner) == {"stays"}
    clock.now = 1101
    assert names(inner) == set()


def test_of_two_strategies_the_outer_one_decides() -> None:
    clock = Clock()
    inner = InMemoryManager(ttl=300, clock=clock)
    manager = TTLStrategy(TTLStrategy(inner, {"guest": 10, "premium": 10}), {"guest": 100})
    manager.store(of("guest", "text", kind="guest"))
    manager.store(of("premium", "text", kind="premium"))
    clock.now = 50
    assert names(inner) == {"guest"}


def test_threads_do_not_mix_up_their_times(redis_url: str, tenant: str) -> None:
    with (
        RedisWorkingMemoryManager(redis_url, prefix=tenant, timeout_seconds=30) as inner,
        redis.Redis.from_url(redis_url) as raw,
    ):
        manager = TTLStrategy(inner, {"short": 1000, "long": 1_000_000, "ever": None}, default=50_000)
        kinds = ("short", "long", "ever", "other")

        def work(number: int) -> None:
            manager.store(of(f"c{number}", "text", kind=kinds[number % 4]))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(400)))
        for number in range(400):
            left = raw.ttl(f"{tenant}:WORKING_MEMORY:c{number}")
            assert isinstance(left, int)
            most = (1000, 1_000_000, -1, 50_000)[number % 4]
            assert left == -1 if most == -1 else most - 300 < left <= most
        assert manager.cleanup(f"{tenant}:*", everything=True) == 400


async def test_the_twin_does_the_same() -> None:
    clock = Clock()
    inner = AsyncInMemoryManager(ttl=300, clock=clock)
    manager = AsyncTTLStrategy(inner, STRATEGIES)
    await manager.store(of("guest", "text", kind="guest"))
    await manager.store(of("premium", "text", kind="premium"))
    clock.now = 61
    assert await manager.retrieve(of("guest")) == []
    assert len(await manager.retrieve(of("premium"))) == 1


def test_the_time_to_live_of_a_wrapper_is_that_of_the_manager_within() -> None:
    inner = InMemoryManager(ttl=300)
    manager = TTLStrategy(inner, STRATEGIES)
    assert manager.ttl == 300
    manager.ttl = 30
    assert inner.ttl == 30


@pytest.mark.parametrize("strategies", [{"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": "1"}, {1: 1}, [("a", 1)], None])
def test_strategies_are_checked(strategies: Any) -> None:
    with pytest.raises(InvalidInputError):
        TTLStrategy(InMemoryManager(), strategies)


@pytest.mark.parametrize("settings", [{"default": 0}, {"field": ""}, {"field": None}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        TTLStrategy(InMemoryManager(), STRATEGIES, **settings)
