"""How a message becomes bytes and comes back equal.

The same UTF-8 JSON text is the body of a row in PostgreSQL and of a list element in Redis, so both give the same answer
and people can read either. Encoding is lossless or it is refused: the text is decoded again and compared, because JSON
encoders disagree with themselves in silence (NaN becomes null, bytes become base64, a tuple becomes a list).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from contract_engine.memory.errors import CorruptDataError, InvalidInputError, SerializationError
from contract_engine.memory.swisper_context import SwisperContext

MAX_DEPTH = 200
"""Lists and dicts may be nested this deep. The recursion limit of Python (1,000 frames) leaves room for the caller."""

MAX_INT_BITS = 14_000
"""Whole numbers up to about 4,200 digits: Python itself refuses to read more than 4,300 from a text."""

# msgspec's own errors are ValueErrors in some of its versions and not in others.
UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode_message(message: object, *, max_bytes: int) -> bytes:
    """Return the body of ``message``, a dict that comes back equal; refuse everything else, naming the field."""
    if not isinstance(message, dict):
        raise InvalidInputError("message", f"expected a dict, got {type(message).__name__}")
    return encode_value(message, field="message", max_bytes=max_bytes)


def encode_value(value: object, *, field: str, max_bytes: int) -> bytes:
    """Return ``value`` as JSON bytes that decode to an equal value; ``field`` is named when that cannot be."""
    try:
        body = _encoder.encode(value)
        # Brackets inside texts count too: this is a cheap upper bound, and only what passes it is measured.
        shallow = body.count(b"[") + body.count(b"{") <= MAX_DEPTH
        equal = shallow and _decoder.decode(body) == value
    except (*UNREADABLE, TypeError, OverflowError):
        equal = False
    if not equal:
        body = _encode_carefully(value, field)
    if len(body) > max_bytes:
        raise InvalidInputError(field, f"{len(body):,} bytes, at most {max_bytes:,}")
    return body


def decode_value(body: bytes) -> Any:
    """Return the value whose body this is; :class:`CorruptDataError` if it is nobody's."""
    try:
        return _decoder.decode(body)
    except UNREADABLE:
        pass
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise CorruptDataError("bytes that are not a stored value") from exc


def encode_text(text: str) -> bytes:
    """Return any Python text as UTF-8, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    """Return the text of :func:`encode_text`."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as exc:
        raise CorruptDataError("bytes that are not a stored text") from exc


def decode_elements(elements: Sequence[bytes]) -> list[Any]:
    """Decode many JSON values in one pass; several times faster than one by one.

    :class:`CorruptDataError` if any of them is not JSON. Halves of a value that happen to fit together are not told
    from whole ones: the caller looks at the shape of what it gets.
    """
    try:
        found: list[Any] = _decoder.decode(b"[" + b",".join(elements) + b"]")
    except UNREADABLE:
        return [decode_value(element) for element in elements]
    if len(found) != len(elements):  # an element such as `1,2` is not a value of its own
        raise CorruptDataError("a list element that is not one value")
    return found


def json_text(text: str) -> bytes:
    """Return ``text`` as a JSON string literal."""
    try:
        return _encoder.encode(text)
    except UnicodeEncodeError:
        return encode_text(json.dumps(text, ensure_ascii=False))


def _encode_carefully(value: object, field: str) -> bytes:
    """Encode what the fast encoder does not: lone surrogates, subclasses of str and dict, brackets in plenty."""
    for path, problem in _problems(value, field):
        raise SerializationError(path, problem)
    body = encode_text(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    if decode_value(body) != value:
        raise SerializationError(field, "does not come back equal from JSON")
    return body


def _problems(value: object, field: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each part that JSON cannot hold, with the reason; iterative, so any depth is safe."""
    waiting: list[tuple[object, str, int]] = [(value, field, 1)]
    while waiting:
        part, path, depth = waiting.pop()
        if isinstance(part, dict | list):
            if depth > MAX_DEPTH:
                yield field, f"nested deeper than {MAX_DEPTH} levels"
                return
            items: Iterable[tuple[object, object]] = part.items() if isinstance(part, dict) else enumerate(part)
            for key, child in items:
                if isinstance(part, dict) and not isinstance(key, str):
                    yield f"{path}.{key!r}"[:200], f"keys must be text, got {type(key).__name__}"
                    continue
                step = f".{key}" if isinstance(part, dict) else f"[{key}]"
                waiting.append((child, (path + step)[:200], depth + 1))
        elif isinstance(part, int) and part.bit_length() > MAX_INT_BITS:
            yield path, f"a number of more than {MAX_INT_BITS} bits"
        elif isinstance(part, float):
            if not math.isfinite(part):
                yield path, "NaN and infinity have no JSON form"
        elif not (part is None or isinstance(part, str | int)):
            yield path, f"{type(part).__name__} has no JSON form"


class MessageSerializer:
    """Exchange format for messages and contexts outside the stores: ``{"version", "timestamp", "data"}`` as JSON text.

    ``timestamp`` is when the envelope was written, in seconds since 1970. Everything that is refused raises a
    ``ValueError`` before anything else happens. The envelope of a batch holds a list.
    """

    VERSION = "1.0"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def serialize_message(self, message: Mapping[str, Any]) -> str:
        """Return the envelope of one message."""
        return self._seal(encode_message(message, max_bytes=_NO_LIMIT))

    def deserialize_message(self, data: str | bytes) -> dict[str, Any]:
        """Return the message of an envelope."""
        return self._message(self._open(data, "message"))

    def serialize_batch(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return one envelope for many messages, order kept."""
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise InvalidInputError("messages", f"expected a list of dicts, got {type(messages).__name__}")
        bodies = [encode_message(message, max_bytes=_NO_LIMIT) for message in messages]
        return self._seal(b"[" + b",".join(bodies) + b"]")

    def deserialize_batch(self, data: str | bytes) -> list[dict[str, Any]]:
        """Return the messages of a batch envelope."""
        found = self._open(data, "batch")
        if not isinstance(found, list):
            raise SerializationError("data", "Invalid batch format: expected a list of messages")
        return [self._message(item) for item in found]

    def serialize_context(self, context: SwisperContext | Mapping[str, Any]) -> str:
        """Return the envelope of a context object."""
        return self._seal(encode_value(SwisperContext.coerce(context).to_dict(), field="context", max_bytes=_NO_LIMIT))

    def deserialize_context(self, data: str | bytes) -> SwisperContext:
        """Return the context of an envelope; unknown fields are kept."""
        return SwisperContext.from_dict(self._open(data, "context"))

    def _seal(self, body: bytes) -> str:
        head = f'{{"version":"{self.VERSION}","timestamp":{self._clock()!r},"data":'
        return head + decode_text(body) + "}"

    def _open(self, data: str | bytes, what: str) -> Any:
        if not isinstance(data, str | bytes):
            raise SerializationError("data", f"Failed to deserialize {what}: got {type(data).__name__}")
        try:
            envelope = decode_value(encode_text(data) if isinstance(data, str) else data)
        except CorruptDataError as exc:
            raise SerializationError("data", f"Failed to deserialize {what}: not JSON") from exc
        if not isinstance(envelope, dict) or "data" not in envelope:
            raise SerializationError("data", f"Invalid {what} format: no 'data' field")
        if envelope.get("version") != self.VERSION:
            raise SerializationError("version", f"Invalid {what} format: version is not {self.VERSION}")
        return envelope["data"]

    @staticmethod
    def _message(found: object) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise SerializationError("data", "Invalid message format: expected an object")
        return found


_NO_LIMIT = 2**62
