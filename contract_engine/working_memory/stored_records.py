"""The lowest layer: records as the bytes that a store keeps."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec

from contract_engine.memory.errors import ContentionError, CorruptDataError
from contract_engine.memory.serializer import UNREADABLE, decode_value, encode_value
from contract_engine.working_memory.layers import Call, Flow, Pause
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.stores import AsyncStore, Store

MAX_ATTEMPTS = 250
"""How often a change is tried when others were faster; each time, one of them got through."""

AT_ONCE = 3
PAUSE_SECONDS = 0.001
MAX_PAUSE_SECONDS = 0.05
"""After so many attempts in a row a change waits: by chance, the longer the more often it has lost."""

_NO_LIMIT = 2**62


class _StoredItem(msgspec.Struct, omit_defaults=True, gc=False):
    """One memory as JSON; what is not there is as it is here."""

    working_memory: str
    memory_id: str = ""
    metadata: dict[str, Any] | None = None
    marks: list[str] = []  # a list, as all that is JSON has to be; each gets one of its own


class _StoredRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """A record as JSON. One memory stands alone, as the originals wrote it; several are a list.

    ``change`` is the name of the change that made it: two that make the same of a record make other bytes, so what a
    store finds there is only taken for the work of a call that is sent again where it is.
    """

    data: _StoredItem | list[_StoredItem]
    metadata: dict[str, Any] | None = None
    created_at: str | None = None
    last_update: str | None = None
    versions: list[_StoredRecord] = []
    change: str = ""


class _PackedItem(msgspec.Struct, array_like=True, gc=False):
    """A memory of a packed record; where a wrapper made base64 of its text, ``data`` has the bytes instead."""

    data: bytes
    text: str
    marks: list[str]
    memory_id: str
    metadata: dict[str, Any] | None


class _PackedRecord(msgspec.Struct, array_like=True, gc=False):
    """A record in which wrappers have made something else of texts, as MessagePack: nobody reads it as it is.

    Without names of fields, and with one time where it was never changed, it has half of the bytes that JSON takes.
    """

    items: list[_PackedItem]
    metadata: dict[str, Any] | None
    created_at: str
    last_update: str
    versions: list[_PackedRecord]
    change: str


def _plain(value: Any) -> Any:
    """Return the text or number that one of a class of its own is; msgspec asks for what it does not know."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_packer = msgspec.msgpack.Encoder(enc_hook=_plain)
_unpacker = msgspec.msgpack.Decoder(_PackedRecord)
_decoder = msgspec.json.Decoder(_StoredRecord)
_PACKED_HEAD = b"\x96"
"""An array of six in MessagePack; no JSON begins like that."""

_PLAIN_HEAD = b'{"data":{"working_memory":'


class StoredRecords:
    """A layer over a store, of either colour."""

    def __init__(self, store: Store | AsyncStore, *, chance: Callable[[], float] = random.random) -> None:
        self._store = store
        self._chance = chance

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """Answer the records; :class:`CorruptDataError` where there are bytes that are none."""
        names = [key.name for key in keys]
        bodies = yield Call(self._store.get, (names,))
        return [None if body is None else _decoded(key, body) for key, body in zip(keys, bodies, strict=True)]

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """Put records in place of what is there."""
        entries = [(key.name, encode_record(record), record.ttl_seconds) for key, record in records]
        yield Call(self._store.put, (entries,))

    def change(self, key: RecordKey, revise: Callable[[Record | None], Record | None]) -> Flow[Record | None]:
        """Put what ``revise`` makes of a record in its place; :class:`ContentionError` where it loses every race."""
        name, change = key.name, f"{random.getrandbits(64):016x}"
        for attempt in range(MAX_ATTEMPTS):
            if attempt >= AT_ONCE:
                yield Pause(min(PAUSE_SECONDS * attempt, MAX_PAUSE_SECONDS) * self._chance())
            (old,) = yield Call(self._store.get, ([name],))
            before = None if old is None else _decoded(key, old)
            after = revise(before)
            if after is before:
                return after
            new = None if after is None else encode_record(after, change=change)
            ttl_seconds = None if after is None else after.ttl_seconds
            is_done = yield Call(self._store.exchange, (name, old, new, ttl_seconds))
            if is_done:
                return after
        raise ContentionError(key.conversation_id, MAX_ATTEMPTS)

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """Remove records and answer how many there were."""
        count: int = yield Call(self._store.remove, ([key.name for key in keys],))
        return count


