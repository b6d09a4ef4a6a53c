"""Who relays beside the program: closing ends what is under way, also where a message wakes another at that moment."""

from __future__ import annotations

import asyncio
import threading

from contract_engine.memory._runtime import AsyncRelayWorker, RelayWorker

PATIENCE = 30.0


def test_close_ends_its_thread_although_a_message_starts_another() -> None:
    is_working, may_end = threading.Event(), threading.Event()

    def work() -> bool:
        is_working.set()
        assert may_end.wait(PATIENCE)
        return False

    worker = RelayWorker(work, poll_seconds=0.01)
    worker.wake()
    assert is_working.wait(PATIENCE)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while worker._thread is not None:  # until the close waits for the round under way
        pass
    worker.wake()
    other = worker._thread
    assert other is not None
    may_end.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert other.is_alive()
    worker.close()
    assert not other.is_alive()


async def test_close_ends_its_task_although_a_message_starts_another() -> None:
    is_working, may_end = asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        is_working.set()
        await may_end.wait()
        return False

    worker = AsyncRelayWorker(work, poll_seconds=0.01)
    worker.wake()
    await is_working.wait()
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    assert worker._task is None
    worker.wake()
    other = worker._task
    may_end.set()
    async with asyncio.timeout(PATIENCE):
        await closing
    await worker.close()
    assert other is not None
    assert other.done()
