"""How a session lies in Redis: the header, the list elements and the cached summary, as bytes and back.

Everything is JSON text, so ``redis-cli lrange`` shows it to people and the whole list is decoded in one pass.
``lua/_header.lua`` describes the header and the placeholder. A message is ``[seq,tokens,at_ms,"id",{...}]``, the
summary ``[version,last_seq,tokens,at_ms,"text"]``, and where a session has pinned messages or wishes for its summaries
``[version,last_seq,tokens,at_ms,"text",["id",...],[message,...],"instructions"]``. To a reader that does not know the
longer form it is a miss.
"""

from __future__ import annotations

from typing import Any

from contract_engine.memory._effects import Command
from contract_engine.memory.config import session_limits
from contract_engine.memory.errors import ConfigurationError, CorruptDataError
from contract_engine.memory.keys import SessionKeys
from contract_engine.memory.models import NO_SUMMARY, Entry, Outgoing, SessionState, Summary
from contract_engine.memory.serializer import decode_elements, decode_value, encode_value, json_text

FORMAT = 1
UNLOGGED_FORMAT = 2
"""Of a buffer that holds messages the log lacks."""
HEADER_FIELDS = 12
PLACEHOLDER_FIELDS = (5, 6)
_HAS_NO_KEY = -2


def read_commands(keys: SessionKeys) -> tuple[Command, Command, Command]:
    """Return the commands whose replies :func:`parse_session` takes; sent together they cost one round trip.

    The messages come by LRANGE and not through a script: passing them through Lua would copy them twice more.
    """
    return (
        Command(("LRANGE", keys.buffer, 0, -1)),
        Command(("GET", keys.summary)),
        Command(("TTL", keys.buffer)),
    )


def parse_session(replies: list[Any], run: int | None) -> SessionState | None:
    """Return the session these replies hold, or None where there is none or it is being rebuilt.

    ``run`` is that of the server which answered; None: believe a copy whichever run has written it.

    Raises :class:`CorruptDataError` for everything that cannot be a session of ours: random bytes, another version,
    numbers that do not fit together.
    """
    elements, cached, ttl = replies
    if isinstance(elements, CorruptDataError):
        raise elements
    if not elements:
        return None
    found = decode_elements(elements)
    header = found[0]
    if type(header) is not list or not header:
        raise CorruptDataError("a buffer without a header")
    if header[0] == 0:
        if len(header) not in PLACEHOLDER_FIELDS or set(map(type, header)) != {int}:
            raise CorruptDataError("a placeholder of another format")
        return None
    if (
        (header[0] != FORMAT and header[0] != UNLOGGED_FORMAT)
        or len(header) != HEADER_FIELDS
        or set(map(type, header)) != {int}
        or min(header) < 0
        or (not header[2] and header[0] == FORMAT)
    ):
        raise CorruptDataError("a header of another format")
    form, of_run, epoch, revision, version, watermark, trigger, max_tokens, max_messages, last_seq, tokens, updated = (
        header
    )
    del found[0]
    try:
        numbers = [row[0] for row in found]
        is_whole = (not found or {type(row[4]) for row in found} == {dict}) and sum(row[1] for row in found) == tokens
    except (TypeError, LookupError) as exc:
        raise CorruptDataError("a list element that is not a message") from exc
    if not is_whole or len(numbers) != last_seq - watermark or numbers != list(range(watermark + 1, last_seq + 1)):
        raise CorruptDataError("messages that are not the ones the header names")
    try:
        limits = session_limits(trigger, max_tokens, max_messages)
    except ConfigurationError as exc:
        raise CorruptDataError("limits that no session can have") from exc
    return SessionState(
        epoch,
        revision,
        last_seq,
        watermark,
        version,
        parse_summary(cached, version),
        limits,
        found,
        tokens,
        updated,
        ttl if ttl >= 0 else None,
        form == UNLOGGED_FORMAT,
        run is not None and of_run != run,
    )


def is_unlogged_header(element: object) -> bool:
    """Whether this is how a buffer begins that holds messages the log lacks."""
    return isinstance(element, bytes) and element.startswith(b"[%d," % UNLOGGED_FORMAT)


