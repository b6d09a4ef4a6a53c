"""Calls to the store that is being left: somebody else's object, which may raise anything."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from contract_engine.memory._effects import LegacyCall
from contract_engine.memory.circuit_guard import CallGuard
from contract_engine.memory.daemon import LoopThread, unstopped
from contract_engine.memory.errors import (
    CircuitOpenError,
    ConfigurationError,
    LegacyCircuitOpenError,
    LegacyUnavailableError,
)

T = TypeVar("T")


class CoroutineCancelledError(Exception):
    """Something that a coroutine waited for was cancelled: for whoever called it, it has failed like any other."""


class _Guarded:
    """One call within a ``with`` statement: the breaker lets it pass and is told of its outcome.

    Whatever the legacy store raises leaves it as :class:`LegacyUnavailableError`.
    """

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: CallGuard) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        try:
            self._permit = self._breaker.acquire()
        except CircuitOpenError as exc:
            raise LegacyCircuitOpenError(exc.retry_after) from None

    def __exit__(self, _type: object, exc: BaseException | None, _tb: object) -> None:
        if exc is None:
            self._breaker.success(self._permit)
            return
        self._breaker.failure(self._permit, exc)  # a cancelled call counts as nothing there
        if isinstance(exc, Exception) and not isinstance(exc, ConfigurationError):
            raise LegacyUnavailableError(type(exc).__name__, is_tried=True) from exc


def call_legacy(effect: LegacyCall) -> Any:
    """Call it in this thread; where it is a coroutine, on the one loop of all of them."""
    with _Guarded(effect.breaker):
        work = effect.work
        if _is_coroutine(work):
            return await_legacy(work)
        answer = work()
        return await_legacy(lambda: answer) if inspect.isawaitable(answer) else answer


def await_legacy(make: Callable[[], Awaitable[T]]) -> T:
    """Await something of a legacy store where its coroutines run, for a caller that cannot await."""
    try:
        return _loops[-1].run(make)
    except asyncio.CancelledError as exc:
        raise CoroutineCancelledError from exc


async def call_legacy_async(effect: LegacyCall) -> Any:
    """Await it where it is a coroutine; else run it beside the event loop."""
    with _Guarded(effect.breaker):
        work = effect.work
        answer = work() if _is_coroutine(work) else await asyncio.to_thread(unstopped, work)
        return await answer if inspect.isawaitable(answer) else answer


def _new_loop() -> None:
    """Have a process, one that was forked too, use a loop of its own. Closing its parent's would disturb that one."""
    _loops.append(LoopThread("contract-memory-legacy"))


_loops: list[LoopThread] = []
_new_loop()
os.register_at_fork(after_in_child=_new_loop)


def _is_coroutine(work: Any) -> bool:
    """Look through partial functions, as ``inspect`` does, and at objects whose call is a coroutine."""
    if inspect.iscoroutinefunction(work):
        return True
    function = getattr(work, "func", work)
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # the method, not whether
