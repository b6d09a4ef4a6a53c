"""Rounds of health checks: side by side, with one hard end, and for everybody who asks within a second.

A check goes through the runtime as any call does, breaker included; but it is no operation of anybody, and no hook is
told of it. One that is still under way when the next round begins is waited for there, and not begun again: a server
that hangs costs one connection, however often it is asked about. One that has ended by then is made anew: what it found
may be long ago.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future, wait
from typing import Any, Generic, NamedTuple, TypeVar

from contract_engine.memory._effects import Flow
from contract_engine.memory.daemon import start_daemon
from contract_engine.memory.errors import MemoryServiceError

R = TypeVar("R")

ROUND_SECONDS = 0.9
"""The end of a round, however many checks there are; what is left of a second is for the machine's own delays."""

WAITED_SECONDS = 1.0
"""How long after the beginning of a round others wait for its report, before they make one of what is known by then."""

HELD_SECONDS = 1.0
"""How long a report is given to others who ask."""


class CheckResult(NamedTuple):
    """How a check ended: what it found, or why it failed."""

    detail: str
    error: str
    seconds: float


class Checks(ABC, Generic[R]):
    """What is checked, and what is made of it."""

    @abstractmethod
    def flows(self) -> Mapping[str, Callable[[], Flow[str]]]:
        """Return the checks by name; each answers what it found, or raises what is wrong."""

    @abstractmethod
    def report(self, results: Mapping[str, CheckResult]) -> R:
        """Return the report of a round; must not wait for anybody."""


_LATE = CheckResult("", f"no answer within {ROUND_SECONDS:g} s", ROUND_SECONDS)


def _results(checks: Mapping[str, Future[CheckResult] | asyncio.Task[CheckResult]]) -> dict[str, CheckResult]:
    """Return what has been found by now; a check that is still under way is late."""
    return {name: check.result() if check.done() else _LATE for name, check in checks.items()}


class _Round(Generic[R]):
    """A round under way: whoever sees it sees its checks, and need not rely on the thread that is at it."""

    def __init__(self, checks: Mapping[str, Future[CheckResult]]) -> None:
        self.checks = checks
        self.report: Future[R] = Future()
        self.began = time.monotonic()


class Checkup(Generic[R]):
    """Rounds in threads of their own, which the end of the program does not wait for."""

    def __init__(self, run: Callable[[Flow[str]], str]) -> None:
        self._run = run
        self._forget()
        _checkups.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._round: _Round[R] | None = None
        self._held: tuple[R, float] | None = None
        self._latest: dict[str, Future[CheckResult]] = {}

    def look(self, checks: Checks[R]) -> R:
        """Return the report of a round that is under way, or ended within the last second, or is begun here."""
        while True:
            with self._lock:
                if self._held is not None and time.monotonic() < self._held[1]:
                    return self._held[0]
                others = self._round
                if others is None:
                    mine = self._round = self._begin(checks.flows())
            if others is None:
                return self._finish(checks, mine)
            try:
                return others.report.result(others.began + WAITED_SECONDS - time.monotonic())
            except CancelledError:  # whoever was at it has been interrupted
                continue
            except TimeoutError:  # whoever is at it gets no time; what the servers have answered is known all the same
                return checks.report(_results(others.checks))

    def _begin(self, flows: Mapping[str, Callable[[], Flow[str]]]) -> _Round[R]:
        for name, flow in flows.items():
            if name not in self._latest or self._latest[name].done():
                self._latest[name] = start_daemon(self._timed(flow), f"contract-memory-check-{name}")
        return _Round({name: self._latest[name] for name in flows})

    def _finish(self, checks: Checks[R], mine: _Round[R]) -> R:
        try:
            wait(mine.checks.values(), ROUND_SECONDS)
            report = checks.report(_results(mine.checks))
            self._held = (report, time.monotonic() + HELD_SECONDS)
            mine.report.set_result(report)
            return report
        finally:
            with self._lock:
                self._round = None
            mine.report.cancel()

    def _timed(self, flow: Callable[[], Flow[str]]) -> Callable[[], CheckResult]:
        def check() -> CheckResult:
            started = time.perf_counter()
            try:
                detail, error = self._run(flow()), ""
            except MemoryServiceError as exc:
                detail, error = "", str(exc)
            return CheckResult(detail, error, time.perf_counter() - started)

        return check


class AsyncCheckup(Generic[R]):
    """Rounds in tasks of the running loop; cancelled when the manager is closed."""

    def __init__(self, run: Callable[[Flow[str]], Awaitable[str]]) -> None:
        self._run = run
        self._round: asyncio.Task[R] | None = None
        self._held: tuple[R, float] | None = None
        self._latest: dict[str, asyncio.Task[CheckResult]] = {}

    async def look(self, checks: Checks[R]) -> R:
        """See :meth:`Checkup.look`."""
        if self._held is not None and time.monotonic() < self._held[1]:
            return self._held[0]
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._look(checks), name="contract-memory health")
        return await asyncio.shield(self._round)

    async def _look(self, checks: Checks[R]) -> R:
        flows = checks.flows()
        for name, flow in flows.items():
            if name not in self._latest or self._latest[name].done():
                self._latest[name] = asyncio.create_task(self._timed(flow), name=f"contract-memory check {name}")
        under_way = {name: self._latest[name] for name in flows}
        await asyncio.wait(under_way.values(), timeout=ROUND_SECONDS)
        report = checks.report(_results(under_way))
        self._held = (report, time.monotonic() + HELD_SECONDS)
        return report

    async def _timed(self, flow: Callable[[], Flow[str]]) -> CheckResult:
        started = time.perf_counter()
        try:
            detail, error = await self._run(flow()), ""
        except MemoryServiceError as exc:
            detail, error = "", str(exc)
        return CheckResult(detail, error, time.perf_counter() - started)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks: list[asyncio.Task[Any]] = [*self._latest.values(), *([self._round] if self._round else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._latest.clear()
        self._round = None


_checkups: weakref.WeakSet[Checkup[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    # The threads of the parent's round do not exist in the child.
    for checkup in list(_checkups):
        checkup._forget()


os.register_at_fork(after_in_child=_after_fork)
