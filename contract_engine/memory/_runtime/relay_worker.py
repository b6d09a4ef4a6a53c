"""Who relays beside the program: one thread or task, started by the first message there is to relay."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from contract_engine.memory.errors import MemoryServiceError

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.02
"""What comes within this time is relayed together: a round costs the same for one message and for many."""


class _Standing:
    """Whether there was anything to keep a relay from its work; each change is told once."""

    def __init__(self) -> None:
        self._was_in_trouble = False

    def note_trouble(self, exc: MemoryServiceError) -> None:
        logger.log(logging.DEBUG if self._was_in_trouble else logging.WARNING, "nothing is relayed now: %s", exc)
        self._was_in_trouble = True

    def note_success(self) -> None:
        if self._was_in_trouble:
            logger.warning("relaying again")
        self._was_in_trouble = False


class RelayWorker:
    """A daemon thread. What it has not relayed when the program ends is relayed by the next one.

    ``work`` does one round and answers whether there may be more to do at once.
    """

    def __init__(self, work: Callable[[], bool], *, poll_seconds: float) -> None:
        self._work = work
        self._poll_seconds = poll_seconds
        self._forget()
        _workers.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._is_awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def wake(self) -> None:
        """Take note that there is something to relay."""
        if self._thread is None or not self._thread.is_alive():
            self._start()
        if not self._is_awake.is_set():
            self._is_awake.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # Its own, so that a start beside a close does not take back what the other thread is told.
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="contract-memory-relay", daemon=True
                )
                self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        standing = _Standing()
        while not stop.is_set():
            if self._is_awake.wait(self._poll_seconds):
                self._is_awake.clear()
                time.sleep(LINGER_SECONDS)
            try:
                while self._work() and not stop.is_set():
                    pass
                standing.note_success()
            except MemoryServiceError as exc:
                standing.note_trouble(exc)

    def close(self) -> None:
        """Finish the round under way and end the thread; a later message starts it again."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread.is_alive():
            self._is_awake.set()
            thread.join()


class AsyncRelayWorker:
    """:class:`RelayWorker` as a task of the running loop."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, bool]], *, poll_seconds: float) -> None:
        self._work = work
        self._poll_seconds = poll_seconds
        self._is_awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def wake(self) -> None:
        """See :meth:`RelayWorker.wake`."""
        if self._task is None or self._task.done():
            self._is_awake, self._stop = asyncio.Event(), asyncio.Event()
            work = self._run(self._is_awake, self._stop)
            self._task = asyncio.get_running_loop().create_task(work, name="contract-memory-relay")
        self._is_awake.set()

    async def _run(self, is_awake: asyncio.Event, stop: asyncio.Event) -> None:
        standing = _Standing()
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await is_awake.wait()
            if is_awake.is_set():
                is_awake.clear()
                await asyncio.sleep(LINGER_SECONDS)
            try:
                while await self._work() and not stop.is_set():
                    pass
                standing.note_success()
            except MemoryServiceError as exc:
                standing.note_trouble(exc)

    async def close(self) -> None:
        """See :meth:`RelayWorker.close`."""
        task, self._task = self._task, None
        self._stop.set()
        self._is_awake.set()
        if task is not None and not task.done():
            await task


_workers: weakref.WeakSet[RelayWorker] = weakref.WeakSet()


def _after_fork() -> None:
    # Threads do not survive a fork: what this one was relaying is relayed by the parent.
    for worker in list(_workers):
        worker._forget()


os.register_at_fork(after_in_child=_after_fork)