def encode_record(record: Record, *, change: str = "") -> bytes:
    """Return the bytes of a record, whose metadata have been found to be JSON."""
    try:
        now, items = record.last_update, record.items
        # Nearly every store brings one new text with nothing to it.
        if not (change or record.metadata or record.versions) and len(items) == 1 and record.created_at == now:
            item = items[0]
            if item.memory_id == "1" and not (item.metadata or item.marks):
                return _PLAIN_HEAD + _encoder.encode(item.text) + _plain_tail(now)
        if any(item.marks for each in (record, *record.versions) for item in each.items):
            with suppress(UnicodeEncodeError, OverflowError):  # lone surrogates and numbers that JSON alone can hold
                return _packer.encode(_packed(record, change))
        return _encoder.encode(_stored(record, change))
    except UnicodeEncodeError:  # lone surrogates
        stored = msgspec.to_builtins(_stored(record, change), enc_hook=_plain)
        return encode_value(stored, field="data", max_bytes=_NO_LIMIT)


def decode_record(body: bytes) -> Record:
    """Return the record whose bytes these are; :class:`CorruptDataError` if they are nobody's."""
    if body.startswith(_PACKED_HEAD):
        try:
            return _unpacked(_unpacker.decode(body))
        except UNREADABLE as exc:
            raise CorruptDataError("bytes that are not a record") from exc
    try:
        return _record(_decoder.decode(body))
    except UNREADABLE:
        pass
    try:
        return _record(msgspec.convert(decode_value(body), _StoredRecord))
    except UNREADABLE as exc:
        raise CorruptDataError("bytes that are not a record") from exc


def _decoded(key: RecordKey, body: bytes) -> Record:
    """Return the record of a key; whoever has to look what is wrong with it is told which one it is."""
    try:
        return decode_record(body)
    except CorruptDataError as exc:
        raise CorruptDataError(f"{key.memory_type}:{key.conversation_id}: {exc}") from exc


def as_json(body: bytes) -> bytes:
    """Return the bytes of a record as JSON, also where they are packed."""
    return _encoder.encode(_stored(decode_record(body))) if body.startswith(_PACKED_HEAD) else body


@lru_cache(maxsize=16)
def _plain_tail(now: str) -> bytes:
    """Return what stands behind the text of a plain record: the same in a whole batch."""
    return b"}," + _encoder.encode({"metadata": {}, "created_at": now, "last_update": now})[1:]


def _stored(record: Record, change: str = "") -> _StoredRecord:
    items = record.items
    data: _StoredItem | list[_StoredItem]
    if len(items) == 1:
        (item,) = items
        data = _stored_item(item, "1")
    else:
        data = [_stored_item(item, str(number)) for number, item in enumerate(items, 1)]
    stored = _StoredRecord(data, record.metadata, record.created_at, record.last_update)  # type: ignore[arg-type]  # dicts
    if record.versions:
        stored.versions = [_stored(version) for version in record.versions]
    stored.change = change
    return stored


def _stored_item(item: Item, place: str) -> _StoredItem:
    stored = _StoredItem(item.text)
    if item.memory_id != place:  # an id that was not given is the place in the record
        stored.memory_id = item.memory_id
    if item.metadata:
        stored.metadata = item.metadata  # type: ignore[assignment]  # dicts
    if item.marks:
        stored.marks = list(item.marks)
    return stored


def _record(stored: _StoredRecord) -> Record:
    data = stored.data if isinstance(stored.data, list) else [stored.data]
    if not data:  # a manager stores a memory at least, and removes a record with the last one
        raise CorruptDataError("a record without a memory")
    return Record(
        tuple([_item(item, number) for number, item in enumerate(data, 1)]),
        stored.metadata or {},
        stored.created_at or "",
        stored.last_update or "",
        tuple([_record(version) for version in stored.versions]),
    )


def _item(stored: _StoredItem, number: int) -> Item:
    return Item(stored.working_memory, stored.memory_id or str(number), stored.metadata or {}, tuple(stored.marks))


def _packed(record: Record, change: str = "") -> _PackedRecord:
    return _PackedRecord(
        [_packed_item(item) for item in record.items],
        record.metadata or None,  # type: ignore[arg-type]  # dicts
        record.created_at,
        "" if record.last_update == record.created_at else record.last_update,
        [_packed(version) for version in record.versions],
        change,
    )


def _packed_item(item: Item) -> _PackedItem:
    data, text = b"", item.text
    if item.marks:
        with suppress(ValueError):
            data = base64.b64decode(text, validate=True)
            text = "" if _base64(data) == text else text
    metadata: Any = item.metadata or None
    return _PackedItem(b"" if text else data, text, list(item.marks), item.memory_id, metadata)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unpacked(packed: _PackedRecord) -> Record:
    if not packed.items:
        raise CorruptDataError("a record without a memory")
    items = [
        Item(
            item.text or _base64(item.data),
            item.memory_id,
            item.metadata or {},
            tuple(item.marks),
        )
        for item in packed.items
    ]
    versions = tuple([_unpacked(version) for version in packed.versions])
    last_update = packed.last_update or packed.created_at
    return Record(tuple(items), packed.metadata or {}, packed.created_at, last_update, versions)
