"""How many of the last calls failed or were slow."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Calls added up; ``since`` is when the first of them was added."""

    calls: int = 0
    failed: int = 0
    slow: int = 0
    since: float = 0.0

    @property
    def failure_rate(self) -> float:
        """The share of calls that failed, 0 to 1; there must be calls."""
        return self.failed / self.calls

    @property
    def slow_rate(self) -> float:
        """The share of calls that were slow, 0 to 1; there must be calls."""
        return self.slow / self.calls

    def add(self, *, calls: int, failed: int, slow: int) -> None:
        """Add calls, or take them away with negative numbers."""
        self.calls += calls
        self.failed += failed
        self.slow += slow


class CallWindow:
    """The last ``size`` calls, or the calls of the last ``seconds``. Not thread-safe: its owner has a lock.

    Calls within a sixtieth of ``seconds`` share one tally, so that memory does not grow with the call rate; they
    leave together, up to that much early.
    """

    def __init__(self, *, size: int | None, seconds: float | None) -> None:
        self._size = math.inf if size is None else size
        self._seconds = math.inf if seconds is None else seconds
        self._grain = 0.0 if seconds is None else seconds / 60
        self.clear()

    def clear(self) -> None:
        """Forget every call."""
        self._tallies: deque[Tally] = deque()
        self._total = Tally()

    def add(self, now: float, *, failed: bool, slow: bool) -> Tally:
        """Add one call and return the totals of what is in the window then."""
        tallies, total = self._tallies, self._total
        if not tallies or now - tallies[-1].since >= self._grain:
            tallies.append(Tally(since=now))
        tallies[-1].add(calls=1, failed=failed, slow=slow)
        total.add(calls=1, failed=failed, slow=slow)
        while total.calls > self._size or now - tallies[0].since >= self._seconds:
            past = tallies.popleft()
            total.add(calls=-past.calls, failed=-past.failed, slow=-past.slow)
        return total
