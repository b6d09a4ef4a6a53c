"""A message as the older session store keeps it: one JSON value in a list, as ``jsonb`` or as text in Redis.

``jsonb`` refuses NUL and lone surrogates in texts. A message that holds one is written readable, with U+FFFD in their
place, and beside it as a whole in the field ``memory_exact``, as JSON text in which they are escaped; reading restores
it exactly. Two halves of a surrogate pair side by side, escaped, would be read as one character: a message with such
stands there as base64 of UTF-8 JSON. The field ``memory_message_id`` holds the id of a message that was written to both
stores, so that it can be found again. Programs that know neither field see a message with one or two fields more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from contract_engine.memory.errors import CorruptDataError, InvalidInputError, SerializationError
from contract_engine.memory.keys import check_message_id
from contract_engine.memory.models import Message
from contract_engine.memory.serializer import MessageSerializer, decode_value, encode_message

MESSAGE_ID_FIELD = "memory_message_id"
EXACT_FIELD = "memory_exact"

IMPORTED = "legacy-"
"""How the ids of imported messages begin: then comes the place in the older history, from 1, and what they say."""

_NO_LIMIT = 2**62
_ENVELOPE_FIELDS = {"version", "timestamp", "data"}
_UNTAKEN = {0: "\ufffd", **dict.fromkeys(range(55296, 57344), "�")}

_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
# As Python writes them; a text may look so too, and is not changed by what follows.
_WHOLE_FLOAT = re.compile(r"\.0(?!\d)|e\+")


class LegacyMessage(NamedTuple):
    """A message of the older store, without the fields of this module; ``message_id`` is None where it has none."""

    message: Message
    message_id: str | None


def legacy_json(message: object, *, message_id: str | None = None) -> str:
    """Return a message as JSON text that ``jsonb`` takes; raises :class:`InvalidInputError` for what is no message."""
    body = encode_message(message, max_bytes=_NO_LIMIT)
    assert isinstance(message, dict), "encode_message refuses everything else"
    for name in (MESSAGE_ID_FIELD, EXACT_FIELD):
        if name in message:
            raise SerializationError(f"message.{name}", "a field of this name is kept for the store")
    stored: Message = message
    # Both are escaped or three bytes of their own in JSON, so that most messages need not be looked through.
    if b"\\u0000" in body or b"\xed" in body:
        readable = _readable(message)
        if readable != message:
            exact = json.dumps(message)
            if json.loads(exact) != message:
                exact = base64.b64encode(body).decode("ascii")
            stored = {**readable, EXACT_FIELD: exact}
    if message_id is not None:
        stored = {**stored, MESSAGE_ID_FIELD: check_message_id(message_id)}
    return json.dumps(stored)


class LegacyBatch(NamedTuple):
    """``number`` messages on their way into a history, as a JSON array, and what it contains once it has all of them.

    ``marks`` is None where they have no ids. The texts are those of the first and the last message of a user.
    """

    number: int
    messages: str
    marks: str | None
    first_user_text: str | None
    last_user_text: str | None


def legacy_batch(messages: object, message_ids: object) -> LegacyBatch:
    """Return messages as one JSON array that ``jsonb`` takes; raises :class:`InvalidInputError` as a whole."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidInputError("messages", f"expected a list of messages, got {type(messages).__name__}")
    ids: list[str] | None = None
    if message_ids is not None:
        if not isinstance(message_ids, Sequence) or isinstance(message_ids, str | bytes):
            raise InvalidInputError("message_ids", f"expected a list of ids, got {type(message_ids).__name__}")
        ids = [check_message_id(message_id) for message_id in message_ids]
        if len(ids) != len(messages) or len(set(ids)) != len(ids):
            raise InvalidInputError("message_ids", "expected as many as there are messages, each another one")
    texts = [
        legacy_json(message, message_id=None if ids is None else ids[index]) for index, message in enumerate(messages)
    ]
    said = [
        readable_text(message["content"])
        for message in messages
        if message.get("role") == "user" and isinstance(message.get("content"), str)
    ]
    first, last = (said[0], said[-1]) if said else (None, None)
    return LegacyBatch(len(texts), f"[{','.join(texts)}]", None if ids is None else id_marks(ids), first, last)


def id_marks(message_ids: Sequence[str]) -> str:
    """Return the JSON that a history contains exactly when it has all these messages."""
    return json.dumps([{MESSAGE_ID_FIELD: message_id} for message_id in message_ids])


def readable_message(text: str) -> Any:
    """Return a stored message; what is none, as it stands."""
    try:
        return parse_legacy(text).message
    except SerializationError:
        return json.loads(text)


