"""What a caller hands in, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import (
    MAX_SESSION_ID_CHARS,
    check_limit,
    check_message_id,
    check_query,
    check_session_id,
)
from contract_engine.memory.serializer import encode_text, encode_value
from contract_engine.working_memory.models import ConversationMemoryType, IMemoryInput, IWorkingMemory, RichMemory
from contract_engine.working_memory.records import Item, Record, RecordKey

MAX_BYTES = 1024 * 1024
"""What the texts and metadata of one record may have, where a manager is not told otherwise."""

MAX_BATCH = 100_000
"""How many records one call may store or retrieve."""

RICH_FIELDS = ("importance", "tags")
_NOTHING: dict[str, Any] = {}


def record_key(request: IMemoryInput, prefix: str) -> RecordKey:
    """Return the key of the record that is meant."""
    if not isinstance(request, IMemoryInput):
        raise InvalidInputError("input", f"expected an IMemoryInput, got {type(request).__name__}")
    kind, conversation_id = request.memory_type, request.conversation_id
    if (
        type(kind) is ConversationMemoryType
        and type(conversation_id) is str
        and conversation_id.isprintable()
        and 0 < len(conversation_id) <= MAX_SESSION_ID_CHARS
    ):
        return RecordKey.under(prefix, kind, conversation_id)  # nearly all of them
    return key_of(conversation_id, kind, prefix)


def key_of(conversation_id: object, memory_type: object, prefix: str) -> RecordKey:
    """Return the key of a record; no two of them share a name, since no type has a colon in it."""
    kind = memory_type if type(memory_type) is ConversationMemoryType else _memory_type(memory_type)
    try:
        return RecordKey.under(prefix, kind, check_session_id(conversation_id))
    except InvalidInputError as exc:
        raise InvalidInputError("conversation_id", exc.problem) from None


def new_record(request: IMemoryInput, *, max_bytes: int, now: str) -> Record:
    """Return the record of everything in ``request.data``."""
    data, metadata = request.data, request.metadata
    # Nearly all of them are one short text and nothing else. This is all of the time that a batch takes here.
    if metadata == _NOTHING and request.memory_id is None and type(data) is list and len(data) == 1:
        memory = data[0]
        if type(memory) is IWorkingMemory and memory.metadata == _NOTHING and memory.memory_id is None:
            text: object = memory.working_memory
            if type(text) is str and len(text) * 4 <= max_bytes:
                return Record((Item(text, "1"),), {}, now, now)
    return Record(items(request, max_bytes=max_bytes), dict(metadata) if metadata else {}, now, now)


def items(request: IMemoryInput, *, max_bytes: int) -> tuple[Item, ...]:
    """Return the memories that a request brings; a memory without an id is named after its place."""
    data = request.data
    _check_data(data, request.metadata, max_bytes)
    assert data, "checked"
    if len(data) == 1:
        memory = data[0]
        is_named = memory.memory_id is not None or request.memory_id is not None
        name = _wanted_id(request, memory.memory_id) if is_named else "1"
        return (Item(memory.working_memory, name, dict(memory.metadata) if memory.metadata else {}),)
    if request.memory_id is not None:
        raise InvalidInputError("memory_id", f"names one memory, and there are {len(data)}")
    return _numbered(data)


def metadata_size(metadata: object, field: str, *, max_bytes: int) -> int:
    """Return how many bytes metadata have, None and nothing being the same; they must come back equal from JSON."""
    if metadata is None or metadata == {}:
        return 0
    if not isinstance(metadata, dict):
        raise InvalidInputError(field, f"expected a dict, got {type(metadata).__name__}")
    return len(encode_value(metadata, field=field, max_bytes=max_bytes))


def memory_id(request: IMemoryInput) -> str | None:
    """Return the id of the one memory that is meant, None where all are."""
    return None if request.memory_id is None else _check_memory_id(request.memory_id)


def check_wanted(request: IMemoryInput) -> None:
    """Refuse a retrieval that cannot mean anything."""
    limit = request.limit
    if (
        request.query is None
        and request.filters is None
        and request.memory_id is None
        and type(limit) is int
        and limit >= 0
    ):
        return  # nearly all of them
    memory_id(request)
    if limit is not None:
        check_limit(limit)
    if request.query is not None:
        check_query(request.query)
    filters: object = request.filters
    if not isinstance(filters, dict | None):
        raise InvalidInputError("filters", f"expected a dict, got {type(filters).__name__}")


def check_batch(requests: object) -> Sequence[IMemoryInput]:
    """Return a list of requests; none is fine."""
    if isinstance(requests, str | bytes) or not isinstance(requests, Sequence):
        raise InvalidInputError("inputs", f"expected a list of IMemoryInput, got {type(requests).__name__}")
    if len(requests) > MAX_BATCH:
        raise InvalidInputError("inputs", f"{len(requests):,} at once, at most {MAX_BATCH:,}")
    return requests


def rich_item(memory: RichMemory, name: str, *, max_bytes: int) -> Item:
    """Return what is stored of a rich memory."""
    if not isinstance(memory, RichMemory):
        raise InvalidInputError("memory", f"expected a RichMemory, got {type(memory).__name__}")
    check_importance(memory.importance, "importance")
    tags: object = memory.tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidInputError("tags", "expected a list of texts")
    size = metadata_size(memory.metadata, "metadata", max_bytes=max_bytes)
    size += metadata_size({"tags": memory.tags}, "tags", max_bytes=max_bytes)
    metadata = dict(memory.metadata or {})
    if taken := [field for field in RICH_FIELDS if field in metadata]:
        raise InvalidInputError(f"metadata.{taken[0]}", "has a field of its own")
    size += text_size(memory.content, "content", max_bytes=max_bytes)
    if size > max_bytes:
        raise InvalidInputError("memory", f"{size:,} bytes, at most {max_bytes:,}")
    return Item(memory.content, name, metadata | {"importance": memory.importance, "tags": list(memory.tags)})


def rich_memory(item: Item) -> RichMemory | None:
    """Return a rich memory as it was stored, None where the item is none."""
    metadata: dict[str, Any] = dict(item.metadata)
    importance, tags = metadata.pop("importance", None), metadata.pop("tags", None)
    if isinstance(importance, bool) or not isinstance(importance, int) or not 1 <= importance <= 10:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return None
    return RichMemory(item.text, importance, tags, metadata)


def check_importance(importance: object, field: str) -> int:
    """Return an importance: 1 to 10."""
    if isinstance(importance, bool) or not isinstance(importance, int) or not 1 <= importance <= 10:
        raise InvalidInputError(field, f"expected a whole number from 1 to 10, got {importance!r}")
    return importance


def check_record_size(record: Record, *, max_bytes: int) -> Record:
    """Return a record that has grown, if it has not grown too large; its parts have been checked one by one."""
    size = metadata_size(record.metadata, "metadata", max_bytes=max_bytes)
    for item in record.items:
        size += text_size(item.text, "data", max_bytes=max_bytes)
        size += metadata_size(item.metadata, "data", max_bytes=max_bytes)
    if size > max_bytes:
        raise InvalidInputError("data", f"the record would have {size:,} bytes, at most {max_bytes:,}")
    return record


def check_prefix(prefix: object) -> str:
    """Return a prefix of keys: plain characters, and not one under which another prefix has its records."""
    parts = prefix.split(":") if isinstance(prefix, str) else [""]
    plain = all(part and part.isascii() and part.replace("-", "").replace("_", "").isalnum() for part in parts)
    if not plain or len(":".join(parts)) > 64:
        raise InvalidInputError(
            "prefix", "expected at most 64 letters, digits, dashes and underscores, and colons between"
        )
    if taken := set(parts).intersection(ConversationMemoryType):
        raise InvalidInputError("prefix", f"{min(taken)} is the name of a type of memory")
    return ":".join(parts)


def check_max_bytes(max_bytes: object) -> int:
    """Return a limit of bytes."""
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or not 0 < max_bytes <= 2**29:
        raise InvalidInputError("max_bytes", f"expected a whole number from 1 to 536,870,912, got {max_bytes!r}")
    return max_bytes


def timestamp(at_seconds: float) -> str:
    """Return a time since 1970 as ISO 8601, UTC."""
    seconds = int(at_seconds // 1)
    microseconds = int((at_seconds - seconds) * 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}+00:00" if microseconds else f"{_second(seconds)}+00:00"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    # Most of what is written in a second needs it: the calendar takes as long as all other checks together.
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def text_size(text: object, field: str, *, max_bytes: int) -> int:
    """Return how many bytes a text has; refuse it where it is too large, and what is no text."""
    if not isinstance(text, str):
        raise InvalidInputError(field, f"expected a text, got {type(text).__name__}")
    size = len(text) if text.isascii() or len(text) > max_bytes else len(encode_text(text))
    if size > max_bytes:
        raise InvalidInputError(field, f"{size:,} bytes, at most {max_bytes:,}")
    return size


def _check_data(data: object, metadata: object, max_bytes: int) -> None:
    if not isinstance(data, list | tuple | None):
        raise InvalidInputError("data", f"expected a list of IWorkingMemory, got {type(data).__name__}")
    if not data:
        raise InvalidInputError("data", "no data provided: expected at least one IWorkingMemory")
    size = metadata_size(metadata, "metadata", max_bytes=max_bytes)
    for number, memory in enumerate(data):
        size += _size(memory, f"data[{number}]", max_bytes=max_bytes)
    if size > max_bytes:
        raise InvalidInputError("data", f"{size:,} bytes with the metadata, at most {max_bytes:,}")


def _size(memory: object, field: str, *, max_bytes: int) -> int:
    if not isinstance(memory, IWorkingMemory):
        raise InvalidInputError(field, f"expected an IWorkingMemory, got {type(memory).__name__}")
    size = text_size(memory.working_memory, f"{field}.working_memory", max_bytes=max_bytes)
    return size + metadata_size(memory.metadata, f"{field}.metadata", max_bytes=max_bytes)


def _memory_type(value: object) -> ConversationMemoryType:
    found = ConversationMemoryType.__members__.get(value) if isinstance(value, str) else None
    if found is None:
        known = ", ".join(ConversationMemoryType)
        raise InvalidInputError("memory_type", f"unknown type {value!r}; known are {known}"[:300])
    return found


def _wanted_id(request: IMemoryInput, own: str | None) -> str:
    wanted = memory_id(request)
    if own is not None and wanted not in (None, own):
        raise InvalidInputError("memory_id", f"{wanted!r} is asked for, and the memory is {own!r}")
    return _check_memory_id(wanted if own is None else own)


def _check_memory_id(value: object) -> str:
    try:
        return check_message_id(value)
    except InvalidInputError as exc:
        raise InvalidInputError("memory_id", exc.problem) from None


def _numbered(data: Sequence[IWorkingMemory]) -> tuple[Item, ...]:
    given = [_check_memory_id(memory.memory_id) for memory in data if memory.memory_id is not None]
    taken = set(given)
    if len(taken) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise InvalidInputError("memory_id", f"{twice!r} is given to more than one memory")
    found = []
    for number, memory in enumerate(data, 1):
        name = memory.memory_id
        if name is None:
            name = free_id(taken, number)
            taken.add(name)
        found.append(Item(memory.working_memory, name, dict(memory.metadata or {})))
    return tuple(found)


def free_id(taken: set[str], number: int) -> str:
    """Return the first number from this one that is no id yet."""
    while str(number) in taken:
        number += 1
    return str(number)
