"""The Lua scripts, and the calls that carry their arguments in the order their headers state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from contract_engine.memory._effects import Command, Script
from contract_engine.memory.config import SessionLimits
from contract_engine.memory.keys import SessionKeys


def _read(name: str) -> str:
    return (resources.files("contract_engine.memory") / "lua" / f"{name}.lua").read_text("utf-8")


def _load(name: str) -> Script:
    source = _read(name).replace("-- include _header\n", _read("_header"))
    # SHA-1 is not a choice made here: it is how Redis names a script.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


NAMES = (
    "append",
    "append_unlogged",
    "assign",
    "claim",
    "commit",
    "configure",
    "discard",
    "drained",
    "drop",
    "forget",
    "install",
    "lease",
    "pin",
    "release",
    "waiting",
)
ALL_SCRIPTS = tuple(map(_load, NAMES))
(
    APPEND,
    APPEND_UNLOGGED,
    ASSIGN,
    CLAIM,
    COMMIT,
    CONFIGURE,
    DISCARD,
    DRAINED,
    DROP,
    FORGET,
    INSTALL,
    LEASE,
    PIN,
    RELEASE,
    WAITING,
) = ALL_SCRIPTS


def limits_text(limits: SessionLimits) -> str:
    """Return limits as the scripts take them."""
    return f"{limits.summary_trigger_tokens},{limits.max_buffer_tokens},{limits.max_buffer_messages}"


def append_call(
    keys: SessionKeys,
    *,
    epoch: int,
    revision: int,
    first_seq: int,
    at_ms: int,
    buffer_ttl: int,
    summary_ttl: int,
    ticket: int,
    ticket_ttl: int,
    lease_ms: int,
    messages: Sequence[Any],
) -> Command:
    """Append messages that the log numbered; ``messages`` is tokens, element, tokens, element, ..."""
    return Command(
        (
            4,
            keys.buffer,
            keys.summary,
            keys.fold,
            keys.unlogged,
            epoch,
            revision,
            first_seq,
            at_ms,
            buffer_ttl,
            summary_ttl,
            ticket,
            ticket_ttl,
            lease_ms,
            *messages,
        ),
        APPEND,
        takes_run=True,
    )


def assign_call(
    keys: SessionKeys,
    *,
    at_ms: int,
    ttl: int,
    ticket: int,
    settings: str,
    message_id: bytes,
    messages: Sequence[Any],
) -> Command:
    """Append messages that the buffer numbers; ``messages`` is tokens, rest, tokens, rest, ..."""
    return Command(
        (
            5,
            keys.buffer,
            keys.summary,
            keys.fold,
            keys.history,
            keys.context,
            at_ms,
            ttl,
            ticket,
            settings,
            message_id,
            *messages,
        ),
        ASSIGN,
    )


def claim_call(keys: SessionKeys, *, ticket: int, ticket_ttl: int, seen: bytes) -> Command:
    """Take a ticket to rebuild the buffer."""
    return Command((2, keys.buffer, keys.unlogged, ticket, ticket_ttl, seen), CLAIM, takes_run=True)


def install_call(
    keys: SessionKeys,
    *,
    ticket: int,
    header: bytes,
    buffer_ttl: int,
    summary_ttl: int,
    summary: bytes,
    elements: Sequence[bytes],
) -> Command:
    """Install a session that was read from the log."""
    return Command(
        (
            2,
            keys.buffer,
            keys.summary,
            ticket,
            header,
            buffer_ttl,
            summary_ttl,
            summary,
            *elements,
        ),
        INSTALL,
        takes_run=True,
    )


def commit_call(
    keys: SessionKeys,
    *,
    epoch: int,
    revision: int,
    version: int,
    new_revision: int,
    watermark: int,
    buffer_ttl: int,
    summary_ttl: int,
    summary: bytes,
    history_entry: bytes,
    history_length: int,
    at_ms: int,
) -> Command:
    """Put a new summary in place and trim what it covers."""
    return Command(
        (
            5,
            keys.buffer,
            keys.summary,
            keys.history,
            keys.context,
            keys.unlogged,
            epoch,
            revision,
            version,
            new_revision,
            watermark,
            buffer_ttl,
            summary_ttl,
            summary,
            history_entry,
            history_length,
            at_ms,
        ),
        COMMIT,
    )


def configure_call(
    keys: SessionKeys,
    *,
    epoch: int,
    at_ms: int,
    ttl: int,
    limits: str,
    changes: Mapping[str, int],
) -> Command:
    """Set the limits of an ephemeral session; no changes only make sure that the session exists."""
    return Command(
        (
            4,
            keys.buffer,
            keys.summary,
            keys.history,
            keys.context,
            epoch,
            at_ms,
            ttl,
            limits,
            changes.get("summary_trigger_tokens", ""),
            changes.get("max_buffer_tokens", ""),
            changes.get("max_buffer_messages", ""),
        ),
        CONFIGURE,
    )


def pin_call(keys: SessionKeys, *, epoch: int, revision: int, version: int, ttl: int, summary: bytes) -> Command:
    """Change what is pinned in an ephemeral session."""
    return Command(
        (4, keys.buffer, keys.summary, keys.history, keys.context, epoch, revision, version, ttl, summary), PIN
    )


def append_unlogged_call(
    keys: SessionKeys,
    *,
    buffer_ttl: int,
    summary_ttl: int,
    limits: str,
    expected_seq: int,
    message_id: bytes,
    is_relayed: bool,
    messages: Sequence[Any],
) -> Command:
    """Append messages that wait to be logged; ``messages`` is tokens, rest, tokens, rest, ..."""
    return Command(
        (
            3,
            keys.buffer,
            keys.summary,
            keys.unlogged,
            buffer_ttl,
            summary_ttl,
            limits,
            expected_seq,
            message_id,
            int(is_relayed),
            *messages,
        ),
        APPEND_UNLOGGED,
    )


def waiting_call(keys: SessionKeys, *, most_messages: int, most_bytes: int, newest: bytes) -> Command:
    """Read the oldest messages that wait to be logged, while ``newest`` is among them; empty: whatever waits."""
    return Command((1, keys.unlogged, most_messages, most_bytes, newest), WAITING)


def drained_call(keys: SessionKeys, *, count: int, first: bytes, last: bytes) -> Command:
    """Take logged messages off the unlogged list."""
    return Command((2, keys.buffer, keys.unlogged, count, first, last), DRAINED)


def forget_call(keys: SessionKeys) -> Command:
    """Have the buffer rebuilt by its next reader."""
    return Command((2, keys.buffer, keys.unlogged), FORGET)


def drop_call(keys: SessionKeys) -> Command:
    """Delete every key of a session, unless messages wait there."""
    return Command((7, *keys), DROP)


def release_call(key: str, *, lease_token: int) -> Command:
    """Give back a lease."""
    return Command((1, key, lease_token), RELEASE)


def lease_call(key: str, *, lease_token: int, lease_ms: int) -> Command:
    """Take the lease of a fold or a drain."""
    return Command((1, key, lease_token, lease_ms), LEASE)


def discard_call(keys: SessionKeys, *, seen: bytes) -> Command:
    """Delete a buffer that nobody can read."""
    return Command((1, keys.buffer, seen), DISCARD)
