"""Bytes under names that expire, in the memory of this process.

Every operation takes the same time however many entries there are. What expires within the same second is in one
bucket, and a write clears up a bounded number of what is due: more than it adds, so that nothing piles up.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

_CLEARED_PER_WRITE = 16
_SPARE_SECONDS = 1024


class ExpiringEntries:
    """Not safe to share between threads. ``clock`` gives seconds and never goes back."""

    def __init__(self, *, max_entries: int, clock: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._clock = clock
        # The least recently used first. A tuple of plain values costs the garbage collector nothing.
        self._entries: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()
        self._buckets: dict[int, dict[str, None]] = {}
        self._seconds: list[int] = []  # a heap of those that have a bucket, and of some that had one
        self.evicted = 0

    def __len__(self) -> int:
        """How many there are; some of them may have expired and not been cleared up yet."""
        return len(self._entries)

    def names(self) -> list[str]:
        """Return the names of what has not expired."""
        now = self._clock()
        return [name for name, (_, deadline) in self._entries.items() if deadline is None or now < deadline]

    def every_name(self) -> list[str]:
        """Return the names of what has expired, too: many times as fast as looking at each of them."""
        return list(self._entries)

    def live(self, names: Iterable[str]) -> list[str]:
        """Return those names whose entries are there and have not expired."""
        now, entries = self._clock(), self._entries
        gone = (b"", now)
        return [name for name in names if (deadline := entries.get(name, gone)[1]) is None or now < deadline]

    def get(self, name: str, *, is_use: bool = True) -> bytes | None:
        """Return what is kept under a name. ``is_use``: it becomes the most recently used."""
        found = self._entries.get(name)
        if found is None:
            return None
        body, deadline = found
        if deadline is not None and self._clock() >= deadline:
            self._forget(name)
            return None
        if is_use:
            self._entries.move_to_end(name)
        return body

    def seconds_left(self, name: str) -> float | None:
        """Return how long an entry still lives; None for ever, also where there is none."""
        _, deadline = self._entries.get(name, (b"", None))
        return None if deadline is None else deadline - self._clock()

    def put(self, name: str, body: bytes, ttl_seconds: float | None) -> None:
        """Keep bytes under a name; where there is no room, what was used least recently goes."""
        now = self._clock()
        self._clear(now, most=_CLEARED_PER_WRITE)
        # Written over where it is: taken out and put in again, it would have the whole dictionary rebuilt now and then,
        # which for a million entries is a third of a second in which nobody else gets at them.
        before = self._entries.get(name)
        if before is not None:
            self._leave_bucket(name, before[1])
            self._entries.move_to_end(name)
        elif len(self._entries) >= self._max_entries:
            self._forget(next(iter(self._entries)))
            self.evicted += 1
        deadline = None if ttl_seconds is None else now + ttl_seconds
        self._entries[name] = (body, deadline)
        if deadline is not None:
            self._join_bucket(name, deadline)

    def remove(self, name: str) -> bool:
        """Remove what is kept under a name, and return whether there was something."""
        is_there = self.get(name, is_use=False) is not None
        if is_there:
            self._forget(name)
        return is_there

    def clear_expired(self) -> int:
        """Clear up all that is due, and return how many there were."""
        now = self._clock()
        count = self._clear(now, most=len(self._entries))
        for name in list(self._buckets.get(int(now), ())):  # the second that is not over yet
            _, deadline = self._entries[name]
            if deadline is not None and now >= deadline:
                self._forget(name)
                count += 1
        return count

    def _clear(self, now: float, *, most: int) -> int:
        count = 0
        for name in self._due(int(now)):
            if count == most:
                break
            self._forget(name)
            count += 1
        return count

    def _due(self, this_second: int) -> Iterator[str]:
        """Give the names of what expired in earlier seconds; each must be forgotten before the next is asked for."""
        seconds, buckets = self._seconds, self._buckets
        while seconds and seconds[0] < this_second:
            bucket = buckets.get(seconds[0])
            if bucket is None:
                heapq.heappop(seconds)
            else:
                yield next(reversed(bucket))

    def _forget(self, name: str) -> None:
        _, deadline = self._entries.pop(name)
        self._leave_bucket(name, deadline)

    def _join_bucket(self, name: str, deadline: float) -> None:
        second = int(deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
            if len(self._seconds) > 2 * len(self._buckets) + _SPARE_SECONDS:
                self._seconds = sorted(self._buckets)  # which is a heap, and has all of them by now
            else:
                heapq.heappush(self._seconds, second)
        bucket[name] = None

    def _leave_bucket(self, name: str, deadline: float | None) -> None:
        if deadline is None:
            return
        second = int(deadline)
        bucket = self._buckets[second]
        del bucket[name]
        if not bucket:  # it may be due in a month only, and others of it come and go every second
            del self._buckets[second]
