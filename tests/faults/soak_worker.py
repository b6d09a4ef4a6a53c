"""One process of the soak: threads and tasks that talk, each noting what it asked for and what it was told.

Started by ``soak`` with its orders on standard input, one line of JSON. Of the lines that follow, ``without`` and a
server takes that one from this process alone, and ``with`` gives it back; any other, or the end of input, ends it.
What it asks and is told goes into a journal, one write per line, so that a SIGKILL costs at most the call at hand.
Once a second it reports its counts and its figures on standard output.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
from soak_client import REFUSALS, Client, Figures, Journal, Status

from contract_engine.memory import AsyncMemoryManager, CircuitBreaker, InvalidInputError, MemoryConfig, MemoryManager
from contract_engine.memory.legacy_store import AsyncLegacySwisperStore, LegacySwisperStore
from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore, RelaySettings

RELAY = RelaySettings(lease_seconds=2.0, max_delay_seconds=2.0, park_after=1_000_000)
"""Nothing is parked: no message is refused here, and an outage may make a write fail at any time."""

WITHOUT, WITH = "without", "with"
"""To do without a server from now on, and with it again, while other processes have it."""


class Orders(msgspec.Struct):
    """What a worker is to do. ``name`` is one that no other worker of this run has or had."""

    name: str
    seed: int
    sessions: int
    threads: int
    tasks: int
    warm_seconds: float
    journal: str
    settings: dict[str, Any]


class Complaints(logging.Handler):
    """What the package logs as an error is one: outages are warnings."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.ERROR)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.write("violation", time.monotonic(), f"logged as an error: {self.format(record)}")


def blocking_client(client: Client, manager: MemoryManager, end: threading.Event) -> None:
    """Talk until the end, in a thread."""
    while not end.wait(client.rest()):
        talk = client.talk()
        try:
            call = next(talk)
            while True:
                started = time.monotonic()
                try:
                    answer = call(manager)
                except Exception as exc:  # noqa: BLE001  # noted, and judged in note_call
                    answer = exc
                client.note_call(started, answer)
                if isinstance(answer, Exception) and not isinstance(answer, (*REFUSALS, InvalidInputError)):
                    break
                call = talk.send(answer)
        except StopIteration:
            pass


async def asyncio_client(client: Client, manager: AsyncMemoryManager, end: asyncio.Event) -> None:
    """Talk until the end, in a task."""
    while not end.is_set():
        await asyncio.sleep(client.rest())
        talk = client.talk()
        try:
            call = next(talk)
            while True:
                started = time.monotonic()
                try:
                    answer = await call(manager)
                except Exception as exc:  # noqa: BLE001  # noted, and judged in note_call
                    answer = exc
                client.note_call(started, answer)
                if isinstance(answer, Exception) and not isinstance(answer, (*REFUSALS, InvalidInputError)):
                    break
                call = talk.send(answer)
        except StopIteration:
            pass


def figures(*, collect: bool) -> Figures:
    """Measure this process; ``collect`` before a comparison, so that only what is held counts, and no bounded cache.

    How full those of summarizers are by then is up to the machine: full they are some 200,000 blocks.
    """
    if collect:
        for one in gc.get_objects():
            if isinstance(one, functools._lru_cache_wrapper):
                one.cache_clear()
        gc.collect()
    process = psutil.Process()
    return Figures(
        rss=process.memory_info().rss,
        blocks=sys.getallocatedblocks(),
        sockets=len(process.net_connections("tcp")),
        files=process.num_fds(),
        threads=threading.active_count(),
        tasks=len(asyncio.all_tasks()),
    )


class Opened(NamedTuple):
    """What clients talk to: managers of both colours, each with an adapter over it."""

    blocking: MemoryManager
    blocking_adapter: EnhancedSessionStore
    manager: AsyncMemoryManager
    adapter: AsyncEnhancedSessionStore


