"""Managers: one flow for each method, in two colours.

Whoever derives from them gives ``store_of_records``, of its own colour; a wrapper gives ``layer`` too.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

from contract_engine.working_memory.front import Front, Progress
from contract_engine.working_memory.intake import MAX_BYTES, check_max_bytes, check_prefix
from contract_engine.working_memory.layers import Layer, run, run_async
from contract_engine.working_memory.models import ConversationMemoryType, IMemoryInput, IWorkingMemory, RichMemory
from contract_engine.working_memory.settings import check_function
from contract_engine.working_memory.stored_records import StoredRecords
from contract_engine.working_memory.stores import AsyncStore, Store, check_ttl

DEFAULT_PREFIX = "memory"
DEFAULT_TTL_SECONDS = 12 * 3600
WORKING = ConversationMemoryType.WORKING_MEMORY


class Shell(ABC):
    """What both colours are made of. All of it has a default, so that a subclass may do without ``super().__init__``.

    ``prefix``: what the keys of all records begin with. ``ttl``: the seconds a record lives after it was last written,
    None for ever; it may be set at any time and counts from the next write. ``max_bytes``: what the texts and metadata
    of one record may have.
    """

    prefix: str = DEFAULT_PREFIX
    ttl: float | None = DEFAULT_TTL_SECONDS
    max_bytes: int = MAX_BYTES
    wall_clock: Callable[[], float] = staticmethod(time.time)

    def _set(self, *, ttl: float | None, prefix: str, max_bytes: int, wall_clock: Callable[[], float]) -> None:
        """Take what every manager is told, if it is what it should be."""
        self.ttl = check_ttl(ttl)
        self.prefix = check_prefix(prefix)
        self.max_bytes = check_max_bytes(max_bytes)
        self.wall_clock = check_function("wall_clock", wall_clock)

    @property
    @abstractmethod
    def store_of_records(self) -> Store | AsyncStore:
        """Where the records are kept in the end."""

    @cached_property
    def layer(self) -> Layer:
        """What the records go through; a wrapper is a layer over the one of the manager in it."""
        return StoredRecords(self.store_of_records)

    @cached_property
    def _front(self) -> Front:
        return Front(self.layer, self.store_of_records, self.prefix, self.max_bytes, self.wall_clock)


class WorkingMemoryManager(Shell):
    """What an agent keeps of its conversations: one record for each conversation and type of memory.

    Bad input is an :class:`InvalidInputError`, which is a ``ValueError``, before anything is written. A store that
    cannot be reached is a :class:`StoreUnavailableError`, which is a ``ConnectionError``, and never an empty answer.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this manager has opened; it opens again at the next call."""

    def store(self, input: IMemoryInput) -> str:
        """Keep all memories of ``input.data`` in place of what the record had, and return its key.

        A memory without an id gets its number in the list for one.
        """
        return run(self._front.store_one(input))

    def store_many(self, inputs: Sequence[IMemoryInput]) -> list[str]:
        """Do :meth:`store` for many records in one round trip, and return their keys. One bad input refuses all.

        In Redis it is one for each 10,000; where one of them fails, those before it are stored. In PostgreSQL it is a
        transaction, whose begin and commit take one each. Where there is a :class:`Versioned` each record is a change
        of its own.
        """
        return run(self._front.store_many(inputs))

    def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """Return the memories of a record, as ``limit`` (5), ``query``, ``filters`` and ``memory_id`` say.

        With a query, only those that share a word with it, the best first; else in the order they were stored.
        """
        return run(self._front.retrieve(input))

    def retrieve_many(self, inputs: Sequence[IMemoryInput]) -> list[list[IWorkingMemory]]:
        """Do :meth:`retrieve` for many records in one round trip, in a database one for each 10,000."""
        return run(self._front.retrieve_many(inputs))

    def retrieve_safe(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """Do :meth:`retrieve`, and return an empty list where the store cannot be reached, which is logged.

        For an agent that would rather go on without memory. Do not store what follows from such an answer.
        """
        return run(self._front.retrieve_safe(input))

    def update(self, input: IMemoryInput) -> None:
        """Replace the memories of a record, or the one of ``memory_id``; atomic, and creates nothing.

        Metadata that are not given again stay, and so does ``created_at``; the time to live begins anew.
        """
        run(self._front.update(input))

    def delete(self, input: IMemoryInput) -> None:
        """Delete a record, or the one memory of ``memory_id``; nothing happens where it is not there."""
        run(self._front.delete(input))

    def store_rich(
        self, conversation_id: str, memory: RichMemory, memory_type: ConversationMemoryType = WORKING
    ) -> str:
        """Add a rich memory to what the record has, atomically, and return its key.

        It is retrieved like any other too, with ``importance`` and ``tags`` in its metadata.
        """
        return run(self._front.store_rich(conversation_id, memory, memory_type))

    def get_important_memories(
        self, conversation_id: str, min_importance: int = 7, *, memory_type: ConversationMemoryType = WORKING
    ) -> list[RichMemory]:
        """Return the rich memories of at least this importance, in the order they were stored."""
        return run(self._front.important(conversation_id, min_importance, memory_type))

    def get_memory_history(
        self, conversation_id: str, memory_type: ConversationMemoryType = WORKING
    ) -> list[dict[str, Any]]:
        """Return the earlier contents of a record, oldest first; none without a wrapper that keeps them.

        Each has ``timestamp``, ``content`` (of the first memory), ``memories`` and ``metadata``. Where one of them
        cannot be read its error says which of the others can be restored.
        """
        return run(self._front.history(conversation_id, memory_type))

    def restore_version(
        self, conversation_id: str, memory_type: ConversationMemoryType = WORKING, *, timestamp: str
    ) -> None:
        """Make the earlier contents of this ``timestamp`` the present ones, atomically.

        :class:`InvalidInputError` where there are none: the history may have moved on.
        """
        run(self._front.restore(conversation_id, memory_type, timestamp))

    def cleanup(self, pattern: str, *, everything: bool = False, progress: Progress | None = None) -> int:
        """Remove the records whose keys match a glob (``memory:*:user-7-*``), and return how many there were.

        In batches, so that nobody waits for long; ``progress`` is told after each how many are gone so far. A pattern
        that may match every conversation, as sets of characters do, is refused unless ``everything``. Keys that are no
        records are left alone.
        """
        return run(self._front.cleanup(pattern, everything=everything, progress=progress))

    def storage_stats(self) -> dict[str, Any]:
        """Return ``total_entries``, ``entries_by_type``, ``prefix`` and what the store knows of its size.

        Looks at every key, in batches.
        """
        return run(self._front.stats())

    async def store_async(self, input: IMemoryInput) -> str:
        """Do :meth:`store` in a thread."""
        return await asyncio.to_thread(self.store, input)

    async def retrieve_async(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """Do :meth:`retrieve` in a thread."""
        return await asyncio.to_thread(self.retrieve, input)

    async def update_async(self, input: IMemoryInput) -> None:
        """Do :meth:`update` in a thread."""
        await asyncio.to_thread(self.update, input)

    async def delete_async(self, input: IMemoryInput) -> None:
        """Do :meth:`delete` in a thread."""
        await asyncio.to_thread(self.delete, input)


class AsyncWorkingMemoryManager(Shell):
    """:class:`WorkingMemoryManager` for an event loop."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """:meth:`WorkingMemoryManager.close`."""

    async def store(self, input: IMemoryInput) -> str:
        """:meth:`WorkingMemoryManager.store`."""
        return await run_async(self._front.store_one(input))

    async def store_many(self, inputs: Sequence[IMemoryInput]) -> list[str]:
        """:meth:`WorkingMemoryManager.store_many`."""
        return await run_async(self._front.store_many(inputs))

    async def retrieve(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """:meth:`WorkingMemoryManager.retrieve`."""
        return await run_async(self._front.retrieve(input))

    async def retrieve_many(self, inputs: Sequence[IMemoryInput]) -> list[list[IWorkingMemory]]:
        """:meth:`WorkingMemoryManager.retrieve_many`."""
        return await run_async(self._front.retrieve_many(inputs))

    async def retrieve_safe(self, input: IMemoryInput) -> list[IWorkingMemory]:
        """:meth:`WorkingMemoryManager.retrieve_safe`."""
        return await run_async(self._front.retrieve_safe(input))

    async def update(self, input: IMemoryInput) -> None:
        """:meth:`WorkingMemoryManager.update`."""
        await run_async(self._front.update(input))

    async def delete(self, input: IMemoryInput) -> None:
        """:meth:`WorkingMemoryManager.delete`."""
        await run_async(self._front.delete(input))

    async def store_rich(
        self, conversation_id: str, memory: RichMemory, memory_type: ConversationMemoryType = WORKING
    ) -> str:
        """:meth:`WorkingMemoryManager.store_rich`."""
        return await run_async(self._front.store_rich(conversation_id, memory, memory_type))

    async def get_important_memories(
        self, conversation_id: str, min_importance: int = 7, *, memory_type: ConversationMemoryType = WORKING
    ) -> list[RichMemory]:
        """:meth:`WorkingMemoryManager.get_important_memories`."""
        return await run_async(self._front.important(conversation_id, min_importance, memory_type))

    async def get_memory_history(
        self, conversation_id: str, memory_type: ConversationMemoryType = WORKING
    ) -> list[dict[str, Any]]:
        """:meth:`WorkingMemoryManager.get_memory_history`."""
        return await run_async(self._front.history(conversation_id, memory_type))

    async def restore_version(
        self, conversation_id: str, memory_type: ConversationMemoryType = WORKING, *, timestamp: str
    ) -> None:
        """:meth:`WorkingMemoryManager.restore_version`."""
        await run_async(self._front.restore(conversation_id, memory_type, timestamp))

    async def cleanup(self, pattern: str, *, everything: bool = False, progress: Progress | None = None) -> int:
        """:meth:`WorkingMemoryManager.cleanup`."""
        return await run_async(self._front.cleanup(pattern, everything=everything, progress=progress))

    async def storage_stats(self) -> dict[str, Any]:
        """:meth:`WorkingMemoryManager.storage_stats`."""
        return await run_async(self._front.stats())
