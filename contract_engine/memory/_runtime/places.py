"""Places for connections that threads use in turn."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from queue import Empty, Full
from typing import Generic, TypeVar

T = TypeVar("T")


class _Waiting(Generic[T]):
    """A thread in line, and what it is given."""

    # Not a queue of one thing: SimpleQueue.get() waits for ever where its time is up before it begins to wait.

    def __init__(self) -> None:
        self.thing: T | None = None
        self.is_served = threading.Lock()
        self.is_served.acquire()


class Places(Generic[T]):
    """Room for ``maxsize`` things; a place that is free has one in it, or nothing yet: None.

    A thread gets the thing that came back last. Where all places are taken, threads are served in the order in which
    they asked: one that gives a place back and at once wants another does not overtake those that wait. Attributes and
    methods are named as those of :class:`queue.LifoQueue`, of which redis-py makes its own pools.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        # Things lie on the right, where they are taken first. Single operations of a deque need no lock.
        self.queue: deque[T | None] = deque([None] * maxsize)
        self._line: deque[_Waiting[T]] = deque()
        self._line_moves = threading.Lock()

    def get(self, *, timeout: float) -> T | None:
        """Take a place and return what is in it; :class:`queue.Empty` where none became free in time."""
        if not self._line:
            with suppress(IndexError):
                return self.queue.pop()
        mine = _Waiting[T]()
        with self._line_moves:
            self._line.append(mine)
            self._serve()
        is_served = False
        try:
            is_served = mine.is_served.acquire(timeout=timeout)
        finally:
            if not is_served:
                self._leave(mine)
        if not is_served:
            raise Empty
        return mine.thing

    def put_nowait(self, thing: T | None) -> None:
        """Give a place back; :class:`queue.Full` where all of them are free."""
        if len(self.queue) >= self.maxsize:
            raise Full
        (self.queue.appendleft if thing is None else self.queue.append)(thing)
        # Whoever is in line by now is served here, and whoever comes later finds it: one of both sees the other.
        if self._line:
            with self._line_moves:
                self._serve()

    def _serve(self) -> None:
        with suppress(IndexError):  # somebody was faster who came when nobody was in line
            while self._line and self.queue:
                thing = self.queue.pop()
                first = self._line.popleft()
                first.thing = thing
                first.is_served.release()

    def _leave(self, mine: _Waiting[T]) -> None:
        """Leave the line; what was given in the same moment goes to the next."""
        with self._line_moves:
            if mine in self._line:
                self._line.remove(mine)
                return
        self.put_nowait(mine.thing)
