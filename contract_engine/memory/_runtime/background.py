"""Work that nobody waits for: folds that are due but not urgent."""

from __future__ import annotations

import asyncio
import logging
import threading
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
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._running: set[Future[None]] = set()

    def start(self, work: Callable[[], None], name: str) -> None:
        """Run ``work`` soon; its failure is logged and ends there."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="contract-memory")
            future = self._executor.submit(_quietly, work, name)
            self._running.add(future)
        future.add_done_callback(self._running.discard)

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
        task = asyncio.get_running_loop().create_task(_quietly_async(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is running; False if the time was up before."""
        running = set(self._running)
        return not running or not (await asyncio.wait(running, timeout=timeout))[1]


def _quietly(work: Callable[[], None], name: str) -> None:
    try:
        work()
    except MemoryServiceError as exc:
        logger.warning("%s did not finish: %s", name, exc)
    except Exception:  # Nobody waits for this thread: a fault in it must be seen in the log, not swallowed by a future.
        logger.exception("%s failed", name)


async def _quietly_async(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    try:
        await work()
    except MemoryServiceError as exc:
        logger.warning("%s did not finish: %s", name, exc)
    except Exception:  # Nobody awaits this task: a fault in it must be seen in the log.
        logger.exception("%s failed", name)
