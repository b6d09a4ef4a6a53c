"""Around a call: what a circuit breaker looks like to the code it protects."""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from contract_engine.memory.circuit_state import Permit
from contract_engine.memory.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")


class CallGuard(ABC):
    """The ways to protect a call, all made of :meth:`acquire` and its three outcomes."""

    @abstractmethod
    def acquire(self) -> Permit:
        """Return a permit for one call, or raise :class:`CircuitOpenError`."""

    @abstractmethod
    def success(self, permit: Permit) -> None:
        """Report that the call succeeded."""

    @abstractmethod
    def failure(self, permit: Permit, exc: BaseException) -> None:
        """Report that the call raised ``exc``."""

    def guard(self) -> AbstractContextManager[None]:
        """Protect the body of a ``with`` statement, in sync and async code; raises :class:`CircuitOpenError`."""
        return _GuardedBlock(self)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn`` if the breaker lets it; raises :class:`CircuitOpenError` otherwise."""
        # The same as guard(), written out: entering and leaving a block costs as much as all the rest.
        permit = self.acquire()
        returned = False
        try:
            answer = fn(*args, **kwargs)
            returned = True
            return answer
        finally:
            # Where nothing was raised here, sys.exception() is one that a caller of ours is handling.
            self._report(permit, None if returned else sys.exception())

    async def call_async(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call and await ``fn``, which may be any function that returns an awaitable; see :meth:`call`."""
        permit = self.acquire()
        returned = False
        try:
            answer = await fn(*args, **kwargs)
            returned = True
            return answer
        finally:
            self._report(permit, None if returned else sys.exception())

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, method or coroutine function; generators are refused, because they fail later."""
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConfigurationError("fn", "a generator fails while it is read, not when called; use guard() inside it")
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def guarded_async(*args: P.args, **kwargs: P.kwargs) -> object:
                return await self.call_async(fn, *args, **kwargs)

            return cast("Callable[P, R]", guarded_async)

        @functools.wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.call(fn, *args, **kwargs)

        return guarded

    def _report(self, permit: Permit, exc: BaseException | None) -> None:
        if exc is None:
            self.success(permit)
        else:
            self.failure(permit, exc)


class _GuardedBlock:
    """One run of the body of a ``with`` statement; the permit is taken on entering."""

    __slots__ = ("_guard", "_permit")

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._permit = self._guard.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard._report(self._permit, exc)
