"""Is the server worth calling right now: a small state machine around somebody else's calls.

closed: every call passes, failures are counted. open: every call is rejected until a wait has passed. half-open: a
fixed number of probes passes and decides. forced-open and disabled are an operator's word, until ``reset()``.
The semantics follow resilience4j. The lock is held for bookkeeping only: never during a protected call, never while
a listener runs, never across an ``await``; so one breaker serves threads and event loops at once.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from random import random as _random

from contract_engine.memory.call_window import CallWindow, RateLimits
from contract_engine.memory.circuit_control import CircuitControl
from contract_engine.memory.circuit_guard import CallGuard
from contract_engine.memory.circuit_listeners import CircuitListeners
from contract_engine.memory.circuit_probes import CircuitProbes
from contract_engine.memory.circuit_settings import check_settings, check_together, classifier
from contract_engine.memory.circuit_state import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    OPEN,
    TRANSITIONS,
    BreakerSnapshot,
    CircuitState,
    Permit,
    Transition,
)
from contract_engine.memory.circuit_timer import CircuitTimer
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError

__all__ = [
    "TRANSITIONS",
    "BreakerSnapshot",
    "CircuitBreaker",
    "CircuitState",
    "Permit",
    "RedisCircuitBreaker",
    "Transition",
    "redis_circuit_breaker",
]


class CircuitBreaker(CallGuard, CircuitControl):
    """Reject calls while the server they go to is known to fail.

    It opens after ``failure_threshold`` failures in a row. If a window is set (the last ``window_size`` calls or the
    calls of the last ``window_seconds``) it also opens when, of at least ``minimum_calls`` calls, a share of
    ``failure_rate`` failed, or a share of ``slow_call_rate`` took longer than ``slow_call_seconds``.

    After ``recovery_timeout`` seconds ``half_open_permits`` calls pass as probes. One failure opens it again; when
    all succeeded (and fewer than ``slow_call_rate`` of them were slow) it closes. Half-open lasts
    ``half_open_max_seconds`` at most (None: without end), then it is open again: a probe that hangs or never reports
    cannot block it. Each opening without a recovery in between multiplies the wait by ``backoff``, up to
    ``max_recovery_timeout`` (default: ten times the first wait); ``jitter`` shortens each wait by up to that share.

    ``counts`` says which exceptions are failures: types, or a function of the exception. Others, and cancellation
    always, give their permit back and count as nothing. A time limit must therefore lie inside the protected call:
    ``asyncio.timeout`` around it looks like a cancellation.

    For reading only: ``failure_count``, failures in a row, kept while open; ``last_failure_time``, of the last counted
    failure in seconds since the epoch, None before any and after a reset; ``overrides``, how often somebody has set the
    state by hand.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        *,
        name: str = "redis",
        counts: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = Exception,
        failure_rate: float | None = None,
        window_size: int | None = None,
        window_seconds: float | None = None,
        minimum_calls: int = 10,
        slow_call_seconds: float | None = None,
        slow_call_rate: float | None = None,
        half_open_permits: int = 1,
        half_open_max_seconds: float | None = 60.0,
        backoff: float = 1.0,
        max_recovery_timeout: float | None = None,
        jitter: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[], float] = _random,
    ) -> None:
        settings = check_settings(
            failure_threshold=failure_threshold,
            recovery_timeout=recovery_timeout,
            failure_rate=failure_rate,
            window_size=window_size,
            window_seconds=window_seconds,
            minimum_calls=minimum_calls,
            slow_call_seconds=slow_call_seconds,
            slow_call_rate=slow_call_rate,
            half_open_permits=half_open_permits,
            half_open_max_seconds=half_open_max_seconds,
            backoff=backoff,
            max_recovery_timeout=max_recovery_timeout,
            jitter=jitter,
        )
        check_together(settings)
        if not name:
            raise ConfigurationError("name", "expected a text that is not empty")

        self.name = name
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self._counts = classifier(counts)
        self._slow_call_seconds = math.inf if slow_call_seconds is None else slow_call_seconds
        has_window = not (window_size is None and window_seconds is None)
        self._window = CallWindow(size=window_size, seconds=window_seconds) if has_window else None
        self._limits = RateLimits(min(minimum_calls, window_size or minimum_calls), failure_rate, slow_call_rate)
        self._probes = CircuitProbes(half_open_permits, slow_rate=slow_call_rate)
        self._timer = CircuitTimer(
            recovery_timeout, max_recovery_timeout, half_open_max_seconds, backoff=backoff, jitter=jitter, random=random
        )
        self._clock = clock
        self._wall_clock = wall_clock

        self._lock = threading.Lock()
        self._state = CLOSED
        self.failure_count = 0
        self.last_failure_time: float | None = None
        self._opened_at: float | None = None
        self._totals = dict.fromkeys(("successful", "failed", "slow", "rejected", "cancelled", "late"), 0)
        self._listeners = CircuitListeners()
        self._generation = 0
        self.overrides = 0
        self._rejects_until = -math.inf  # before this moment every call is rejected without a further look
        self._begin_generation()
        _breakers.add(self)

    def configure(self, failure_threshold: int, recovery_timeout: float) -> None:
        """Set the threshold and the first wait anew; an opening under way keeps its wait."""
        check_settings(failure_threshold=failure_threshold, recovery_timeout=recovery_timeout)
        with self._lock:
            self.failure_threshold, self.recovery_timeout = failure_threshold, recovery_timeout

    def acquire(self) -> Permit:
        """Return a permit for one call, or raise :class:`CircuitOpenError`.

        Then exactly one of :meth:`success`, :meth:`failure` and :meth:`cancel` must be told of it.
        """
        permit = self._shared
        if permit is not None:
            return permit
        generation = self._timed_generation
        if generation is not None:
            return Permit(generation, self._clock())
        # Read once and without the lock: an open breaker has to be next to free.
        remaining = self._rejects_until - self._clock()
        if remaining > 0.0:
            self._totals["rejected"] += 1
            raise CircuitOpenError(self.name, min(self._timer.wait, remaining))
        return self._acquire()

    def turns_away(self) -> bool:
        """Whether :meth:`acquire` would raise now; then it counts as a rejection, and nothing need be prepared."""
        if self._shared is not None or self._clock() >= self._rejects_until:
            return False
        self._totals["rejected"] += 1
        return True

    def success(self, permit: Permit) -> None:
        """Report that the call succeeded; without effect if the state has changed since."""
        window = self._window
        changes_nothing = not self.failure_count and (window is None or window.is_spotless)
        if changes_nothing and (
            permit is self._shared
            or (
                permit.generation == self._timed_generation
                and self._clock() - permit.started <= self._slow_call_seconds
            )
        ):
            # Without the lock: racing threads may lose a count, which is for display and judged by nobody.
            self._totals["successful"] += 1
        else:
            self._settle(permit, "successful")

    def failure(self, permit: Permit, exc: BaseException) -> None:
        """Report that the call raised ``exc``; one that does not count gives the permit back."""
        counted = False
        try:
            counted = self._counts(exc)
        finally:  # also when the caller's function itself raises: no permit is lost
            self._settle(permit, "failed" if counted else "cancelled")

    def cancel(self, permit: Permit) -> None:
        """Give the permit back; the call counts as nothing."""
        self._settle(permit, "cancelled")

    def snapshot(self) -> BreakerSnapshot:
        """Return state and counts of one moment."""
        with self._lock:
            now = self._advance()
            snapshot = BreakerSnapshot(
                name=self.name,
                state=HALF_OPEN if self._state is OPEN and now >= self._timer.deadline else self._state,
                failure_count=self.failure_count,
                last_failure_time=self.last_failure_time,
                opened_at=self._opened_at,
                retry_after=self._retry_after(now) or 0.0,
                **self._totals,
            )
        self._listeners.tell()
        return snapshot

    def add_listener(self, listener: Callable[[Transition], None]) -> None:
        """Call ``listener`` after each change of state: in order, one at a time, in a thread that uses the breaker.

        It may use the breaker itself. What it raises is logged and reaches nobody.
        """
        self._listeners.add(listener)

    def _acquire(self) -> Permit:
        with self._lock:
            now = self._advance()
            if self._state is OPEN and now >= self._timer.deadline:
                self._move(HALF_OPEN, "wait is over", now)
            wait = self._retry_after(now)
            if wait is None:
                self._probes.admitted += 1
            else:
                self._totals["rejected"] += 1
            permit = Permit(self._generation, now)
        self._listeners.tell()
        if wait is not None:
            raise CircuitOpenError(self.name, wait)
        return permit

    def _settle(self, permit: Permit, outcome: str) -> None:
        with self._lock:
            now = self._advance()
            if permit.generation != self._generation:
                self._totals["late"] += 1
            else:
                self._totals[outcome] += 1
                if outcome == "cancelled":
                    self._probes.admitted -= 1
                else:
                    slow = now - permit.started > self._slow_call_seconds
                    self._totals["slow"] += slow
                    self._judge(now, outcome == "failed", slow)
        if self._listeners.pending:
            self._listeners.tell()

    def _judge(self, now: float, failed: bool, slow: bool) -> None:
        if failed:
            self.last_failure_time = self._wall_clock()
        if self._state is DISABLED:
            return
        if self._state is HALF_OPEN:
            self.failure_count += failed
            if verdict := self._probes.verdict(failed, slow):
                self._move(*verdict, now)
            return
        self.failure_count = self.failure_count + 1 if failed else 0
        if self.failure_count >= self.failure_threshold:
            self._move(OPEN, f"{self.failure_count} failures in a row", now)
        elif (window := self._window) is not None:
            window.add(now, failed, slow)
            if (window.failed or window.slow) and (excess := self._limits.excess(window)):
                self._move(OPEN, excess, now)

    def _advance(self) -> float:
        """Return the time, after ending a half-open stay as a timer would have: when it was over, not when noticed."""
        now = self._clock()
        if self._state is HALF_OPEN and now >= self._timer.deadline:
            self._move(OPEN, "half-open for too long", self._timer.deadline)
        return now

    def _retry_after(self, now: float) -> float | None:
        """Return the seconds until it is worth asking again; None if a call may pass now."""
        if self._state is CLOSED or self._state is DISABLED:
            return None
        if self._state is HALF_OPEN and not self._probes.are_full:
            return None
        return max(0.0, min(self._timer.deadline - now, self._timer.wait))

    def _override(self, to: CircuitState, reason: str) -> None:
        with self._lock:
            self.overrides += 1
            if to is CLOSED:
                self.last_failure_time = None
            if self._state is not to:
                self._move(to, reason, self._clock())
            elif to is CLOSED:
                self._begin_generation()
        self._listeners.tell()

    def _move(self, to: CircuitState, reason: str, now: float) -> None:
        """Change the state; the caller holds the lock, and has them told when it has let go of it."""
        origin = self._state
        if to not in TRANSITIONS[origin]:
            raise RuntimeError(f"breaker {self.name!r} cannot go from {origin} to {to}")
        at = self._wall_clock()
        self._timer.enter(to, now, self.recovery_timeout, origin=origin)
        is_rejecting = to is OPEN or to is FORCED_OPEN
        self._rejects_until = self._timer.deadline if is_rejecting else -math.inf
        if to is not HALF_OPEN:  # which belongs to the opening before it
            self._opened_at = at if is_rejecting else None
        self._state = to
        self._begin_generation()
        self._listeners.pending.append(Transition(self.name, origin, to, reason, at))

    def _begin_generation(self) -> None:
        """Start counting afresh; every permit handed out so far is a late one from now on."""
        self._generation += 1
        self._probes.clear()
        # While every call passes: the permit they share, or the generation of permits that remember when they began.
        self._shared: Permit | None = None
        self._timed_generation: int | None = None
        if self._state is CLOSED or self._state is DISABLED:
            self.failure_count = 0
            if self._window is not None:
                self._window.clear()
            if self._limits.slow_rate is None:
                self._shared = Permit(self._generation, 0.0)
            else:
                self._timed_generation = self._generation


_breakers: weakref.WeakSet[CircuitBreaker] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    for breaker in _breakers:
        breaker._lock = threading.Lock()
        breaker._listeners.after_fork()


os.register_at_fork(after_in_child=_after_fork)

RedisCircuitBreaker = CircuitBreaker
redis_circuit_breaker = CircuitBreaker()