def parse_legacy(text: str | bytes) -> LegacyMessage:
    """Read one element of the older history.

    :class:`SerializationError` where it is not JSON, not an object, or holds a number of more digits than a float has.
    """
    try:
        value = json.loads(text, parse_float=_exact_float)
    except SerializationError:  # is a ValueError too
        raise
    except (ValueError, RecursionError) as exc:
        raise SerializationError("message", "is not JSON that can be read") from exc
    return legacy_message(value)


def legacy_message(value: object) -> LegacyMessage:
    """Return the message of a decoded element."""
    if not isinstance(value, dict):
        raise SerializationError("message", f"expected an object, got {_json_type(value)}")
    if EXACT_FIELD not in value and MESSAGE_ID_FIELD not in value:
        return LegacyMessage(value, None)
    message_id = value.get(MESSAGE_ID_FIELD)
    message = {name: part for name, part in value.items() if name not in (EXACT_FIELD, MESSAGE_ID_FIELD)}
    if EXACT_FIELD in value:
        try:
            exact = value[EXACT_FIELD]
            is_text = exact.startswith("{")
            message = json.loads(exact) if is_text else decode_value(base64.b64decode(exact, validate=True))
        except (AttributeError, ValueError, RecursionError, CorruptDataError) as exc:
            raise SerializationError(f"message.{EXACT_FIELD}", "is not JSON") from exc
        if not isinstance(message, dict):
            raise SerializationError(f"message.{EXACT_FIELD}", "is not an object")
    try:
        known = None if message_id is None else check_message_id(message_id)
    except InvalidInputError as exc:
        raise SerializationError(f"message.{MESSAGE_ID_FIELD}", exc.problem) from exc
    return LegacyMessage(message, known)


def parse_envelope(data: bytes) -> Any:
    """Return what an element of a Redis list of the original holds: an envelope's data, or plain JSON as it is."""
    try:
        value = decode_value(data)
    except CorruptDataError as exc:
        raise SerializationError("message", "is not JSON") from exc
    is_envelope = isinstance(value, dict) and set(value) <= _ENVELOPE_FIELDS and "data" in value
    if not is_envelope:
        return value
    if value.get("version") != MessageSerializer.VERSION:
        raise SerializationError("version", f"the version of the envelope is not {MessageSerializer.VERSION}")
    return value["data"]


def content_digest(value: object) -> bytes:
    """Return 16 bytes that two values share exactly when they are the same JSON to PostgreSQL.

    The order of keys says nothing; 1 and 1.0 are one number; true is not 1.
    """
    return hashlib.sha256(_canonical(value).encode("utf-8", "surrogatepass")).digest()[:16]


def imported_id(place: int, digest: bytes) -> str:
    """Return the message id of an imported message without an id: the same whenever it is imported."""
    return f"{IMPORTED}{place}-{digest.hex()}"


def imported_place(message_id: str) -> tuple[int, bytes] | None:
    """Return place and digest of an imported message's id; None for any other id."""
    parts = message_id.removeprefix(IMPORTED).split("-") if message_id.startswith(IMPORTED) else []
    if len(parts) != 2 or not parts[0].isdecimal() or len(parts[1]) != 32:
        return None
    try:
        return int(parts[0]), bytes.fromhex(parts[1])
    except ValueError:
        return None


def readable_text(text: str) -> str:
    """Return the text with U+FFFD in place of what PostgreSQL does not take."""
    return text.translate(_UNTAKEN)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable_text(value)
    if isinstance(value, Mapping):
        return {_readable(name): _readable(part) for name, part in value.items()}
    return [_readable(part) for part in value] if isinstance(value, list) else value


def _exact_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")) or Decimal(repr(number)) != Decimal(text):
        raise SerializationError("message", "a number with more digits than a float holds")
    return number


def _canonical(value: Any) -> str:
    text = _encoder.encode(value)
    return _encoder.encode(_with_whole_numbers(value)) if _WHOLE_FLOAT.search(text) else text


def _with_whole_numbers(value: Any) -> Any:
    """Return the value with every float that is a whole number as that number."""
    if isinstance(value, float):
        exact = Decimal(repr(value))
        return int(exact) if exact == exact.to_integral_value() else value
    if isinstance(value, dict):
        return {name: _with_whole_numbers(part) for name, part in value.items()}
    return [_with_whole_numbers(part) for part in value] if isinstance(value, list) else value


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "true or false", list: "an array", str: "a text"}
    return names.get(type(value), "a number")
