"""What goes into a working-memory manager and what comes out: the names and shapes programs already use.

They are plain mutable objects without checks of their own; a manager checks what it is given before it writes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from contract_engine.memory.errors import InvalidInputError

_SECTIONS = {
    "USER CONTEXT": "Nothing is known about the user yet.",
    "CONVERSATION FLOW": "The conversation has just begun.",
    "CURRENT FOCUS": "The first message of the user will set it.",
    "INTERACTION TONE": "Neutral and professional, until the user shows a preference.",
}


class ConversationMemoryType(StrEnum):
    """Which memory of a conversation is meant; each is kept apart. The value is the name."""

    SHORT_TERM_MEMORY = "SHORT_TERM_MEMORY"
    LONG_TERM_MEMORY = "LONG_TERM_MEMORY"
    WORKING_MEMORY = "WORKING_MEMORY"
    WORKING = "WORKING_MEMORY"


@dataclass(slots=True)
class IWorkingMemory:
    """One memory: a text, and what is known about it.

    A caller gives ``metadata`` and, to name the memory, ``memory_id``. Retrieved ones carry all fields: the metadata of
    the record and of the memory in one, and when the record was stored and last updated (ISO 8601, UTC).
    """

    working_memory: str
    metadata: dict[str, Any] = field(default_factory=dict)
    memory_id: str | None = None
    created_at: str | None = None
    last_update: str | None = None

    @classmethod
    def initialize_memory(cls) -> Self:
        """Return the memory of a conversation that has not begun: four headed sections for a model to rewrite."""
        return cls("\n\n".join(f"### {head}:\n{text}" for head, text in _SECTIONS.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"working_memory": text}``, the form that is stored."""
        return {"working_memory": self.working_memory}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote; :class:`InvalidInputError` where there is no text."""
        given: object = data
        text = given.get("working_memory") if isinstance(given, Mapping) else None
        if not isinstance(text, str):
            raise InvalidInputError("working_memory", f"expected a text, got {type(text).__name__}")
        return cls(text)


@dataclass(slots=True)
class IMemoryItem:
    """A message of a conversation, for programs that keep them beside the working memory."""

    role: str
    content: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RichMemory:
    """A memory with what it is worth: ``importance`` from 1 to 10, and tags."""

    content: str
    importance: int = 5
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class IMemoryInput:
    """What one operation is about.

    ``data``: the memories to store, or to put in place of what is there.
    ``query``: retrieve those in which its words stand, best first. ``filters``: those whose metadata have these values.
    ``memory_id``: the one memory that is meant, for retrieve, update and delete; without it all of the record.
    ``limit``: at most so many; None for all.
    ``metadata``: of the record, which a retrieved memory carries.
    """

    conversation_id: str
    memory_type: ConversationMemoryType = ConversationMemoryType.SHORT_TERM_MEMORY
    data: list[IWorkingMemory] | None = None
    query: str | None = None
    memory_id: str | None = None
    limit: int | None = 5
    filters: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class IMemoryConfig:
    """Settings for each kind of memory, as keyword arguments of its manager."""

    working_memory: dict[str, Any] | None = None
    short_term_memory: dict[str, Any] | None = None
    long_term_memory: dict[str, Any] | None = None
