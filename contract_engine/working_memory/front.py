"""What a manager does, over whatever layers it has: one flow for each of its methods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from contract_engine.memory.errors import InvalidInputError, StoreUnavailableError
from contract_engine.working_memory import intake
from contract_engine.working_memory.errors import UnreadableMemoryError
from contract_engine.working_memory.layers import Call, Flow, Layer
from contract_engine.working_memory.models import ConversationMemoryType, IMemoryInput, IWorkingMemory, RichMemory
from contract_engine.working_memory.patterns import check_pattern
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.selection import check_marks, select
from contract_engine.working_memory.stores import AsyncStore, Store

logger = logging.getLogger(__name__)

Progress = Callable[[int], object]
"""Is told, after each batch, how many records have been removed so far."""


@dataclass(frozen=True, slots=True)
class Front:
    """The flows of a manager. ``clock`` gives seconds since 1970."""

    layer: Layer
    store: Store | AsyncStore
    prefix: str
    max_bytes: int
    clock: Callable[[], float]

    def store_one(self, request: IMemoryInput) -> Flow[str]:
        key = intake.record_key(request, self.prefix)
        record = intake.new_record(request, max_bytes=self.max_bytes, now=self._now())
        yield from self.layer.write([(key, record)])
        return key.name

    def store_many(self, requests: Sequence[IMemoryInput]) -> Flow[list[str]]:
        now, max_bytes = self._now(), self.max_bytes
        records = [
            (intake.record_key(request, self.prefix), intake.new_record(request, max_bytes=max_bytes, now=now))
            for request in intake.check_batch(requests)
        ]
        if records:
            yield from self.layer.write(records)
        return [key.name for key, _ in records]

    def retrieve(self, request: IMemoryInput) -> Flow[list[IWorkingMemory]]:
        key = intake.record_key(request, self.prefix)
        intake.check_wanted(request)
        (record,) = yield from self.layer.read([key])
        return [] if record is None else select(record, request, key.name)

    def retrieve_many(self, requests: Sequence[IMemoryInput]) -> Flow[list[list[IWorkingMemory]]]:
        keys = [intake.record_key(request, self.prefix) for request in intake.check_batch(requests)]
        for request in requests:
            intake.check_wanted(request)
        if not keys:
            return []
        records = yield from self.layer.read(keys)
        return [
            [] if record is None else select(record, request, key.name)
            for key, record, request in zip(keys, records, requests, strict=True)
        ]

    def retrieve_safe(self, request: IMemoryInput) -> Flow[list[IWorkingMemory]]:
        try:
            return (yield from self.retrieve(request))
        except StoreUnavailableError as exc:
            logger.warning("no memories of %s: %s", request.conversation_id, type(exc).__name__)
            return []

    def update(self, request: IMemoryInput) -> Flow[None]:
        key = intake.record_key(request, self.prefix)
        items = intake.items(request, max_bytes=self.max_bytes)
        wanted, metadata, now = intake.memory_id(request), dict(request.metadata or {}), self._now()
        is_named = wanted is not None or len(items) > 1 or request.data[0].memory_id is not None  # type: ignore[index]

        def revise(record: Record | None) -> Record | None:
            if record is None:
                return None
            check_marks(record, key.name)
            if is_named or len(record.items) > 1:
                mine = _revised(record.items, items, wanted)
            else:  # the only memory, whatever its id
                mine = (_merged(record.items[0], items[0]),)
            if mine is None:
                return record
            revised = replace(record, items=mine, metadata={**record.metadata, **metadata}, last_update=now)
            return intake.check_record_size(revised, max_bytes=self.max_bytes)

        yield from self.layer.change(key, revise)

    def delete(self, request: IMemoryInput) -> Flow[None]:
        key = intake.record_key(request, self.prefix)
        wanted, now = intake.memory_id(request), self._now()
        if wanted is None:
            yield from self.layer.remove([key])
            return

        def revise(record: Record | None) -> Record | None:
            if record is None:
                return None
            left = tuple(item for item in record.items if item.memory_id != wanted)
            if len(left) == len(record.items):
                return record
            return replace(record, items=left, last_update=now) if left else None

        yield from self.layer.change(key, revise)

    def store_rich(self, conversation_id: str, memory: RichMemory, memory_type: ConversationMemoryType) -> Flow[str]:
        key, now = intake.key_of(conversation_id, memory_type, self.prefix), self._now()
        checked = intake.rich_item(memory, "1", max_bytes=self.max_bytes)

        def revise(record: Record | None) -> Record:
            if record is None:
                return Record((checked,), {}, now, now)
            check_marks(record, key.name)
            name = intake.free_id({item.memory_id for item in record.items}, len(record.items) + 1)
            grown = replace(record, items=(*record.items, replace(checked, memory_id=name)), last_update=now)
            return intake.check_record_size(grown, max_bytes=self.max_bytes)

        yield from self.layer.change(key, revise)
        return key.name

    def important(
        self, conversation_id: str, min_importance: int, memory_type: ConversationMemoryType
    ) -> Flow[list[RichMemory]]:
        key = intake.key_of(conversation_id, memory_type, self.prefix)
        least = intake.check_importance(min_importance, "min_importance")
        (record,) = yield from self.layer.read([key])
        if record is None:
            return []
        check_marks(record, key.name)
        found = (intake.rich_memory(item) for item in record.items)
        return [memory for memory in found if memory is not None and memory.importance >= least]

    def history(self, conversation_id: str, memory_type: ConversationMemoryType) -> Flow[list[dict[str, Any]]]:
        key = intake.key_of(conversation_id, memory_type, self.prefix)
        (record,) = yield from self.layer.read([key])
        versions = record.versions if record else ()
        try:
            for version in versions:
                check_marks(version, key.name)
        except UnreadableMemoryError as exc:
            exc.readable = tuple(version.last_update for version in versions if version.left is None)
            raise
        return [
            {
                "timestamp": version.last_update,
                "content": version.items[0].text,
                "memories": [item.text for item in version.items],
                "metadata": dict(version.metadata),
            }
            for version in versions
        ]

    def restore(self, conversation_id: str, memory_type: ConversationMemoryType, timestamp: str) -> Flow[None]:
        key, now = intake.key_of(conversation_id, memory_type, self.prefix), self._now()

        def revise(record: Record | None) -> Record:
            versions = record.versions if record else ()
            chosen = next((version for version in reversed(versions) if version.last_update == timestamp), None)
            if record is None or chosen is None:
                raise InvalidInputError("timestamp", f"there is no version of {timestamp!r}; see get_memory_history()")
            check_marks(chosen, key.name)
            return replace(record, items=chosen.items, metadata=chosen.metadata, last_update=now)

        yield from self.layer.change(key, revise)

    def cleanup(self, pattern: str, *, everything: bool, progress: Progress | None) -> Flow[int]:
        check_pattern(pattern, self.prefix, everything=everything)
        removed, cursor = 0, None
        while True:
            names, cursor = yield Call(self.store.scan, (pattern, cursor))
            keys = self._keys(names)
            if keys:
                removed += yield from self.layer.remove(keys)
                if progress is not None:
                    progress(removed)
            if cursor is None:
                return removed

    def stats(self) -> Flow[dict[str, Any]]:
        cursor, seen = None, {kind: set[str]() for kind in ConversationMemoryType}
        while True:
            names, cursor = yield Call(self.store.scan, (f"{self.prefix}:*", cursor))
            for key in self._keys(names):
                seen[key.memory_type].add(key.conversation_id)
            if cursor is None:
                break
        counts = {str(kind): len(ids) for kind, ids in seen.items()}
        facts = yield Call(self.store.facts)
        return {"total_entries": sum(counts.values()), "entries_by_type": counts, "prefix": self.prefix, **facts}

    def _keys(self, names: Sequence[str]) -> list[RecordKey]:
        """Return whose records have these names; those that are no records of ours are left out."""
        keys = (RecordKey.of(name, prefix=self.prefix) for name in names)
        return [key for key in keys if key is not None]

    def _now(self) -> str:
        return intake.timestamp(self.clock())


def _revised(old: tuple[Item, ...], new: tuple[Item, ...], wanted: str | None) -> tuple[Item, ...] | None:
    """Return the memories after an update, None where the wanted one is not there.

    Metadata that are not given again stay: those of the record, and of a memory that keeps its id.
    """
    before = {item.memory_id: item for item in old}
    if wanted is not None:
        if wanted not in before:
            return None
        return tuple(_merged(item, new[0]) if item.memory_id == wanted else item for item in old)
    return tuple(_merged(before[item.memory_id], item) if item.memory_id in before else item for item in new)


def _merged(old: Item, new: Item) -> Item:
    return replace(new, memory_id=old.memory_id, metadata={**old.metadata, **new.metadata})
