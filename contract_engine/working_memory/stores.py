"""Stores: what keeps bytes under names. A manager's layers stand on one; its twin's on one of the other colour.

What a store cannot do now it says in errors of this package; those of its driver do not leave it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from contract_engine.memory.errors import InvalidInputError
from contract_engine.working_memory.records import Ttl

TimeToLive = float | Ttl | None
"""In seconds; None for ever."""

SCAN_BATCH = 500
"""How many names a step of a scan looks at, about."""


Entry = tuple[str, bytes, TimeToLive]
"""A name, the bytes to be kept under it, and for how long."""


class Batch(NamedTuple):
    """A step of a scan. ``cursor`` is for the next step, None where this was the last."""

    names: list[str]
    cursor: Any


class Store(Protocol):
    """A store that blocks. What has expired is not there.

    A method is one round trip or none, but: ``facts`` takes two in Redis, ten thousands of names take one for each ten
    thousand, and ``put`` clears up after itself now and then, and has a transaction begun and committed for
    many entries in PostgreSQL.
    """

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Answer what is kept under the names, in their order."""
        ...

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep all of them, each in place of what was there."""
        ...

    def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """Put ``new`` in place of ``old``, atomically, if that is what is there; None stands for nothing."""
        ...

    def remove(self, names: Sequence[str]) -> int:
        """Remove what is kept under the names, and answer how many there were."""
        ...

    def scan(self, pattern: str, cursor: Any) -> Batch:
        """Answer some of the names that match a glob; ``cursor`` is None in the first step.

        What is there from the first step to the last is seen, at least once; what comes and goes meanwhile may be.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Answer what this kind of store knows of its own size."""
        ...


class AsyncStore(Protocol):
    """The same on an event loop."""

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """:meth:`Store.get`."""
        ...

    async def put(self, entries: Sequence[Entry]) -> None:
        """:meth:`Store.put`."""
        ...

    async def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """:meth:`Store.exchange`."""
        ...

    async def remove(self, names: Sequence[str]) -> int:
        """:meth:`Store.remove`."""
        ...

    async def scan(self, pattern: str, cursor: Any) -> Batch:
        """:meth:`Store.scan`."""
        ...

    async def facts(self) -> dict[str, Any]:
        """:meth:`Store.facts`."""
        ...


class AwaitedStore:
    """A store that blocks, for an event loop; ``perform`` calls its methods there."""

    def __init__(self, store: Store, perform: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._perform = perform

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """:meth:`Store.get`."""
        found: list[bytes | None] = await self._perform(self._store.get, names)
        return found

    async def put(self, entries: Sequence[Entry]) -> None:
        """:meth:`Store.put`."""
        await self._perform(self._store.put, entries)

    async def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """:meth:`Store.exchange`."""
        return bool(await self._perform(self._store.exchange, name, old, new, ttl_seconds))

    async def remove(self, names: Sequence[str]) -> int:
        """:meth:`Store.remove`."""
        return int(await self._perform(self._store.remove, names))

    async def scan(self, pattern: str, cursor: Any) -> Batch:
        """:meth:`Store.scan`; others have their turn after each step, also where the store waits for nothing."""
        batch: Batch = await self._perform(self._store.scan, pattern, cursor)
        await asyncio.sleep(0)
        return batch

    async def facts(self) -> dict[str, Any]:
        """:meth:`Store.facts`."""
        return dict(await self._perform(self._store.facts))


class HasTtl(Protocol):
    """Who knows how long a record lives where nobody said it: a manager, whose ``ttl`` may be set at any time."""

    ttl: float | None


def seconds_to_live(ttl: TimeToLive, owner: HasTtl) -> float | None:
    """Return the seconds, None for ever; :class:`InvalidInputError` where they are not more than 0."""
    return check_ttl(owner.ttl if ttl is Ttl.OF_THE_STORE else ttl)


def check_ttl(ttl: object, field: str = "ttl") -> float | None:
    """Return a time to live if it is None or a number of seconds above 0 and below thirty years."""
    if ttl is None or (type(ttl) is int and 0 < ttl < 10**9):
        return ttl
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < 10**9 or math.isnan(ttl):
        raise InvalidInputError(field, f"expected a number of seconds above 0, or None for ever, got {ttl!r}")
    return ttl
