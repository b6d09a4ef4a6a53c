"""Work that nobody waits for: folds that are due but not urgent, and what a language model makes of them.

A fold takes milliseconds and a model seconds, so that the two never wait in one queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from contract_engine.memory.errors import MemoryServiceError

logger = logging.getLogger(__name__)

WORKERS = 2
"""Threads for background folds. A fold is mostly waiting for two servers; more threads would only queue elsewhere."""

SLOW_WORKERS = 4
"""How many things wait for a language model at once."""

GENERATIONS = 2
"""A fold starts what indexes and refines it, and they start nothing."""


class Background:
    """A few threads, started when there is something to do. What is running when the program ends is finished.

    ``is_closing``: no model is to be asked any more; what is refined now is refined after the next fold.
    """

    def __init__(self) -> None:
        self._forget()
        _backgrounds.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executors: dict[bool, ThreadPoolExecutor] = {}
        self._running: set[Future[None]] = set()
        self.is_closing = False

    def start(self, work: Callable[[], None], name: str, *, is_slow: bool = False) -> None:
        """Run ``work`` soon; its failure is logged and ends there."""
        with self._lock:
            if is_slow not in self._executors:
                self._executors[is_slow] = ThreadPoolExecutor(
                    SLOW_WORKERS if is_slow else WORKERS, thread_name_prefix="contract-memory"
                )
            try:
                future = self._executors[is_slow].submit(work)
            except RuntimeError:  # the interpreter is ending; the next process finds it due again
                logger.info("%s is left for later: the program is ending", name)
                return
            self._running.add(future)
        future.add_done_callback(lambda done: self._finish(done, name))

    def _finish(self, future: Future[None], name: str) -> None:
        self._running.discard(future)
        _log_failure(future.exception(), name)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is running that was running, or was started by that; False if the time was up before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in range(GENERATIONS):
            with self._lock:
                running = set(self._running)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if wait(running, left).not_done:
                return False
        return True

    def close(self) -> None:
        """Finish what is running and end the threads; a later start begins anew."""
        self.is_closing = True
        try:
            for is_slow in (False, False, True):  # a fold that ends may have something indexed, and refined
                with self._lock:
                    executor = self._executors.pop(is_slow, None)
                if executor is not None:
                    executor.shutdown(wait=True)
        finally:
            self.is_closing = False


class AsyncBackground:
    """Tasks of the running loop, kept alive until they are done. ``is_closing``: see :class:`Background`."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._slow = asyncio.Semaphore(SLOW_WORKERS)
        self.is_closing = False

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str, *, is_slow: bool = False) -> None:
        """Run ``work`` soon; its failure is logged and ends there."""
        task = asyncio.get_running_loop().create_task(self._in_turn(work) if is_slow else work(), name=name)
        self._running.add(task)
        task.add_done_callback(self._finish)

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._slow:
            await work()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            _log_failure(task.exception(), task.get_name())

    async def join(self, timeout: float | None = None) -> bool:
        """See :meth:`Background.join`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in range(GENERATIONS):
            running = set(self._running)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if running and (await asyncio.wait(running, timeout=left))[1]:
                return False
        return True

    async def close(self) -> None:
        """Finish what is running."""
        self.is_closing = True
        try:
            await self.join()
        finally:
            self.is_closing = False


def _log_failure(exc: BaseException | None, name: str) -> None:
    if isinstance(exc, MemoryServiceError):
        logger.warning("%s did not finish: %s", name, exc)
    elif exc is not None:
        logger.error("%s failed", name, exc_info=exc)


_backgrounds: weakref.WeakSet[Background] = weakref.WeakSet()


def _after_fork() -> None:
    # Threads do not survive a fork: what they were doing goes on in the parent.
    for background in list(_backgrounds):
        background._forget()


os.register_at_fork(after_in_child=_after_fork)
