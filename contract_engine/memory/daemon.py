"""Work in a thread of its own that the end of the program does not wait for, and whose outcome is carried back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def unstopped(work: Callable[[], T]) -> T:
    """Run somebody else's function; its StopIteration is a RuntimeError, as a coroutine's is.

    To a flow it would be the end, and asyncio never answers whoever waits for a thread that raised it.
    """
    try:
        return work()
    except StopIteration as exc:
        raise RuntimeError("a function that was called raised StopIteration") from exc


def start_daemon(work: Callable[[], T], name: str) -> Future[T]:
    """Run ``work`` in a daemon thread; the future has what it returns or raises."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on nobody can cancel it, so the thread may always answer

    def body() -> None:
        with _Carrier(future):
            future.set_result(unstopped(work))

    # In the context of the caller, as ``asyncio.to_thread`` does: traces go on there.
    threading.Thread(target=copy_context().run, args=(body,), name=name, daemon=True).start()
    return future


async def in_daemon(work: Callable[[], T], name: str) -> T:
    """Run ``work`` beside the running loop; unlike ``asyncio.to_thread`` also while the program is ending."""
    return await asyncio.wrap_future(start_daemon(work, name))


def run_in_own_loop(make: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
    """Run a coroutine on a loop of its own and wait for it, whether or not the calling thread has a running loop.

    The answer comes back as soon as the coroutine has it: closing the loop, which waits for name lookups that hang, is
    left to the thread.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    async def deliver() -> None:
        with _Carrier(future):
            future.set_result(await make())

    body = copy_context().run
    threading.Thread(target=lambda: body(asyncio.run, deliver()), name=name, daemon=True).start()
    return future.result()


class LoopThread:
    """An event loop in a daemon thread, begun by the first coroutine: what they hold open stays there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await what ``make`` returns, which is called there too; it is cancelled where the caller is interrupted."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        async def deliver() -> None:
            with _Carrier(future):
                future.set_result(await make())

        task = asyncio.run_coroutine_threadsafe(deliver(), self._started())
        try:
            return future.result()
        finally:
            task.cancel()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True).start()
            return self._loop


class _Carrier(Generic[T]):
    """Takes whatever a block raises to the thread that waits for it."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _type: type[BaseException] | None, exc: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if exc is not None:
            self._future.set_exception(exc)
        return True
