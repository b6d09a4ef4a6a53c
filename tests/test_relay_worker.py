"""Who relays beside the program: closing ends what is under way, also where a message wakes another at that moment."""

from __future__ import annotations

import asyncio
import threading

from server_faults import waited_for

from contract_engine.memory._runtime import AsyncRelayWorker, RelayWorker

PATIENCE = 30.0


def test_close_ends_its_thread_although_a_message_starts_another() -> None:
    is_working, may_end = threading.Event(), threading.Event()

    def work() -> bool:
        is_working.set()
        assert may_end.wait(PATIENCE)
        return False

    before = set(threading.enumerate())

    def others() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "contract-memory-relay"} - before

    worker = RelayWorker(work, poll_seconds=0.01)
    worker.wake()
    assert is_working.wait(PATIENCE)
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert waited_for(lambda: worker._thread is None)  # it waits for the round under way
    worker.wake()
    assert len(others()) == 2
    may_end.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert len(others()) == 1
    worker.close()
    assert not others()


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

    def others() -> int:
        return sum(task.get_name() == "contract-memory-relay" for task in asyncio.all_tasks())

    worker.wake()
    assert others() == 2
    may_end.set()
    async with asyncio.timeout(PATIENCE):
        await closing
    assert others() == 1
    await worker.close()
    assert others() == 0
