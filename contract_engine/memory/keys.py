"""The names of everything this package keeps in Redis.

All keys of a session share one hash tag, ``{tenant/session}``, so that a script may touch them together on a Cluster.
Braces in a session id would end the tag early; they are percent-encoded, as is the percent sign itself, so that two
sessions never share a key.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from contract_engine.memory.errors import InvalidInputError

MAX_SESSION_ID_CHARS = 256


class SessionKeys(NamedTuple):
    """The keys of one session."""

    buffer: str
    summary: str
    history: str
    context: str
    fold: str
    unlogged: str
    drain: str


@lru_cache(maxsize=4096)
def session_keys(prefix: str, tenant: str, session_id: str) -> SessionKeys:
    """Name the keys of a session; the session id must have passed :func:`check_session_id`."""
    if "{" in session_id or "}" in session_id or "%" in session_id:
        session_id = session_id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    stem = f"{prefix}:{{{tenant}/{session_id}}}:"
    return SessionKeys(*(stem + name for name in SessionKeys._fields))


def unlogged_pattern(prefix: str, tenant: str) -> str:
    """Return the glob of a tenant's unlogged lists; no character of the names means something in a glob."""
    return f"{prefix}:{{{tenant}/*}}:unlogged"


def session_pattern(prefix: str, tenant: str, session_id: str | None = None) -> str:
    """Return the glob of all keys of a session, whatever their names; of all sessions of the tenant without one."""
    if session_id is None:
        return f"{prefix}:{{{tenant}/*}}:*"
    stem = session_keys(prefix, tenant, session_id).buffer.removesuffix(SessionKeys._fields[0])
    return re.sub(r"([\\*?\[\]])", r"\\\1", stem) + "*"


def session_of_key(prefix: str, tenant: str, key: str) -> str | None:
    """Return the session a key belongs to, None where the key is none of this tenant's."""
    head, separator, _ = key.rpartition("}:")
    stem = f"{prefix}:{{{tenant}/"
    if not separator or not head.startswith(stem):
        return None
    return head.removeprefix(stem).replace("%7B", "{").replace("%7D", "}").replace("%25", "%")


def check_session_id(session_id: object) -> str:
    """Return the id if it is a text of 1 to 256 characters without control characters or lone surrogates."""
    return _check_id("session_id", session_id)


def check_message_id(message_id: object) -> str:
    """Return the id under the same rules as a session id."""
    return _check_id("message_id", message_id)


def check_limit(limit: object, *, least: int = 0, field: str = "limit") -> int:
    """Return how many things a caller wants at most: a whole number from ``least``, cut to what stores can count."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < least:
        raise InvalidInputError(field, f"expected a whole number from {least}, got {limit!r}")
    return min(limit, 2**31 - 1)


def check_version(version: object) -> int:
    """Return a version if it is a whole number from 1."""
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < 2**31:
        raise InvalidInputError("version", f"expected a whole number from 1, got {version!r}")
    return version


def check_query(query: object) -> str:
    """Return what is looked for: a text with something in it."""
    if not isinstance(query, str):
        raise InvalidInputError("query", f"expected a text, got {type(query).__name__}")
    if not query.strip():
        raise InvalidInputError("query", "must not be empty")
    return query


def _check_id(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(field, f"expected a text, got {type(value).__name__}")
    if not value:
        raise InvalidInputError(field, "must not be empty")
    if len(value) > MAX_SESSION_ID_CHARS:
        raise InvalidInputError(field, f"{len(value)} characters, at most {MAX_SESSION_ID_CHARS}")
    # isprintable() is the fast path; it also refuses harmless characters (some spaces), so then each one is looked at.
    if not value.isprintable():
        for ch in value:
            if ch < " " or "\x7f" <= ch <= "\x9f":
                raise InvalidInputError(field, f"control character U+{ord(ch):04X}")
            if "\ud800" <= ch <= "\udfff":
                raise InvalidInputError(field, f"lone surrogate U+{ord(ch):04X}")
    return value
