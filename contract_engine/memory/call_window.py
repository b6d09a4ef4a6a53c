"""How many of the last calls failed or were slow, and how many are too many."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

FAILED, SLOW = 1, 2


class CallWindow:
    """The last ``size`` calls, or the calls of the last ``seconds``. Not thread-safe: its owner has a lock.

    ``calls``, ``failed`` and ``slow``, for reading only, are the totals of what is in the window. While it
    ``is_spotless``, full of ``size`` good calls, one more of them changes nothing and need not be added. Calls within a
    sixtieth of ``seconds`` share one entry, so that memory does not grow with the call rate; they leave together, up
    to that much early or late.
    """

    __slots__ = ("_entries", "_grain", "_outcomes", "_seconds", "_until", "calls", "failed", "is_spotless", "slow")

    def __init__(self, *, size: int | None, seconds: float | None) -> None:
        # One of the two is used: an outcome for each call, or an entry (since, calls, failed, slow) for each grain.
        self._outcomes: deque[int] | None = None if size is None else deque(maxlen=size)
        self._entries: deque[list[float]] = deque()
        self._seconds = math.inf if seconds is None else seconds
        self._grain = self._seconds / 60
        self.clear()

    def clear(self) -> None:
        """Forget every call."""
        if self._outcomes is not None:
            self._outcomes.clear()
        self._entries.clear()
        self._until = -math.inf  # the end of the newest entry's grain
        self.calls = self.failed = self.slow = 0
        self.is_spotless = False

    def add(self, now: float, failed: bool, slow: bool) -> None:
        """Add one call; those that it pushes out are gone from the totals then."""
        # It runs within every call that is protected, hence no object of its own for a call and no method for a step.
        self.calls += 1
        self.failed += failed
        self.slow += slow
        outcomes = self._outcomes
        if outcomes is None:
            if now >= self._until:
                self._turn(now)
            entry = self._entries[-1]
            entry[1] += 1
            entry[2] += failed
            entry[3] += slow
            return
        if len(outcomes) == outcomes.maxlen:
            past = outcomes[0]
            self.calls -= 1
            self.failed -= past & FAILED
            self.slow -= past >> 1
        outcomes.append(failed | slow << 1)
        self.is_spotless = self.calls == outcomes.maxlen and not (self.failed or self.slow)

    @property
    def failure_rate(self) -> float:
        """The share of calls that failed, 0 to 1; there must be calls."""
        return self.failed / self.calls

    @property
    def slow_rate(self) -> float:
        """The share of calls that were slow, 0 to 1; there must be calls."""
        return self.slow / self.calls

    def _turn(self, now: float) -> None:
        """Begin an entry, and drop those whose time has passed."""
        self._entries.append([now, 0, 0, 0])
        self._until = now + self._grain
        while now - self._entries[0][0] >= self._seconds:
            _, calls, failed, slow = self._entries.popleft()
            self.calls -= int(calls)
            self.failed -= int(failed)
            self.slow -= int(slow)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The shares of calls that are too many, once there are ``minimum_calls``; None: no share is."""

    minimum_calls: int
    failure_rate: float | None
    slow_rate: float | None

    def excess(self, window: CallWindow) -> str | None:
        """Say what there is too much of in the window; None if nothing."""
        if window.calls < self.minimum_calls:
            return None
        if self.failure_rate is not None and window.failure_rate >= self.failure_rate:
            return f"{window.failed} of {window.calls} calls failed"
        if self.slow_rate is not None and window.slow_rate >= self.slow_rate:
            return f"{window.slow} of {window.calls} calls were slow"
        return None
