"""Work that nobody waits for: folds that are due but not urgent."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from contract_engine.memory.errors import MemoryServiceError

logger = logging.getLogger(__name__)

WORKERS = 2
"""Threads for background folds. A fold is mostly waiting for two servers; more threads would only queue elsewhere."""


class Background:
    """A few threads, started when there is something to do. What is running when the program ends is finished."""

    def __init__(self) -> None:
        self._forget()
        _backgrounds.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._running: set[Future[None]] = set()

    def start(self, work: Callable[[], None], name: str) -> None:
        """Run ``work`` soon; its failure is logged and ends there."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="contract-memory")
            try:
                future = self._executor.submit(work)
            except RuntimeError:  # the interpreter is ending; the next process finds it due again
                logger.info("%s is left for later: the program is ending", name)
                return
            self._running.add(future)
        future.add_done_callback(lambda done: self._finish(done, name))

    def _finish(self, future: Future[None], name: str) -> None:
        self._running.discard(future)
        _log_failure(future.exception(), name)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is running; False if the time was up before."""
        with self._lock:
            running = set(self._running)
        return not wait(running, timeout).not_done

    def close(self) -> None:
        """Finish what is running and end the threads; a later start begins anew."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)


class AsyncBackground:
    """Tasks of the running loop, kept alive until they are done."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run ``work`` soon; its failure is logged and ends there."""
        task = asyncio.get_running_loop().create_task(work(), name=name)
        self._running.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            _log_failure(task.exception(), task.get_name())

    async def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is running; False if the time was up before."""
        running = set(self._running)
        return not running or not (await asyncio.wait(running, timeout=timeout))[1]


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
