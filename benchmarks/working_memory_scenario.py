"""What working memory costs: in this process as it grows, and in Redis against the bare command."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scenario import CALLS, TEXT, Bench, Scenario, Timer, per_call

from contract_engine.working_memory import (
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RedisWorkingMemoryManager,
    WorkingMemoryManager,
)

FEW, MANY = 1000, 1_000_000
BATCH = 1000
ROUND = 2000
TTL_SECONDS = 43_200

Operation = Callable[[WorkingMemoryManager, IMemoryInput], object]


def request(number: int) -> IMemoryInput:
    """Return what is stored for a conversation: 40 tokens of text."""
    return IMemoryInput(f"bench-{number}", ConversationMemoryType.WORKING_MEMORY, [IWorkingMemory(f"{number} {TEXT}")])


def store(manager: WorkingMemoryManager, one: IMemoryInput) -> object:
    """Store."""
    return manager.store(one)


def retrieve(manager: WorkingMemoryManager, one: IMemoryInput) -> object:
    """Retrieve."""
    return manager.retrieve(one)


_filled: dict[int, InMemoryManager] = {}


def _full(entries: int) -> InMemoryManager:
    """Return a manager that holds so many records; the same one each time, since a million take half a minute."""
    if entries not in _filled:
        manager = _filled[entries] = InMemoryManager(ttl=TTL_SECONDS, max_entries=2 * MANY)
        for start in range(0, entries, BATCH):
            manager.store_many([request(number) for number in range(start, start + BATCH)])
    return _filled[entries]


def growth(operation: Operation) -> Callable[[Bench], Any]:
    """Make the scenario of an operation on a random record among a million, against one among a thousand."""

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        def timer(entries: int) -> Timer:
            manager, rng = _full(entries), random.Random(entries)

            def call() -> float:
                wanted = [request(rng.randrange(entries)) for _ in range(ROUND)]
                return per_call([lambda one=one: operation(manager, one) for one in wanted])  # type: ignore[misc]

            return call

        yield timer(MANY), timer(FEW)

    return prepare


class _Clock:
    """Seconds that pass with each store."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def renewal(*, expires: bool) -> Callable[[Bench], Any]:
    """Make the scenario of storing what was not there, where each time something else expires, or has to make way."""

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        def timer(entries: int) -> Timer:
            clock, step = _Clock(), 0.05
            ttl, most = (entries * step, 2 * MANY) if expires else (None, entries)
            manager = InMemoryManager(ttl, max_entries=most, clock=clock)
            numbers = itertools.count()
            for number in itertools.islice(numbers, entries):
                clock.now += step
                # Without what a manager does, which is not measured here, a million take seconds.
                manager.store_of_records.put([(f"memory:WORKING_MEMORY:bench-{number}", TEXT.encode(), ttl)])

            def store_new(one: IMemoryInput) -> None:
                clock.now += step
                manager.store(one)

            def call() -> float:
                wanted = [request(number) for number in itertools.islice(numbers, ROUND)]
                taken = per_call([lambda one=one: store_new(one) for one in wanted])  # type: ignore[misc]
                held = len(manager.store_of_records._entries)
                assert entries <= held <= 1.05 * entries + 100, f"{held:,} held: nothing expires or makes way"
                return taken

            return call

        yield timer(MANY), timer(FEW)

    return prepare


@contextmanager
def redis_store(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """A store against SETEX of the same bytes through plain redis-py."""
    with RedisWorkingMemoryManager(bench.redis_url, TTL_SECONDS) as manager:
        wanted = [request(number) for number in range(CALLS)]
        names = manager.store_many(wanted)
        raw = [("SETEX", name, TTL_SECONDS, bench.redis.get(name)) for name in names]
        setex: Callable[..., object] = bench.redis.execute_command
        yield (
            lambda: per_call([lambda one=one: manager.store(one) for one in wanted]),  # type: ignore[misc]
            lambda: per_call([lambda words=words: setex(*words) for words in raw]),  # type: ignore[misc]
        )


@contextmanager
def redis_retrieve(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """A retrieval against GET of the same bytes through plain redis-py."""
    with RedisWorkingMemoryManager(bench.redis_url, TTL_SECONDS) as manager:
        wanted = [request(number) for number in range(CALLS)]
        names = manager.store_many(wanted)
        get = bench.redis.get
        yield (
            lambda: per_call([lambda one=one: manager.retrieve(one) for one in wanted]),  # type: ignore[misc]
            lambda: per_call([lambda name=name: get(name) for name in names]),  # type: ignore[misc]
        )


@contextmanager
def redis_batch(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """A batch of 1,000 stores against the same stores one by one."""
    with RedisWorkingMemoryManager(bench.redis_url, TTL_SECONDS) as manager:
        wanted = [request(number) for number in range(BATCH)]
        yield (
            lambda: per_call([lambda: manager.store_many(wanted)]),
            lambda: per_call([lambda: [manager.store(one) for one in wanted]]),
        )


WORKING_MEMORY = (
    Scenario("working memory, in memory: store among 1,000,000", "among 1,000", 1.3, growth(store)),
    Scenario("working memory, in memory: retrieve among 1,000,000", "among 1,000", 1.3, growth(retrieve)),
    Scenario("working memory, in memory: store, one of 1,000,000 expires", "one of 1,000", 1.3, renewal(expires=True)),
    Scenario("working memory, in memory: store, one of 1,000,000 evicted", "one of 1,000", 1.3, renewal(expires=False)),
    Scenario("working memory, Redis: store", "bare SETEX", 1.5, redis_store),
    Scenario("working memory, Redis: retrieve", "bare GET", 1.5, redis_retrieve),
    Scenario("working memory, Redis: 1,000 stores in a batch", "1,000 single stores", 0.05, redis_batch),
)
