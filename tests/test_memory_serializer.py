"""What goes in comes back equal, type by type, or is refused with the path of the part that cannot be kept."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import json
import math
import uuid
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_contract import same

from contract_engine.memory import InvalidInputError, MessageSerializer, SerializationError, SwisperContext
from contract_engine.memory.errors import CorruptDataError
from contract_engine.memory.serializer import (
    MAX_DEPTH,
    MAX_INT_BITS,
    decode_elements,
    decode_text,
    decode_value,
    encode_message,
    encode_text,
    encode_value,
    json_text,
)

LARGE = 2**40


def nested(depth: int, *, as_list: bool = False) -> dict[str, Any]:
    """Return a dict nested ``depth`` levels deep, itself included."""
    value: Any = {}
    for _ in range(depth - 2):
        value = [value] if as_list else {"a": value}
    return {"role": value}


def trip(message: dict[str, Any]) -> Any:
    return decode_value(encode_message(message, max_bytes=LARGE))


EXACT: dict[str, Any] = {
    "empty": {},
    "nul": {"content": "a\x00b\x00"},
    "control": {"content": "".join(map(chr, range(32))) + "\x7f\x80\x9f"},
    "lone surrogates": {"content": "\ud800", "\udfff": "x\udc00y\ud83d"},
    "adjacent surrogates": {"content": "\ud83d\ude00"},
    "surrogates the wrong way round": {"content": "\ude00\ud83d"},
    "surrogates beside an emoji": {"content": "😀\ud83d\ude00😀"},
    "emoji": {"content": "👨‍👩‍👧‍👦🏳️‍🌈😀"},
    "right to left": {"content": "שלום \u202eabc\u202c مرحبا"},
    "separators of lines": {"content": "a\u2028b\u2029c\u0085d\r\n"},
    "backslashes": {"content": '\\u0000 \\ud800 \\" \\\\', "\\": '"'},
    "byte order mark": {"content": "\ufeffx"},
    "not a character": {"content": "\uffff\U0010ffff"},
    "whole numbers": {"n": [0, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]},
    "huge": {"n": [10**100, -(10**4000), 2**MAX_INT_BITS - 1]},
    "floats": {"n": [0.0, -0.0, 0.1, 1.0, -1.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 1e100, 2.0**64, math.pi]},
    "one and true": {"n": [1, 1.0, True, 0, 0.0, False, None, "1", ""]},
    "order of keys": {"b": 1, "a": 2, "": 3, "B": 4},
    "brackets in texts": {"content": "[{" * 5000},
    "wide": {"metadata": {f"key {number}": number for number in range(10_000)}},
    "long": {"content": "x" * 500_000},
    "deep dicts": nested(MAX_DEPTH),
    "deep lists": nested(MAX_DEPTH, as_list=True),
}


@pytest.mark.parametrize("message", EXACT.values(), ids=EXACT)
def test_exact_round_trip(message: dict[str, Any]) -> None:
    assert same(trip(message), message)
    # The same bytes as part of a list, as Redis gives them, in one pass with others.
    body = encode_message(message, max_bytes=LARGE)
    assert same(decode_elements([b"[1]", body, b'"x"']), [[1], message, "x"])


@pytest.mark.parametrize("message", EXACT.values(), ids=EXACT)
def test_envelopes_hold_the_same(message: dict[str, Any]) -> None:
    serializer = MessageSerializer()
    assert same(serializer.deserialize_message(serializer.serialize_message(message)), message)
    assert same(
        serializer.deserialize_batch(serializer.serialize_batch([message, {}, message])), [message, {}, message]
    )


# Two halves side by side are no character, and hardly ever drawn by chance.
TEXTS = st.text(st.characters(codec=None)) | st.just("halves \ud83d\ude00")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=25,
)
messages = st.dictionaries(TEXTS, json_values, max_size=6)


@settings(deadline=None, max_examples=150)
@given(messages)
def test_any_json_value_comes_back_equal(message: dict[str, Any]) -> None:
    assert same(trip(message), message)


@settings(deadline=None, max_examples=40)
@given(st.lists(messages, max_size=3))
def test_any_batch_comes_back_equal(batch: list[dict[str, Any]]) -> None:
    serializer = MessageSerializer()
    assert same(serializer.deserialize_batch(serializer.serialize_batch(batch)), batch)


@given(TEXTS)
def test_any_text_comes_back_equal(text: str) -> None:
    assert decode_text(encode_text(text)) == text
    assert decode_value(json_text(text)) == text


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_corrupt(data: bytes) -> None:
    try:
        value = decode_value(data)
    except CorruptDataError:
        return
    # What was read can be written again, or was no value of ours in the first place.
    try:
        assert same(decode_value(encode_value(value, field="x", max_bytes=LARGE)), value)
    except SerializationError:
        assert b"N" in data or b"I" in data or b"e" in data.lower()


@dataclasses.dataclass
class Point:
    x: int = 1


class Colour(enum.Enum):
    RED = "red"


LOOP: list[Any] = []
LOOP.append(LOOP)

REFUSED: dict[str, tuple[Any, str]] = {
    "nan": ({"a": [1, {"b": math.nan}]}, "message.a[1].b"),
    "infinity": ({"a": math.inf}, "message.a"),
    "minus infinity": ({"a": [-math.inf]}, "message.a[0]"),
    "bytes": ({"content": b"x"}, "message.content"),
    "bytearray": ({"content": bytearray(b"x")}, "message.content"),
    "memoryview": ({"content": memoryview(b"x")}, "message.content"),
    "set": ({"a": {1}}, "message.a"),
    "frozenset": ({"a": frozenset()}, "message.a"),
    "tuple": ({"a": {"b": (1, 2)}}, "message.a.b"),
    "empty tuple": ({"a": ()}, "message.a"),
    "deque": ({"a": deque()}, "message.a"),
    "datetime": ({"at": datetime(2024, 1, 1, tzinfo=UTC)}, "message.at"),
    "decimal": ({"a": decimal.Decimal("1.5")}, "message.a"),
    "uuid": ({"a": uuid.UUID(int=1)}, "message.a"),
    "complex": ({"a": 1j}, "message.a"),
    "object": ({"a": object()}, "message.a"),
    "dataclass": ({"a": Point()}, "message.a"),
    "enum": ({"a": Colour.RED}, "message.a"),
    "class": ({"a": int}, "message.a"),
    "function": ({"a": len}, "message.a"),
    "generator": ({"a": iter(())}, "message.a"),
    "whole numbers as keys": ({"a": {1: 2}}, "message.a.1"),
    "none as key": ({None: 2}, "message.None"),
    "bytes as key": ({b"a": 2}, "message.b'a'"),
    "true as key": ({True: 2}, "message.True"),
    "4,301 digits": ({"n": 10**4300}, "message.n"),
    "5,001 digits": ({"n": [10**5000]}, "message.n[0]"),
    "minus 5,001 digits": ({"n": -(10**5000)}, "message.n"),
    "a level too many": (nested(MAX_DEPTH + 1), "message"),
    "a list too many": (nested(MAX_DEPTH + 1, as_list=True), "message"),
    "100,000 levels": (nested(100_000), "message"),
    "itself": ({"a": LOOP}, "message"),
}


@pytest.mark.parametrize(("message", "path"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_with_its_path(message: Any, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        encode_message(message, max_bytes=LARGE)
    assert caught.value.field == path
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match=r".") as other:
        MessageSerializer().serialize_message(message)
    assert str(other.value) == str(caught.value)


@pytest.mark.parametrize("message", [None, "text", 7, [], [{}], ("a", 1), b"{}", {"a"}], ids=repr)
def test_a_message_is_a_dict(message: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_message(message, max_bytes=LARGE)
    assert caught.value.field == "message"


def test_size_is_counted_in_bytes_of_utf8() -> None:
    body = encode_message({"content": "é" * 10}, max_bytes=LARGE)
    assert len(body) == len('{"content":""}') + 20
    assert encode_message({"content": "é" * 10}, max_bytes=len(body)) == body
    with pytest.raises(InvalidInputError) as caught:
        encode_message({"content": "é" * 10}, max_bytes=len(body) - 1)
    assert caught.value.field == "message"
    assert f"{len(body):,}" in caught.value.problem


def test_what_equals_a_json_value_is_kept_as_that() -> None:
    class Text(str):
        __slots__ = ()

    message = OrderedDict(role=Text("user"), content="x")
    assert same(trip(message), {"role": "user", "content": "x"})


def test_bodies_are_json_text_anybody_can_read() -> None:
    assert json.loads(encode_message({"content": "é\n", "n": 1.5}, max_bytes=LARGE)) == {"content": "é\n", "n": 1.5}
    assert encode_message({"content": "é"}, max_bytes=LARGE) == '{"content":"é"}'.encode()


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[1,", b"[" * 100_000, b'"\xed"', b"1" * 5000, b"nul"], ids=len)
def test_bytes_of_nobody_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_value(data)
    with pytest.raises(CorruptDataError):
        decode_elements([b"[1]", data])


def test_elements_cannot_run_into_each_other() -> None:
    for elements in ([b"1,2"], [b"[1", b"2]"], [b"1],[2"], [b""], [b"[1]", b""], [b"", b""]):
        with pytest.raises(CorruptDataError):
            decode_elements(elements)


# -- envelopes


def test_the_envelope_of_a_message() -> None:
    serializer = MessageSerializer(clock=lambda: 1234.5)
    envelope = json.loads(serializer.serialize_message({"role": "user", "content": "Hi"}))
    assert envelope == {"version": "1.0", "timestamp": 1234.5, "data": {"role": "user", "content": "Hi"}}
    assert MessageSerializer.VERSION == "1.0"


def test_the_envelope_of_a_batch_holds_a_list() -> None:
    serializer = MessageSerializer()
    envelope = json.loads(serializer.serialize_batch([{"n": 1}, {"n": 2}]))
    assert envelope["data"] == [{"n": 1}, {"n": 2}]
    assert serializer.deserialize_batch(serializer.serialize_batch([])) == []
    assert serializer.deserialize_batch(serializer.serialize_batch(({"n": 1},))) == [{"n": 1}]


@pytest.mark.parametrize("kind", ["message", "batch", "context"])
@pytest.mark.parametrize(
    "data",
    [
        "",
        "nonsense",
        "null",
        "[]",
        "7",
        "{}",
        '{"version": "1.0"}',
        '{"data": {}}',
        '{"version": "2.0", "timestamp": 1, "data": {}}',
        '{"version": 1.0, "timestamp": 1, "data": {}}',
        '{"version": "1.0", "timestamp": 1, "data": 7}',
        '{"version": "1.0", "timestamp": 1, "data": null}',
        b"\xff\xfe",
        None,
        7,
        {"version": "1.0", "data": {}},
    ],
    ids=repr,
)
def test_broken_envelopes_are_value_errors(kind: str, data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        getattr(MessageSerializer(), f"deserialize_{kind}")(data)


def test_one_kind_is_not_taken_for_another() -> None:
    serializer = MessageSerializer()
    with pytest.raises(ValueError, match="message"):
        serializer.deserialize_message(serializer.serialize_batch([{}]))
    with pytest.raises(ValueError, match="batch"):
        serializer.deserialize_batch(serializer.serialize_message({}))
    with pytest.raises(ValueError, match="message"):
        serializer.deserialize_batch('{"version": "1.0", "timestamp": 1, "data": [{}, 7]}')


@pytest.mark.parametrize("batch", [None, "text", b"bytes", {"a": 1}, 7, [7], [{"a": math.nan}], [None]], ids=repr)
def test_broken_batches_are_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        MessageSerializer().serialize_batch(batch)


def test_envelopes_are_read_from_bytes_too() -> None:
    serializer = MessageSerializer()
    text = serializer.serialize_message({"content": "é"})
    assert serializer.deserialize_message(text.encode()) == {"content": "é"}


def test_contexts_come_back_with_their_unknown_fields() -> None:
    serializer = MessageSerializer()
    context = SwisperContext.from_dict({"session_id": "s", "current_state": "search", "colour": ["red"]})
    again = serializer.deserialize_context(serializer.serialize_context(context))
    assert again.to_dict() == context.to_dict()
    assert again.colour == ["red"]
    from_dict = serializer.deserialize_context(serializer.serialize_context({"session_id": "s"}))
    assert from_dict.session_id == "s"


@pytest.mark.parametrize("context", [None, 7, {}, {"session_id": "s", "preferences": {1}}, "text"], ids=repr)
def test_broken_contexts_are_refused(context: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        MessageSerializer().serialize_context(context)
