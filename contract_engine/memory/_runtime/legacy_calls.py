"""Calls to the store that is being left: somebody else's object, which may raise anything."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from contract_engine.memory._effects import LegacyCall
from contract_engine.memory.circuit_guard import CallGuard
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError, LegacyUnavailableError


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
            hint = f"retry in {exc.retry_after:.1f} s"
            raise LegacyUnavailableError("circuit breaker open", is_tried=False, hint=hint) from None

    def __exit__(self, _type: object, exc: BaseException | None, _tb: object) -> None:
        if exc is None:
            self._breaker.success(self._permit)
            return
        self._breaker.failure(self._permit, exc)  # a cancelled call counts as nothing there
        if isinstance(exc, Exception) and not isinstance(exc, ConfigurationError):
            raise LegacyUnavailableError(type(exc).__name__, is_tried=True) from exc


def call_legacy(effect: LegacyCall) -> Any:
    """Call it in this thread; a coroutine is refused, since nobody here can await it."""
    with _Guarded(effect.breaker):
        answer = effect.work()
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise ConfigurationError("legacy_store", "its methods are coroutines; use AsyncEnhancedSessionStore")
        return answer


async def call_legacy_async(effect: LegacyCall) -> Any:
    """Await it where it is a coroutine; else run it beside the event loop."""
    with _Guarded(effect.breaker):
        work = effect.work
        answer = work() if _is_coroutine(work) else await asyncio.to_thread(work)
        return await answer if inspect.isawaitable(answer) else answer


def _is_coroutine(work: Any) -> bool:
    """Look through partial functions, as ``inspect`` does, and at objects whose call is a coroutine."""
    if inspect.iscoroutinefunction(work):
        return True
    function = getattr(work, "func", work)
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # the method, not whether
