"""Records: what a conversation has of one memory type, under one key, and how it becomes bytes.

The bytes are JSON that the original managers read and write too: ``{"data": {"working_memory": ...}, "metadata",
"created_at", "last_update"}``. What they do not know stands beside that, and only where there is something to say:
``data`` is a list where several memories are kept, and a memory has its id, metadata and marks. A record that has marks
would say nothing to the originals: it is MessagePack, which is shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from contract_engine.working_memory.models import ConversationMemoryType

# Structs of msgspec, because thousands are made in one call: they are made a few times as fast as data classes and
# tuples, and the garbage collector need not look at them, since nothing that they hold can hold them. Nobody changes
# one; `msgspec.structs.replace` makes another.


class RecordKey(msgspec.Struct, frozen=True, gc=False):
    """Which record is meant; ``name`` is the key under which a store keeps it."""

    memory_type: ConversationMemoryType
    conversation_id: str
    name: str

    @classmethod
    def under(cls, prefix: str, memory_type: ConversationMemoryType, conversation_id: str) -> RecordKey:
        """Return the key whose name is ``memory:{TYPE}:{conversation_id}`` where the prefix is ``memory``."""
        # A join takes half the time of an f-string.
        return cls(memory_type, conversation_id, ":".join((prefix, memory_type, conversation_id)))

    @classmethod
    def of(cls, name: str, *, prefix: str) -> RecordKey | None:
        """Return whose record has this name, None where it is no record of ours."""
        kind, _, conversation_id = name.removeprefix(f"{prefix}:").partition(":")
        found = ConversationMemoryType.__members__.get(kind)
        if not name.startswith(f"{prefix}:") or not conversation_id or found is None or found != kind:
            return None  # an alias is no name of a type
        return cls(found, conversation_id, name)


class Ttl(Enum):
    """How long a record lives, where nobody said it in seconds."""

    OF_THE_STORE = "the time to live its store was made with"
    AS_BEFORE = "what is left of the one it has: the same contents in another form, by a change"


class Item(msgspec.Struct, gc=False):
    """One memory of a record.

    ``marks`` say what wrappers have done to the text, in the order in which they did it; the last is undone first. A
    wrapper undoes its own mark only, and leaves an item without it alone: that was written when the wrapper was absent.
    """

    text: str
    memory_id: str
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)
    marks: tuple[str, ...] = ()


class Record(msgspec.Struct, gc=False):
    """Everything under one key. Times are ISO 8601.

    ``versions``: earlier contents, oldest first, where a wrapper keeps them; each has no versions of its own.
    ``ttl_seconds``: how long what is written now is to live, None for ever; not part of what is stored. Nor is
    ``left``: the layer that cannot undo what was done to an earlier version, and leaves it as it found it; and why.
    """

    items: tuple[Item, ...]
    metadata: Mapping[str, Any]
    created_at: str
    last_update: str
    versions: tuple[Record, ...] = ()
    ttl_seconds: float | Ttl | None = Ttl.OF_THE_STORE
    left: tuple[object, Exception] | None = None
