"""Older histories as a backfill and a comparison read them: element by element, whichever store they lie in."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from contract_engine.memory.errors import CorruptDataError, SerializationError
from contract_engine.memory.legacy_messages import (
    LegacyMessage,
    content_digest,
    legacy_message,
    parse_envelope,
    parse_legacy,
)
from contract_engine.memory.legacy_redis import LegacyRedis, LegacySummary
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.models import Message

R = TypeVar("R")

PAGE_BYTES = 4 * 1024 * 1024
PAGE_MESSAGES = 5000
SHORT_SUMMARY, SUMMARY_LIST = "short_summary", "summary_list"


class Element(NamedTuple):
    """One element of a history; ``message`` is None where it is none, for the reason ``problem``."""

    place: int
    message: Message | None
    message_id: str | None
    at_ms: int
    problem: str = ""


class History(NamedTuple):
    """One session of an older store.

    ``read(n)`` gives the elements behind the first n, in pages, so that any length is read in bounded memory.
    ``summaries`` are texts of which no message is left. ``problem``: why none of it can be read. ``is_trimmed``: the
    store drops the oldest, so that places change. ``context`` is the context object as JSON text. ``has_more``: there
    is something for which the log has no place.
    """

    session_id: str
    length: int
    has_ids: bool
    created_ms: int
    updated_ms: int
    read: Callable[[int], Iterator[Element]]
    summaries: Sequence[LegacySummary] = ()
    summary_name: str = ""
    refused_summaries: Sequence[tuple[int, str]] = ()
    problem: str | None = None
    is_trimmed: bool = False
    context: str | None = None
    has_more: bool = False


def table_history(store: LegacySwisperStore, session_id: str) -> History | None:
    """Return a session of the table as it is now; None where it has no row."""
    outline = store.outline(session_id)
    if outline is None:
        return None
    now_ms = now_in_ms()
    created, updated = min(outline.created_ms or now_ms, now_ms), min(outline.updated_ms or now_ms, now_ms)
    problem = None if outline.kind == "array" else f"its chat_history is of type {outline.kind}, not a list"
    size = max(1, min(PAGE_MESSAGES, PAGE_BYTES * outline.length // max(1, outline.size_bytes)))

    def read(after: int) -> Iterator[Element]:
        # What is appended while we read belongs to the next time.
        while after < outline.length:
            texts = store.read_page(session_id, after=after, count=min(size, outline.length - after))
            if not texts:
                return
            for place, text in enumerate(texts, start=after + 1):
                yield read_element(place, text, parse=parse_legacy, created_ms=created, latest_ms=updated)
            after += len(texts)

    text = outline.short_summary
    alone = [LegacySummary(1, text, updated / 1000)] if text and text.strip() and outline.length == 0 else []
    return History(
        session_id, outline.length, outline.has_ids, created, updated, read, alone, SHORT_SUMMARY, (), problem,
        context=outline.context, has_more=outline.has_more,
    )  # fmt: skip


def redis_history(redis: LegacyRedis, session_id: str) -> History:
    """Return a session that only the original's keys in Redis hold."""
    now_ms = now_in_ms()
    refused: list[tuple[int, str]] = []
    summaries: list[LegacySummary] = []
    elements: list[bytes] = []
    problem = None
    try:
        elements = redis.messages(session_id)
        summaries, refused = redis.summaries(session_id)
    except CorruptDataError:
        problem = "its keys in Redis are of another type than list"

    def read(after: int) -> Iterator[Element]:
        for place in range(after + 1, len(elements) + 1):
            raw = elements[place - 1]
            yield read_element(place, raw, parse=_parse_element, created_ms=now_ms, latest_ms=now_ms)

    return History(
        session_id, len(elements), False, now_ms, now_ms, read, summaries, SUMMARY_LIST, refused, problem, True
    )


def missing_messages(buffer: History, history: History) -> int:
    """Return how many messages of a buffer, which holds the newest, are not among the last of a history."""
    wanted = Counter(_digests(buffer, 0))
    wanted.subtract(_digests(history, max(0, history.length - 4 * buffer.length - 100)))
    return sum(count for count in wanted.values() if count > 0)


def _digests(history: History, after: int) -> Iterator[bytes]:
    return (content_digest(item.message) for item in history.read(after) if item.message is not None)


def message_time_ms(message: Message, *, default_ms: int, latest_ms: int) -> int:
    """Return when a message was said: its ``timestamp`` in seconds, milliseconds or ISO 8601, never in the future."""
    found = _time_ms(message.get("timestamp"))
    return default_ms if found is None else min(found, latest_ms)


def _time_ms(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return None
    return int(value if value > 10**11 else value * 1000)


def _parse_element(raw: str | bytes) -> LegacyMessage:
    return legacy_message(parse_envelope(raw if isinstance(raw, bytes) else raw.encode()))


def read_element(
    place: int, raw: R, *, parse: Callable[[R], LegacyMessage], created_ms: int, latest_ms: int
) -> Element:
    """Return one element of a history, said when its message says so, else at ``created_ms``."""
    try:
        message, message_id = parse(raw)
    except SerializationError as exc:
        return Element(place, None, None, 0, str(exc))
    at_ms = message_time_ms(message, default_ms=created_ms, latest_ms=latest_ms)
    return Element(place, message, message_id, at_ms)


def now_in_ms() -> int:
    """Return the time of this machine in milliseconds since 1970."""
    return int(time.time() * 1000)
