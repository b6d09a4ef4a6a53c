"""How long operations and their steps took: one distribution for each operation, layer and outcome of the process.

Whoever is timed only notes the seconds: they are sorted into buckets when somebody looks, since a histogram of the
client of Prometheus costs more than a whole step of a call may.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 90.0,
)  # fmt: skip

MOST_PENDING = 2000
"""So many values wait at most to be sorted into buckets, in each distribution."""


class Totals(NamedTuple):
    """How many values lie in each bucket, and the sum of all; of a bucket above each bound, and one for the rest."""

    counts: tuple[int, ...]
    sum: float

    def since(self, before: Totals) -> Totals:
        """Return what has come after an earlier look at the same distribution."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Totals(counts, self.sum - before.sum)


class Distribution:
    """How often something had which size; adding to it is an append, which threads need no lock for."""

    __slots__ = ("_counts", "_pending", "_sum", "bounds")

    lock = threading.Lock()
    """Held while values are sorted: one for all, since that is seldom and short."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """Note one value; whoever adds the last that fits sorts them all."""
        pending = self._pending
        pending.append(value)
        if len(pending) >= MOST_PENDING:
            self.totals()

    def totals(self) -> Totals:
        """Sort what is pending into the buckets, each of which ends at its bound, and return them."""
        with Distribution.lock:
            count = len(self._pending)
            values = self._pending[:count]
            del self._pending[:count]
            values.sort()
            ends = [*(bisect_right(values, bound) for bound in self.bounds), count]
            for index, (start, end) in enumerate(pairwise((0, *ends))):
                self._counts[index] += end - start
            self._sum += sum(values)
            return Totals(tuple(self._counts), self._sum)


Labels = tuple[str, str, str]
"""Operation, backend and outcome; see :class:`contract_engine.memory.hooks.Ending`."""


def durations_of(operation: str, backend: str, outcome: str) -> Distribution:
    """Return the one distribution of what has this name and ended like this."""
    labels = (operation, backend, outcome)
    return _all.get(labels) or _all.setdefault(labels, Distribution(SECONDS))


def all_durations() -> dict[Labels, Totals]:
    """Return every distribution of the process as it is now, the empty ones too."""
    return {labels: durations.totals() for labels, durations in list(_all.items())}


_all: dict[Labels, Distribution] = {}


def _after_fork() -> None:
    Distribution.lock = threading.Lock()  # the thread of the parent that held it does not exist in the child


os.register_at_fork(after_in_child=_after_fork)
