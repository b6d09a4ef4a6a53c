"""Working memory in this process: nothing to install, gone when the process ends."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.serializer import decode_value
from contract_engine.working_memory.expiring_entries import ExpiringEntries
from contract_engine.working_memory.intake import MAX_BYTES
from contract_engine.working_memory.manager import (
    DEFAULT_PREFIX,
    DEFAULT_TTL_SECONDS,
    AsyncWorkingMemoryManager,
    Shell,
    WorkingMemoryManager,
)
from contract_engine.working_memory.patterns import matcher
from contract_engine.working_memory.records import Ttl
from contract_engine.working_memory.settings import check_function
from contract_engine.working_memory.stored_records import as_json
from contract_engine.working_memory.stores import (
    SCAN_BATCH,
    AwaitedStore,
    Batch,
    Entry,
    HasTtl,
    TimeToLive,
    seconds_to_live,
)

MAX_ENTRIES = 1_000_000


class InMemoryStore:
    """A store in this process, safe to share between threads; times to live come from ``owner``."""

    def __init__(self, owner: HasTtl, *, max_entries: int, clock: Callable[[], float]) -> None:
        self._owner = owner
        self._max_entries = max_entries
        self._entries = ExpiringEntries(max_entries=max_entries, clock=clock)
        self._lock = threading.Lock()
        with _forking:
            _alive.add(self)

    def hold(self) -> None:
        """Keep everybody else from the entries, while the process is copied."""
        self._lock.acquire()

    def let_go(self) -> None:
        """Let others at the entries again."""
        self._lock.release()

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Answer what is kept under the names."""
        with self._lock:
            return [self._entries.get(name) for name in names]

    def peek(self, name: str) -> bytes | None:
        """Answer what is kept under a name, which does not count as a use of it."""
        with self._lock:
            return self._entries.get(name, is_use=False)

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep all of them."""
        checked = [(name, body, seconds_to_live(ttl, self._owner)) for name, body, ttl in entries]
        with self._lock:
            for name, body, seconds in checked:
                self._entries.put(name, body, seconds)

    def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """Put ``new`` in place of ``old`` if that is what is there."""
        is_kept = ttl_seconds is Ttl.AS_BEFORE
        seconds = None if is_kept else seconds_to_live(ttl_seconds, self._owner)
        with self._lock:
            if self._entries.get(name) != old:
                return False
            if new is not None:
                self._entries.put(name, new, self._entries.seconds_left(name) if is_kept else seconds)
            elif old is not None:
                self._entries.remove(name)
            return True

    def remove(self, names: Sequence[str]) -> int:
        """Remove what is kept under the names."""
        with self._lock:
            return sum([self._entries.remove(name) for name in names])

    def scan(self, pattern: str, cursor: Iterator[str] | None) -> Batch:
        """Answer some of the names that were there when the scan began, if they match."""
        if cursor is None:
            with self._lock:
                cursor = iter(self._entries.every_name())
        batch = list(islice(cursor, SCAN_BATCH))
        matches = matcher(pattern)
        matching = [name for name in batch if matches(name)]
        with self._lock:
            live = self._entries.live(matching)
        return Batch(live, cursor if len(batch) == SCAN_BATCH else None)

    def facts(self) -> dict[str, Any]:
        """Answer the most it may hold, and how many had to go for that."""
        with self._lock:
            return {"max_entries": self._max_entries, "evicted_entries": self._entries.evicted}

    def names(self) -> list[str]:
        """Answer all names."""
        with self._lock:
            return self._entries.names()

    def clear_expired(self) -> int:
        """Clear up what has expired, and answer how many there were."""
        with self._lock:
            return self._entries.clear_expired()

    def count(self) -> int:
        """Answer how many entries there are, none of them expired."""
        with self._lock:
            self._entries.clear_expired()
            return len(self._entries)


_alive: weakref.WeakSet[InMemoryStore] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[InMemoryStore] = []


def _before_fork() -> None:
    """Have no other thread in the middle of a change: in the child it would never end, and never give the lock back."""
    _forking.acquire()
    _held.extend(_alive)
    for store in _held:
        store.hold()


def _after_fork() -> None:
    for store in _held:
        store.let_go()
    _held.clear()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


async def _at_once(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call what waits for nothing where it stands."""
    return method(*arguments)


class StoredEntries(Mapping[str, dict[str, Any]]):
    """What a manager holds, by key, to look at: copies, and looking is no use."""

    def __init__(self, store: InMemoryStore) -> None:
        self._store = store

    def __getitem__(self, name: str) -> dict[str, Any]:
        body = self._store.peek(name)
        if body is None:
            raise KeyError(name)
        found: dict[str, Any] = decode_value(as_json(body))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names())

    def __len__(self) -> int:
        return self._store.count()


class _InMemory(Shell):
    """What both colours have. The time to live is measured by ``clock``, timestamps by ``wall_clock``."""

    def __init__(
        self,
        ttl: float | None = DEFAULT_TTL_SECONDS,
        *,
        prefix: str = DEFAULT_PREFIX,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._set(ttl=ttl, prefix=prefix, max_bytes=max_bytes, wall_clock=wall_clock)
        self._entries = InMemoryStore(
            self, max_entries=_check_max_entries(max_entries), clock=check_function("clock", clock)
        )

    @property
    def storage(self) -> StoredEntries:
        """All records by key, as they are stored: a view to look at."""
        return StoredEntries(self._entries)

    def _clear_expired_memory(self) -> None:
        """Clear up what has expired. Each write does a part of it, so there is no need to."""
        self._entries.clear_expired()


def _check_max_entries(max_entries: object) -> int:
    if isinstance(max_entries, bool) or not isinstance(max_entries, int) or max_entries < 1:
        raise InvalidInputError("max_entries", f"expected a whole number from 1, got {max_entries!r}")
    return max_entries


class InMemoryManager(_InMemory, WorkingMemoryManager):
    """Working memory in this process, for development, tests and programs of one process.

    ``ttl``: the seconds a record lives after it was last written, None for ever. ``max_entries``: how many records
    there may be; the one used least recently makes way for a new one, and what expired less than a second ago still
    counts. Safe to share between threads, and there in a child of a fork as it was.
    """

    @cached_property
    def store_of_records(self) -> InMemoryStore:
        """Where the records are."""
        return self._entries


class AsyncInMemoryManager(_InMemory, AsyncWorkingMemoryManager):
    """:class:`InMemoryManager` for an event loop."""

    @cached_property
    def store_of_records(self) -> AwaitedStore:
        """Where the records are."""
        return AwaitedStore(self._entries, _at_once)
