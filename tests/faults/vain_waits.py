"""How often a manager waits for a server that does not answer: a count, which no busy machine can change."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, Self

from crash_attempts import bare
from crash_matrix import REDIS, server_of
from network_path import WIDE_SECONDS

from contract_engine.memory import (
    CircuitOpenError,
    ConfigurationError,
    DatabaseCircuitOpenError,
    MemoryManager,
    StoreUnavailableError,
)
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.circuit_state import CLOSED, HALF_OPEN, OPEN, Transition

EXPECTED = (StoreUnavailableError, ConfigurationError)
"""What a call raises because a server is away, or because there is no log to do it with."""


class VainWaits:
    """Stands between the flows of a manager and its runtime, and notes each effect whose server has not answered.

    What an open breaker rejects has waited for nobody.
    """

    def __init__(self, manager: Any) -> None:
        self.seconds: dict[str, list[float]] = {}
        """How long each wait took, by server."""
        self._manager = bare(manager)
        self._is_blocking = isinstance(self._manager, MemoryManager)
        self._loop: asyncio.AbstractEventLoop | None = None if self._is_blocking else getattr(manager, "_loop", None)
        self._caller: Callable[[], object] = threading.get_ident if self._is_blocking else asyncio.current_task
        self._counts: Counter[object] = Counter()
        runtime = self._manager._runtime
        self._perform = runtime._perform
        runtime._perform = self._noted if self._is_blocking else self._noted_in_task

    @property
    def total(self) -> int:
        """How often anybody has waited, in the background too."""
        return self._counts.total()

    def of_caller(self) -> int:
        """Return how often the thread, or the task, at hand has waited."""
        return self._counts[self._caller()]

    def call(self, call: Callable[[Any], Any]) -> tuple[int, int]:
        """Call the manager, and wait for what that has spawned; answers how often either has waited.

        Errors that are ``EXPECTED`` end here.
        """
        before = self.total
        if self._loop is not None:
            own = self._loop.run_until_complete(self._call_in_task(call))
        else:
            own = self.of_caller()
            with suppress(*EXPECTED):
                call(self._manager)
            own = self.of_caller() - own
            self._manager.wait_for_folds()
        return own, self.total - before - own

    async def _call_in_task(self, call: Callable[[Any], Any]) -> int:
        with suppress(*EXPECTED):
            await call(self._manager)
        own = self.of_caller()
        await self._manager.wait_for_folds()
        return own

    def _noted(self, effect: Any) -> Any:
        started = time.monotonic()
        try:
            return self._perform(effect)
        except StoreUnavailableError as exc:
            self._note(effect, exc, time.monotonic() - started)
            raise

    async def _noted_in_task(self, effect: Any) -> Any:
        started = time.monotonic()
        try:
            return await self._perform(effect)
        except StoreUnavailableError as exc:
            self._note(effect, exc, time.monotonic() - started)
            raise

    def _note(self, effect: Any, exc: StoreUnavailableError, seconds: float) -> None:
        if not isinstance(exc, CircuitOpenError | DatabaseCircuitOpenError):
            self._counts[self._caller()] += 1
            self.seconds.setdefault(server_of(effect) or "", []).append(seconds)


class Changes:
    """How often a breaker has opened, and how often it has let a probe through."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.opened = self.probes = 0
        breaker.add_listener(self._hear)

    def _hear(self, change: Transition) -> None:
        self.opened += change.from_state is CLOSED and change.to_state is OPEN
        self.probes += change.to_state is HALF_OPEN


class Tally(NamedTuple):
    """What has happened up to a moment, or between two of them."""

    waits: int
    opened: int
    probes: int

    @classmethod
    def so_far(cls, waits: VainWaits, changes: Changes) -> Self:
        return cls(waits.total, changes.opened, changes.probes)

    def since(self, before: Tally) -> Tally:
        return Tally(*(now - then for now, then in zip(self, before, strict=True)))

    def assert_bounded(self, *, threshold: int, callers: int) -> None:
        """As many wait as open the breaker, those who were under way then, and one for each probe."""
        assert threshold <= self.waits <= self.opened * (threshold + callers - 1) + self.probes, self


def assert_one_deadline(waits: VainWaits, attempts: Iterable[int], seconds: float) -> None:
    """No call has waited twice for Redis (``attempts``: how often each has), and a wait ends at its deadline."""
    assert max(attempts) == 1, "a call has waited again"
    found = waits.seconds[REDIS]
    assert min(found) >= 0.9 * seconds, "that was no wait"
    assert statistics.median(found) < 2 * seconds
    assert max(found) < seconds + WIDE_SECONDS
