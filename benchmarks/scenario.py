"""What is measured on: servers, managers, messages nobody has seen, and the timers of a line of the table."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import redis

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import AsyncMemoryManager, MemoryConfig, MemoryManager, SessionLimits

Timer = Callable[[], float]
"""Runs the thing once or many times and answers the seconds of one."""

CALLS = 40
"""Calls per round."""

# Far above what is measured: no fold gets into the figures, each of which is about one call.
WIDE = SessionLimits(summary_trigger_tokens=1_000_000, max_buffer_tokens=2_000_000, max_buffer_messages=100_000)

TEXT = (
    "the flight from Paris leaves at nine and my seat should be near a window please check whether the hotel in Rome "
    "still has two rooms for the third of May because our friends arrive late and need a taxi to the old town"
)


def message(number: int) -> dict[str, Any]:
    """Return a message of about 40 tokens whose text no other number has."""
    words = random.Random(number).choices(TEXT.split(), k=34)
    return {"role": "user" if number % 2 else "assistant", "content": f"{number} {' '.join(words)}"}


class Bench:
    """The servers under measurement and the managers on them."""

    def __init__(self, servers: EmbeddedServers, history: int) -> None:
        self.history = history
        self.redis_url, self.database_url = servers.redis_url, servers.database_url
        self.redis = redis.Redis.from_url(self.redis_url)
        # Not by settings, to which DATABASE_URL of the environment would be added.
        no_database = MemoryConfig(redis_url=self.redis_url, limits=WIDE)
        self.ephemeral = MemoryManager(config=no_database)
        self.durable = MemoryManager(redis_url=self.redis_url, database_url=self.database_url, limits=WIDE)
        self.loop = asyncio.new_event_loop()
        self.async_ephemeral = AsyncMemoryManager(config=no_database)
        self.async_durable = AsyncMemoryManager(redis_url=self.redis_url, database_url=self.database_url, limits=WIDE)
        self._numbers = itertools.count()
        self.ephemeral.token_counter.warm()
        self.durable.token_counter.warm()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self.async_ephemeral.aclose())
        self.loop.run_until_complete(self.async_durable.aclose())
        self.loop.close()
        self.ephemeral.close()
        self.durable.close()
        self.redis.close()

    def fresh(self, count: int) -> list[dict[str, Any]]:
        """Return messages never seen before, so that no token count is remembered."""
        return [message(next(self._numbers)) for _ in range(count)]

    def session(self, manager: MemoryManager, messages: int = 30) -> str:
        """Return a new session that holds this many messages."""
        name = f"bench-{next(self._numbers)}"
        manager.add_messages(name, self.fresh(messages))
        return name

    def ping(self) -> float:
        """Time a PING through redis-py: the unit of the table."""
        return per_call([self.redis.ping] * CALLS)


def per_call(calls: list[Callable[[], object]]) -> float:
    """Run the calls one after the other and return the seconds of one."""
    started = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - started) / len(calls)


def usual_call(calls: list[Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> float:
    """Run the calls one after the other and return the seconds that half of them stay below."""
    taken = []
    for call in calls:
        started = clock()
        call()
        taken.append(clock() - started)
    return statistics.median(taken)


def usual_work(calls: list[Callable[[], object]]) -> float:
    """Run the calls one after the other and return how long this thread works for half of them, its waits left out."""
    return usual_call(calls, time.thread_time)


def repeated(call: Callable[[], object]) -> float:
    """Run a call that waits for nothing very often, and return how long this thread worked for one."""
    started = time.thread_time()
    for _ in itertools.repeat(None, 10_000):
        call()
    return (time.thread_time() - started) / 10_000


def fixed_loop() -> float:
    """Time a loop of 10,000 multiplications: the unit of what runs in this process alone."""
    return per_call([lambda: sum(number * number for number in range(10_000))] * CALLS)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the table."""

    name: str
    reference: str
    reach: float | None
    prepare: Callable[[Bench], AbstractContextManager[tuple[Timer, Timer]]]
    rounds: int | None = None
    most_added: float | None = None
    """Microseconds above the reference, where that is the measure."""
    rounds_of_each: int = 1
    """So many rounds for each one asked for: where a round is one call, a machine that slows down does so to call and
    reference alike.
    """