def parse_summary(cached: object, version: int | None) -> Summary:
    """Return the cached summary if it is the version wanted (None: whichever); else ``NO_SUMMARY``.

    With a version above 0 that is a miss: the caller reads the log, or says that the summary is lost. A version 0 is
    only there to name what is pinned.
    """
    if not isinstance(cached, bytes):
        return NO_SUMMARY
    try:
        found = decode_value(cached)
    except CorruptDataError:
        return NO_SUMMARY
    if type(found) is not list:
        return NO_SUMMARY
    kinds = [type(item) for item in found]
    if kinds[:5] != _SUMMARY or (kinds[5:] and not (kinds[5:] == _WISHES and _are_pins(found[5], found[6]))):
        return NO_SUMMARY
    if found[0] != version and version is not None:
        return NO_SUMMARY
    return Summary(*found)


_SUMMARY, _WISHES, _ROW = [int, int, int, int, str], [list, list, str], [int, int, int, str, dict]


def _are_pins(ids: list[Any], rows: list[Any]) -> bool:
    return {str}.issuperset(map(type, ids)) and all(
        type(row) is list and [type(item) for item in row] == _ROW for row in rows
    )


def header_tail(state: SessionState) -> bytes:
    """Return the header of a session from its epoch on; what comes before, the script knows."""
    limits = state.limits
    fields = (
        state.epoch,
        state.revision,
        state.summary_version,
        state.watermark,
        limits.summary_trigger_tokens,
        limits.max_buffer_tokens,
        limits.max_buffer_messages,
        state.last_seq,
        state.buffer_tokens,
        max(0, state.updated_at_ms),  # an import may be of anybody's clock
    )
    return b"%d,%d,%d,%d,%d,%d,%d,%d,%d,%d]" % fields


def element_bytes(seq: int, tokens: int, at_ms: int, rest: bytes) -> bytes:
    """Return the list element of a message; ``rest`` is :func:`element_rest` of it."""
    return b"[%d,%d,%d,%b" % (seq, tokens, at_ms, rest)


def element_rest(message: Outgoing) -> bytes:
    """Return the part of a list element that does not depend on its number."""
    return b"%b,%b]" % (json_text(message.message_id), message.body)


def row_bytes(row: Any) -> bytes:
    """Return the list element of a message that was read from the log."""
    seq, tokens, at_ms, message_id, message = row
    body = encode_value(message, field="message", max_bytes=2**62)
    return element_bytes(seq, tokens, at_ms, b"%b,%b]" % (json_text(message_id), body))


def parse_unlogged_head(head: bytes) -> tuple[int, int]:
    """Return epoch and last message before those that wait; zeros where that is not known."""
    try:
        found = decode_value(head)
    except CorruptDataError:
        return 0, 0
    return (found[0], found[1]) if type(found) is list and [type(item) for item in found] == [int, int] else (0, 0)


def parse_unlogged(element: bytes) -> Entry:
    """Return a message of the unlogged list; :class:`CorruptDataError` where it is none.

    Behind the message stands 1 where it is to reach the legacy store too, else 0; in older lists there is nothing.
    """
    row = decode_value(element)
    if type(row) is not list or [type(item) for item in row] not in (_ROW, [*_ROW, int]):
        raise CorruptDataError("an element of the unlogged list that is not a message")
    seq, tokens, at_ms, message_id, message = row[:5]
    return Entry(seq, tokens, at_ms, message_id, message, bool(row[5]) if len(row) > 5 else None)


def summary_bytes(summary: Summary) -> bytes:
    """Return a summary as it is cached; nothing for a version 0 that names nothing pinned."""
    if summary.version == 0 and summary.is_plain:
        return b""
    head = b"[%d,%d,%d,%d," % (summary.version, summary.last_seq, summary.tokens, summary.at_ms)
    head += json_text(summary.text)
    if summary.is_plain:
        return head + b"]"
    ids = b",".join(map(json_text, summary.pinned_ids))
    rows = b",".join(map(row_bytes, summary.pinned_rows))
    return b"%b,[%b],[%b],%b]" % (head, ids, rows, json_text(summary.instructions))
