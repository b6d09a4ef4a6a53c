"""The lowest layer: records as the bytes that a store keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from contract_engine.memory.errors import ContentionError, CorruptDataError
from contract_engine.memory.serializer import decode_value, encode_value
from contract_engine.working_memory.layers import Call, Flow
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.stores import AsyncStore, Entry, Store

MAX_ATTEMPTS = 100
"""How often a change is tried again when others were faster; each time, one of them got through."""

_NO_LIMIT = 2**62
_encoder = msgspec.json.Encoder()


class StoredRecords:
    """A layer over a store, of either colour."""

    def __init__(self, store: Store | AsyncStore, *, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """Answer the records; :class:`CorruptDataError` where there are bytes that are none."""
        names = [key.name(self._prefix) for key in keys]
        bodies = yield Call(self._store.get, (names,))
        return [None if body is None else decode_record(body) for body in bodies]

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """Put records in place of what is there."""
        prefix = self._prefix
        entries = [Entry(key.name(prefix), encode_record(record), record.ttl_seconds) for key, record in records]
        yield Call(self._store.put, (entries,))

    def change(self, key: RecordKey, revise: Callable[[Record | None], Record | None]) -> Flow[Record | None]:
        """Put what ``revise`` makes of a record in its place; :class:`ContentionError` after a hundred lost races."""
        name = key.name(self._prefix)
        for _ in range(MAX_ATTEMPTS):
            (old,) = yield Call(self._store.get, ([name],))
            before = None if old is None else decode_record(old)
            after = revise(before)
            if after is before:
                return after
            new = None if after is None else encode_record(after)
            ttl_seconds = None if after is None else after.ttl_seconds
            is_done = yield Call(self._store.exchange, (name, old, new, ttl_seconds))
            if is_done:
                return after
        raise ContentionError(key.conversation_id, MAX_ATTEMPTS)

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """Remove records and answer how many there were."""
        count: int = yield Call(self._store.remove, ([key.name(self._prefix) for key in keys],))
        return count


def encode_record(record: Record) -> bytes:
    """Return the bytes of a record, whose metadata have been found to be JSON."""
    document = _document(record)
    try:
        return _encoder.encode(document)
    except (UnicodeEncodeError, TypeError, OverflowError, msgspec.MsgspecError):  # such as lone surrogates
        return encode_value(document, field="data", max_bytes=_NO_LIMIT)


def decode_record(body: bytes) -> Record:
    """Return the record whose bytes these are; :class:`CorruptDataError` if they are nobody's."""
    return _record(decode_value(body))


def _document(record: Record) -> dict[str, Any]:
    items = [_item_document(item, number) for number, item in enumerate(record.items, 1)]
    document = {
        "data": items[0] if len(items) == 1 else items,
        "metadata": record.metadata,
        "created_at": record.created_at,
        "last_update": record.last_update,
    }
    if record.versions:
        document["versions"] = [_document(version) for version in record.versions]
    return document


def _item_document(item: Item, number: int) -> dict[str, Any]:
    document: dict[str, Any] = {"working_memory": item.text}
    if item.memory_id != str(number):  # an id that was not given is the place in the record
        document["memory_id"] = item.memory_id
    if item.metadata:
        document["metadata"] = item.metadata
    if item.marks:
        document["marks"] = list(item.marks)
    return document


def _record(document: object) -> Record:
    if not isinstance(document, dict):
        raise CorruptDataError("bytes that are not a record")
    data, versions = document.get("data"), document.get("versions", ())
    items = data if isinstance(data, list) else [data]
    return Record(
        tuple(_item(item, number) for number, item in enumerate(items, 1)),
        _metadata(document),
        _text(document, "created_at"),
        _text(document, "last_update"),
        tuple(map(_record, versions)) if isinstance(versions, list) else (),
    )


def _item(document: object, number: int) -> Item:
    if not isinstance(document, dict) or not isinstance(document.get("working_memory"), str):
        raise CorruptDataError("a record whose memories have no text")
    marks = document.get("marks", ())
    return Item(
        document["working_memory"], _text(document, "memory_id") or str(number), _metadata(document), tuple(marks)
    )


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("metadata")
    return found if isinstance(found, dict) else {}


def _text(document: Mapping[str, Any], name: str) -> str:
    found = document.get(name)
    return found if isinstance(found, str) else ""
