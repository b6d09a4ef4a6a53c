"""Many at once at one manager of working memory: exact counts, over all managers and stacks of wrappers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from server_faults import waited_for
from working_memory_contract import (
    COMBINATIONS,
    MEMORY,
    REDIS,
    STACKS,
    SYNC,
    MemoryBackend,
    ask,
    say,
    texts_of,
)

from contract_engine.memory import MemoryServiceError
from contract_engine.working_memory import IMemoryInput, InMemoryManager, RichMemory, WorkingMemoryManager


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def backend(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str, tmp_path: Path
) -> Iterator[MemoryBackend]:
    """Each manager in turn."""
    kind, colour, stack = request.param
    with closing(MemoryBackend(kind, colour, STACKS[stack], tenant, redis_url, database_url, tmp_path)) as found:
        yield found


@pytest.fixture
def manager(backend: MemoryBackend) -> WorkingMemoryManager:
    return backend.open()


def test_eight_threads_or_64_tasks_lose_no_update(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    """Each has a memory of its own in the same record and counts in it: a lost update takes others' counts back."""
    # A task that comes late looks again and again: many rounds of 64 take minutes where a look goes through wrappers.
    is_quick = backend.kind in (MEMORY, REDIS) and backend.stack is STACKS["bare"]
    workers, rounds = (8, 20) if backend.colour == SYNC else (64, 10 if is_quick else 1)
    manager.store(say("c1", *["0"] * workers))

    def request(worker: int, number: int) -> IMemoryInput:
        return say("c1", str(number), memory_id=str(worker + 1))

    if backend.colour == SYNC:
        failures: list[BaseException] = []

        def work(worker: int) -> None:
            try:
                for number in range(1, rounds + 1):
                    manager.update(request(worker, number))
            except MemoryServiceError as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    else:
        target: Any = manager.target  # type: ignore[attr-defined]  # what a BlockingView shows

        async def count(worker: int) -> None:
            for number in range(1, rounds + 1):
                await target.update(request(worker, number))

        backend.gather([lambda worker=worker: count(worker) for worker in range(workers)])  # type: ignore[misc]
    assert texts_of(manager.retrieve(ask("c1", limit=None))) == [str(rounds)] * workers


def test_rich_memories_of_eight_threads_or_64_tasks_are_all_there(
    backend: MemoryBackend, manager: WorkingMemoryManager
) -> None:
    count = 64

    def memory(number: int) -> RichMemory:
        return RichMemory(f"fact {number}", number % 10 + 1)

    if backend.colour == SYNC:
        waiting = iter(range(count))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                manager.store_rich("c1", memory(number))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        target: Any = manager.target  # type: ignore[attr-defined]
        backend.gather([lambda number=number: target.store_rich("c1", memory(number)) for number in range(count)])  # type: ignore[misc]
    found = manager.retrieve(ask("c1", limit=None))
    assert sorted(texts_of(found)) == sorted(f"fact {number}" for number in range(count))
    assert len({one.memory_id for one in found}) == count


def test_a_child_forked_in_the_middle_of_a_write_goes_on() -> None:
    """Another thread is at the entries: in the child it would hold their lock for ever."""
    is_inside, goes_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            is_inside.set()
            goes_on.wait(30)
        return time.monotonic()

    manager = InMemoryManager(clock=clock)
    manager.store(say("c1", "before"))
    thread = threading.Thread(target=manager.store, args=(say("c2", "meanwhile"),))
    thread.start()
    assert is_inside.wait(10)
    threading.Timer(0.3, goes_on.set).start()
    child = os.fork()
    if child == 0:
        found = [texts_of(manager.retrieve(ask(name))) for name in ("c1", "c2")]
        manager.store(say("c3", "in the child"))
        os._exit(found != [["before"], ["meanwhile"]])
    thread.join()
    ended: list[int] = []

    def is_over() -> bool:
        ended[:] = os.waitpid(child, os.WNOHANG)
        return ended[0] == child

    try:
        assert waited_for(is_over), "the child hangs"
    finally:
        if ended[0] != child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert ended[1] == 0
    assert texts_of(manager.retrieve(ask("c2"))) == ["meanwhile"]
    assert manager.retrieve(ask("c3")) == []