@asynccontextmanager
async def opened(config: MemoryConfig) -> AsyncIterator[Opened]:
    """Open all of it."""
    limits: dict[str, Any] = {"summary_trigger_tokens": 250, "max_buffer_tokens": 400, "max_buffer_messages": 8}
    assert config.database_url is not None
    table: dict[str, Any] = {"database_url": config.database_url, "timeout_seconds": config.database_timeout_seconds}
    with (
        MemoryManager(config=config, **limits) as blocking,
        LegacySwisperStore(**table) as legacy,
        EnhancedSessionStore(blocking, legacy, relay=RELAY) as blocking_adapter,
    ):
        async with (
            AsyncMemoryManager(config=config, **limits) as manager,
            AsyncLegacySwisperStore(**table) as async_legacy,
            AsyncEnhancedSessionStore(manager, async_legacy, relay=RELAY) as adapter,
        ):
            yield Opened(blocking, blocking_adapter, manager, adapter)


def listen(to: Opened, end_of_threads: threading.Event, loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> None:
    """Do as the lines say that come."""
    breakers = breakers_of(to)
    while (words := sys.stdin.readline().split())[:1] in ([WITHOUT], [WITH]):
        for breaker in breakers[words[1]]:
            if words[0] == WITHOUT:
                breaker.force_open()
            else:
                breaker.reset()
    end_of_threads.set()
    loop.call_soon_threadsafe(end.set)


def breakers_of(to: Opened) -> dict[str, tuple[CircuitBreaker, CircuitBreaker]]:
    """Return what keeps each server from both managers."""
    return {
        "postgres": (to.blocking.database_breaker, to.manager.database_breaker),
        "redis": (to.blocking.circuit_breaker, to.manager.circuit_breaker),
    }


async def work(orders: Orders) -> None:
    """Run all clients until a line of standard input says so, or its end."""
    status, journal = Status(), Journal(orders.journal)
    logging.getLogger().addHandler(Complaints(journal))
    end, end_of_threads = asyncio.Event(), threading.Event()
    async with opened(MemoryConfig(**orders.settings)) as to:
        told = (to, end_of_threads, asyncio.get_running_loop(), end)
        threading.Thread(target=listen, args=told, name="orders", daemon=True).start()
        adapters = [to.blocking_adapter] * orders.threads + [to.adapter] * orders.tasks
        clients = []
        for number, adapter in enumerate(adapters):
            name = f"{orders.name}.{number}"
            dice = random.Random(f"{orders.seed} {name}")
            clients.append(Client(name, dice, orders.sessions, adapter, (journal, status)))
        threads = [
            threading.Thread(target=blocking_client, args=(client, to.blocking, end_of_threads))
            for client in clients[: orders.threads]
        ]
        for thread in threads:
            thread.start()
        tasks = [asyncio.create_task(asyncio_client(one, to.manager, end)) for one in clients[orders.threads :]]
        warm_at = time.monotonic() + orders.warm_seconds
        while not end.is_set():
            await asyncio.sleep(0.5)
            if status.warm is None and time.monotonic() >= warm_at:
                status.warm = figures(collect=True)
            status.now = figures(collect=False)
            status.rejected = sum(one.snapshot().rejected for both in breakers_of(to).values() for one in both)
            report(status)
        await asyncio.gather(*tasks)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await to.manager.wait_for_folds(30)
        await asyncio.to_thread(to.blocking.wait_for_folds, 30)
        status.final = figures(collect=True)
    await asyncio.sleep(0)  # what a loop has been told to close it closes in its next round
    status.left_open = [f"{one.status} to {one.raddr}" for one in psutil.Process().net_connections("tcp")]
    status.left_open += [f"thread {one.name}" for one in threading.enumerate() if one.name.startswith("contract-")]
    status.left_open += [f"task {one.get_name()}" for one in asyncio.all_tasks() if one is not asyncio.current_task()]
    report(status)


def report(status: Status) -> None:
    sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    sys.stdout.flush()


def command() -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, str(Path(__file__))]


if __name__ == "__main__":
    asyncio.run(work(msgspec.json.decode(sys.stdin.readline(), type=Orders)))
