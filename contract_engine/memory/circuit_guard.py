"""Around a call: what a circuit breaker looks like to the code it protects."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Protect the body of a ``with`` statement, in sync and async code; raises :class:`CircuitOpenError`."""
        permit = self.acquire()
        try:
            yield
        except BaseException as exc:
            self.failure(permit, exc)
            raise
        self.success(permit)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``fn`` if the breaker lets it; raises :class:`CircuitOpenError` otherwise."""
        # The same as guard(), written out: a context manager made of a generator costs more than all the rest.
        permit = self.acquire()
        try:
            answer = fn(*args, **kwargs)
        except BaseException as exc:
            self.failure(permit, exc)
            raise
        self.success(permit)
        return answer

    async def call_async(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call and await ``fn``, which may be any function that returns an awaitable; see :meth:`call`."""
        permit = self.acquire()
        try:
            answer = await fn(*args, **kwargs)
        except BaseException as exc:
            self.failure(permit, exc)
            raise
        self.success(permit)
        return answer

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
