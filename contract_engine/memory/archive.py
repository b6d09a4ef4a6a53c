"""The lines of an archive: sessions as JSON Lines, each from a header to a trailer that proves it whole.

A session is one line of kind ``session``, then its messages by seq, then its summary versions, then ``end`` with their
counts and the SHA-256 of all lines before it. Several sessions may follow each other. Lines are UTF-8; lone surrogates
stand in them as escapes, but in a line with two such halves side by side as three bytes each.

Left out: the tenant, so that an archive can be read in as any; the epoch and the revision, which name a life in one
database; and the index that messages are searched by, which is made again from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from contract_engine.memory.errors import CorruptDataError, InvalidInputError
from contract_engine.memory.keys import check_message_id, check_session_id
from contract_engine.memory.serializer import UNREADABLE, decode_value, encode_message, encode_text, encode_value

FORMAT, VERSION = "contract-memory", 1
MAX_LINE_BYTES = 64 * 1024 * 1024
NO_LIMIT = 2**62

T = TypeVar("T", bound="_Line")
Int = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
BigInt = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Name = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"\A[^\x00-\x1f\ud800-\udfff]*\Z")]


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: str


class Header(_Line, frozen=True):
    """A session without its messages and summaries; the names are those of its row in ``memory_sessions``."""

    format: str
    version: int
    session_id: str
    last_seq: BigInt
    watermark: BigInt
    summary_version: Int
    summary_trigger_tokens: Limit | None
    max_buffer_tokens: Limit | None
    max_buffer_messages: Limit | None
    context: dict[str, Any] | None
    pinned: list[str] | None
    summary_instructions: str | None
    created_at: Moment
    updated_at: Moment


class ArchivedMessage(_Line, frozen=True):
    """A row of ``memory_messages``; ``message`` is its body."""

    seq: BigInt
    message_id: str
    tokens: Int
    message: dict[str, Any]
    created_at: Moment

    def body(self) -> bytes:
        """Return the message as it is stored."""
        return encode_message(self.message, max_bytes=NO_LIMIT)


class ArchivedSummary(_Line, frozen=True):
    """A row of ``memory_summaries``."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    first_seq: BigInt
    last_seq: BigInt
    segment: str | None
    text: str
    tokens: Int
    method: Name
    metadata: dict[str, Any] | None
    parent: Int | None
    model: Name | None
    prompt_hash: Name | None
    tokens_in: Int | None
    tokens_out: Int | None
    quarantined_at: Moment | None
    created_at: Moment


class Trailer(_Line, frozen=True):
    """What proves a session whole."""

    messages: int
    summaries: int
    sha256: str


class Counts(NamedTuple):
    """How many lines of each kind a session had."""

    messages: int
    summaries: int


def line_of(value: Mapping[str, Any]) -> bytes:
    """Return a line for values that came from the stores; a time as ISO 8601 in UTC, with microseconds."""
    told = {name: _moment(item) if isinstance(item, datetime) else item for name, item in value.items()}
    try:
        return _encoder.encode(told) + b"\n"
    except (*UNREADABLE, OverflowError):  # a lone surrogate, or a number of more than 64 bits
        line = json.dumps(told, allow_nan=False, separators=(",", ":"))
        if json.loads(line) == told:
            return line.encode("ascii") + b"\n"
        # Two halves side by side: as escapes they would be read as one character.
        return encode_text(json.dumps(told, ensure_ascii=False, separators=(",", ":"))) + b"\n"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


_encoder = msgspec.json.Encoder()


class ArchiveWriter:
    """Passes one session on to ``write``, line by line and in large pieces."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self.is_begun = False

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write some lines."""
        data = b"".join(map(line_of, rows))
        self.is_begun = True
        self._digest.update(data)
        self._write(data)

    def end(self, counts: Counts) -> None:
        """Write the trailer."""
        self._write(line_of({"kind": "end", **counts._asdict(), "sha256": self._digest.hexdigest()}))


class ArchiveReader:
    """Reads sessions one after the other; what is not as it was written raises :class:`InvalidInputError`.

    The error names the line and never says what stands in it. Only when :meth:`rows` has come to its end is a session
    known to be whole.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._next = next(self._lines, None)
        self._number = 0
        self._digest = hashlib.sha256()
        self.counts = Counts(0, 0)

    @property
    def is_at_end(self) -> bool:
        """Whether there is no further line."""
        return self._next is None

    def header(self) -> Header:
        """Read the first line of a session."""
        self._digest = hashlib.sha256()
        value = self._value()
        if value.get("kind") != "session" or value.get("format") != FORMAT:
            raise self.error("expected the first line of an exported session")
        version = value.get("version")
        if isinstance(version, int) and version > VERSION:
            raise self.error(f"format version {version}, this program reads up to {VERSION}: use a newer one")
        header = self._checked(value, Header)
        try:
            check_session_id(header.session_id)
            for message_id in header.pinned or ():
                check_message_id(message_id)
        except InvalidInputError:
            raise self.error("an id that no session or message can have") from None
        if header.watermark > header.last_seq:
            raise self.error("the watermark is behind the last message")
        return header

    def rows(self, header: Header) -> Iterator[ArchivedMessage | ArchivedSummary]:
        """Read the lines up to the trailer, each checked; the trailer is the last thing that is."""
        messages = summaries = version = 0
        while True:
            before = self._digest.hexdigest() if self._is_trailer() else ""
            value = self._value()
            kind = value.get("kind")
            if kind == "message" and not summaries:
                message = self._checked(value, ArchivedMessage)
                messages += 1
                if message.seq != messages:
                    raise self.error(f"expected message {messages}")
                try:
                    check_message_id(message.message_id)
                except InvalidInputError:
                    raise self.error("an id that no message can have") from None
                yield message
            elif kind == "summary":
                summary = self._checked(value, ArchivedSummary)
                summaries += 1
                if summary.version <= version or summary.last_seq > header.last_seq:
                    raise self.error("a summary version that does not fit the session")
                version = summary.version
                yield summary
            elif kind == "end":
                trailer = self._checked(value, Trailer)
                self.counts = Counts(messages, summaries)
                if (trailer.messages, trailer.summaries, trailer.sha256) != (*self.counts, before):
                    raise self.error("the session was edited or damaged: counts and SHA-256 are not its own")
                if (messages, version) != (header.last_seq, header.summary_version):
                    raise self.error("messages or summaries are missing")
                return
            else:
                raise self.error("expected a message, a summary or the end")

    def error(self, problem: str) -> InvalidInputError:
        """Return the error to raise at the line read last."""
        return InvalidInputError("archive", f"line {self._number}: {problem}")

    def _is_trailer(self) -> bool:
        return self._next is not None and self._next.startswith(b'{"kind":"end"')

    def _value(self) -> dict[str, Any]:
        line = self._next
        self._number += 1
        if line is None:
            raise self.error("the archive ends in the middle of a session" if self._number > 1 else "nothing there")
        if not line.endswith(b"\n"):
            problem = "longer than a line can be" if len(line) >= MAX_LINE_BYTES else "cut off"
            raise self.error(problem)
        self._digest.update(line)
        try:
            value = decode_value(line)
        except CorruptDataError:
            raise self.error("not JSON") from None
        if not isinstance(value, dict):
            raise self.error("not a JSON object")
        self._next = next(self._lines, None)
        return value

    def _checked(self, value: dict[str, Any], kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise self.error(f"not a {value['kind']} line of this format") from None


def context_bytes(context: Mapping[str, Any]) -> bytes:
    """Return a JSON object of an archive as it is stored."""
    return encode_value(dict(context), field="context", max_bytes=NO_LIMIT)
