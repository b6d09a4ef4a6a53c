"""What tests of the wrappers share: real texts, keys, and each wrapper in both colours."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from contract_engine.demo import conversations
from contract_engine.working_memory import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.auditing import AsyncAudited, Audited
from contract_engine.working_memory.compression import AsyncCompressed, Compressed, train_dictionary
from contract_engine.working_memory.encryption import AsyncEncrypted, Encrypted, KeyRing
from contract_engine.working_memory.retrying import AsyncRetrying, Retrying
from contract_engine.working_memory.ttl_strategy import AsyncTTLStrategy, TTLStrategy
from contract_engine.working_memory.versions import AsyncVersioned, Versioned


def memories_by_conversation() -> list[list[str]]:
    """Return texts of about 200 characters, as they were said in each conversation of the demo that has any."""
    found = []
    for conversation in conversations():
        said = [message["content"] for message in conversation["messages"] if message["role"] in ("user", "assistant")]
        texts = textwrap.wrap(" ".join(text for text in said if text), 200)
        found.append([text for text in texts if len(text) > 150])
    return [texts for texts in found if texts]


def memories_of_demo() -> list[str]:
    """Return :func:`memories_by_conversation` in one."""
    return [text for texts in memories_by_conversation() for text in texts]


KEYS = KeyRing({"old": bytes(range(32)), "new": bytes(range(32, 64))}, active="new")
DICTIONARY = train_dictionary(memories_of_demo())

SETTINGS: dict[str, dict[str, Any]] = {
    "Encrypted": {"keys": KEYS},
    "Compressed": {"dictionary": DICTIONARY, "min_chars": 0},
    "TTLStrategy": {"strategies": {"guest": 60, "premium": None}},
    "Versioned": {"keep": 5},
    "Retrying": {"base_seconds": 0.001, "attempts": 10, "deadline_seconds": 60},
    "Audited": {"sink": lambda _: None},
}
"""In the order in which they are best stacked, the innermost first."""
BLOCKING: tuple[Callable[..., WorkingMemoryManager], ...] = (
    Encrypted, Compressed, TTLStrategy, Versioned, Retrying, Audited,
)  # fmt: skip
ASYNCHRONOUS: tuple[Callable[..., AsyncWorkingMemoryManager], ...] = (
    AsyncEncrypted, AsyncCompressed, AsyncTTLStrategy, AsyncVersioned, AsyncRetrying, AsyncAudited,
)  # fmt: skip
NAMES = tuple(SETTINGS)


def stacked(manager: Any, names: tuple[str, ...], **settings: dict[str, Any]) -> Any:
    """Wrap a manager of either colour, the first name innermost; ``settings`` are more of them, by name."""
    makers = BLOCKING if isinstance(manager, WorkingMemoryManager) else ASYNCHRONOUS
    for name in names:
        manager = makers[NAMES.index(name)](manager, **SETTINGS[name], **settings.get(name, {}))
    return manager
