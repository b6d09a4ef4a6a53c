"""Eviction while sessions are written and read: each read is whole, from wherever, and has what was acknowledged."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
from crash_attempts import bare
from many_writers import Background
from memory_contract import ASYNC, DURABLE, SYNC, Backend, assert_context, run_threads, talk
from server_faults import Outage
from servers import PrivateServers

from contract_engine.memory import AsyncMemoryManager, CircuitState, MemoryManager

SESSIONS = 2000
BATCHES = (4, 3)
"""Every session is written from the first to the last, and then again: by then most of them have been evicted."""
MESSAGES = sum(BATCHES)
WRITERS = READERS = 3
PAUSE = 0.005
"""Between two reads: the writers are to get on."""
BYTES = 700
"""Room for each session; what is kept of one takes several times as much."""
SETTINGS: dict[str, Any] = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 30.0}


class Kept:
    """How much of each session was acknowledged, and reads that are held against it."""

    def __init__(self) -> None:
        self.acknowledged = [0] * SESSIONS
        self.sources: Counter[tuple[str, str]] = Counter()
        """By when they were read and who told them."""
        self._written: list[int] = []
        self._dice = random.Random(7)
        self._lock = threading.Lock()

    def batches(self, writer: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield what a writer has to say, session by session; going on means that it was acknowledged."""
        for count in BATCHES:
            for number in range(writer, SESSIONS, WRITERS):
                said = self.acknowledged[number]
                yield number, talk(count, start=number + said)
                self.acknowledged[number] += count
                with self._lock:
                    self._written.append(number)

    def one_of(self) -> int | None:
        """Return a session of which something was acknowledged: a late one, or any."""
        with self._lock:
            if not self._written:
                return None
            return self._dice.choice(self._written[-20:] if self._dice.random() < 0.5 else self._written)

    def check(self, number: int, before: int, context: Mapping[str, Any], *, when: str) -> None:
        assert context["last_seq"] >= before, "acknowledged before the read began"
        assert context["last_seq"] in (*BATCHES[:1], MESSAGES), "half of a batch"
        assert_context(context, talk(context["last_seq"], start=number))
        with self._lock:
            self.sources[when, "degraded" if context["degraded"] else context["source"]] += 1


def in_threads(manager: MemoryManager, kept: Kept) -> None:
    def write(writer: int) -> None:
        for number, messages in kept.batches(writer):
            manager.add_messages(f"s{number}", messages)

    def read(_: int) -> None:
        time.sleep(PAUSE)
        if (number := kept.one_of()) is not None:
            before = kept.acknowledged[number]
            kept.check(number, before, manager.get_context(f"s{number}"), when="beside")

    with Background(READERS, read):
        run_threads(WRITERS, write)
    manager.wait_for_folds()


async def in_tasks(manager: AsyncMemoryManager, kept: Kept) -> None:
    writing = WRITERS

    async def write(writer: int) -> None:
        nonlocal writing
        for number, messages in kept.batches(writer):
            await manager.add_messages(f"s{number}", messages)
        writing -= 1

    async def read() -> None:
        while writing:
            await asyncio.sleep(PAUSE)
            if (number := kept.one_of()) is not None:
                before = kept.acknowledged[number]
                kept.check(number, before, await manager.get_context(f"s{number}"), when="beside")

    async with asyncio.TaskGroup() as tasks:
        for writer in range(WRITERS):
            tasks.create_task(write(writer))
        for _ in range(READERS):
            tasks.create_task(read())
    await manager.wait_for_folds()


@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_eviction_never_shows_half_a_session(
    private_servers: PrivateServers, database_url: str, tenant: str, colour: str
) -> None:
    """Thousands of keys in a Redis that holds a part of them; reads beside the writes, and of everything in the end."""
    servers = private_servers(postgres=False)
    kept = Kept()
    with closing(
        Outage(servers, Backend(colour, DURABLE, servers.redis_url, database_url, tenant), SETTINGS)
    ) as outage:
        manager = outage.open(max_buffer_messages=6)
        with outage.redis() as client:
            used = outage.stats("memory")["used_memory"]
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", used + BYTES * SESSIONS)
        if colour == SYNC:
            in_threads(manager, kept)
        else:
            loop, target = outage.backend.loop, bare(manager)
            assert loop is not None
            loop.run_until_complete(in_tasks(target, kept))
        assert kept.acknowledged == [MESSAGES] * SESSIONS
        assert outage.stats()["evicted_keys"] > SESSIONS // 4
        for number in range(SESSIONS):
            kept.check(number, MESSAGES, manager.get_context(f"s{number}"), when="first")
            if number % 10 == 0:
                kept.check(number, MESSAGES, manager.get_context(f"s{number}"), when="again")
        print(f"{colour}: {dict(kept.sources)}, {outage.stats()['evicted_keys']} keys evicted")
        # Beside the writers a read may be: buffers of connections take room, too, and Redis can find none for it.
        assert kept.sources["first", "degraded"] == kept.sources["again", "degraded"] == 0
        assert kept.sources["beside", "redis"] > 50
        assert kept.sources["beside", "postgres"] > 50, "nothing was evicted while it was read"
        assert kept.sources["first", "postgres"] > SESSIONS // 4, "what was evicted was rebuilt"
        assert kept.sources["again", "redis"] > SESSIONS // 20, "what was rebuilt is used"
        assert manager.circuit_breaker.get_state() == CircuitState.CLOSED
