"""The history of a summary as Redis alone keeps it, without a database: one entry of JSON for each version."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from contract_engine.memory.errors import CorruptDataError
from contract_engine.memory.models import Origin, Summary
from contract_engine.memory.serializer import decode_value, encode_value

logger = logging.getLogger(__name__)

# What was written before versions said where they come from does not say so.
_NO_ORIGIN: dict[str, Any] = dict.fromkeys((*Origin._fields, "quarantined_at"))


def history_entry(
    summary: Summary, origin: Origin, method: str, segment: str | None, metadata: Mapping[str, object] | None
) -> bytes:
    """Return a version as its entry in the history."""
    entry = {
        "text": summary.text if segment is None else segment,
        "timestamp": summary.at_ms / 1000,
        "metadata": metadata,
        "version": summary.version,
        "last_seq": summary.last_seq,
        "tokens": summary.tokens,
        "method": method,
        **origin._asdict(),
        "quarantined_at": None,
    }
    return encode_value(entry, field="metadata", max_bytes=2**62)


def decoded_entries(found: object, session_id: str) -> tuple[list[dict[str, Any]], int]:
    """Return the entries that can be read, and how many cannot: what is no list at all counts as one."""
    entries: list[dict[str, Any]] = []
    damaged = 0
    for item in found if isinstance(found, list) else (found,):
        try:
            entry = decode_value(item) if isinstance(item, bytes) else None
        except CorruptDataError:
            entry = None
        if isinstance(entry, dict) and "text" in entry:
            entries.append(_NO_ORIGIN | entry)
        else:
            logger.warning("session %s: a summary in the history cannot be read; it is left out", session_id)
            damaged += 1
    return entries, damaged


def stats_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the log would say of these versions, where there is none."""
    newest = entries[-1] if entries else {}
    return {
        "summary_count": len(entries),
        "by_method": dict(Counter(str(entry.get("method")) for entry in entries)),
        "quarantined": 0,
        "current_version": newest.get("version", 0),
        **{name: newest.get(name) for name in ("method", "model", "first_seq", "last_seq")},
    }
