"""What the original keeps in Redis: ``buffer:{session}`` and ``summary_list:{session}``.

Both are lists, oldest first, of envelopes of :class:`MessageSerializer`; plain JSON is taken as well. Nothing here
writes.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from contract_engine.memory._effects import Command, Flow, redis_call, scan
from contract_engine.memory._runtime import Runtime, breaker_for
from contract_engine.memory.closing import Closing
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import CorruptDataError, SerializationError
from contract_engine.memory.legacy_messages import parse_envelope

BUFFER, SUMMARIES = "buffer:", "summary_list:"


class LegacySummary(NamedTuple):
    """A summary of the original; ``place`` counts from 1, ``timestamp`` is None where it has none."""

    place: int
    text: str
    timestamp: float | None


class LegacyRedis(Closing):
    """Reads the keys of the original. Opened by the first call; close it, or use it in a ``with`` block."""

    def __init__(self, redis_url: str, *, timeout_seconds: float = 5.0) -> None:
        config = MemoryConfig(redis_url=redis_url, redis_timeout_seconds=timeout_seconds)
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=False))

    def session_names(self) -> list[str]:
        """Return the sessions that have either key, in order, by looking through all of Redis.

        A key that is no UTF-8 is named with what stands for its bytes, and is refused as a session id later.
        """
        found: set[str] = set()
        for prefix in (BUFFER, SUMMARIES):
            for key in self._runtime.run(scan(prefix + "*")):
                found.add(key.decode("utf-8", "surrogateescape").removeprefix(prefix))
        return sorted(found)

    def messages(self, session_id: str) -> list[bytes]:
        """Return the elements of the buffer as they stand; :class:`CorruptDataError` where the key is no list."""
        return self._runtime.run(_elements(BUFFER + session_id))

    def summaries(self, session_id: str) -> tuple[list[LegacySummary], list[tuple[int, str]]]:
        """Return the summaries, oldest first, and the places of those that cannot be read, each with the reason."""
        found: list[LegacySummary] = []
        refused: list[tuple[int, str]] = []
        for place, element in enumerate(self._runtime.run(_elements(SUMMARIES + session_id)), start=1):
            try:
                found.append(_summary(place, parse_envelope(element)))
            except SerializationError as exc:
                refused.append((place, str(exc)))
        return found, refused

    def close(self) -> None:
        """Close the connections."""
        self._runtime.close()


def _elements(key: str) -> Flow[list[bytes]]:
    (found,) = yield from redis_call(Command(("LRANGE", key.encode("utf-8", "surrogateescape"), 0, -1)))
    if not isinstance(found, list):
        raise CorruptDataError("a key of the original is no list")
    return found


def _summary(place: int, value: Any) -> LegacySummary:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise SerializationError("summary", "has no text")
    at = value.get("timestamp") if isinstance(value, dict) else None
    is_time = isinstance(at, int | float) and not isinstance(at, bool) and abs(at) <= sys.float_info.max
    return LegacySummary(place, text, float(at) if is_time and at is not None else None)
