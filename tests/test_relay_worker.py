"""Who relays beside the program: closing ends what is under way, also where a message wakes another at that moment."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from server_faults import waited_for

from contract_engine.memory import DatabaseUnavailableError
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


class Failing:
    """Fails three times, works twice, fails three times more, and then works."""

    def __init__(self) -> None:
        self.calls = 0

    def round(self) -> bool:
        self.calls += 1
        if self.calls <= 3 or 5 < self.calls <= 8:
            raise DatabaseUnavailableError("refused")
        return False

    async def round_async(self) -> bool:
        return self.round()

    def check(self, log: pytest.LogCaptureFixture) -> None:
        told = [one.getMessage() for one in log.records if one.levelno >= logging.INFO and "relay" in one.name]
        assert len(told) == 4, "each change once"
        assert ["refused" in one for one in told] == [True, False, True, False]
        assert {one.levelno for one in log.records if "relay" in one.name and one.levelno >= logging.INFO} == {
            logging.WARNING
        }


def test_what_keeps_it_from_its_work_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "contract_engine")
    failing, is_done = Failing(), threading.Event()

    def work() -> bool:
        if failing.calls >= 10:
            is_done.set()
        return failing.round()

    worker = RelayWorker(work, poll_seconds=0.01)
    worker.wake()
    assert is_done.wait(PATIENCE)
    worker.close()
    failing.check(caplog)


async def test_so_does_a_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "contract_engine")
    failing = Failing()
    worker = AsyncRelayWorker(failing.round_async, poll_seconds=0.01)
    worker.wake()
    async with asyncio.timeout(PATIENCE):
        while failing.calls < 10:
            await asyncio.sleep(0.01)
    await worker.close()
    failing.check(caplog)
