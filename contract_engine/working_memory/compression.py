"""Memories made smaller on their way to the store, with a dictionary of what such memories are like."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from contract_engine.memory.errors import ConfigurationError, CorruptDataError, InvalidInputError
from contract_engine.memory.serializer import decode_text, encode_text
from contract_engine.working_memory.errors import InflationError, MissingDictionaryError, UnreadableMemoryError
from contract_engine.working_memory.layers import Layer
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.settings import check_count
from contract_engine.working_memory.wrapping import AsyncWrapper, Known, Manager, Room, Sealing, Wrapped, Wrapper

ZSTANDARD = "z"
DEFLATE = "d"
OLD_ZSTANDARD = "zstd"
OLD_DEFLATE = "deflate"
"""As they were called in records that are JSON, where deflated texts were base85; these are only read."""

METHODS = frozenset([ZSTANDARD, DEFLATE, OLD_ZSTANDARD, OLD_DEFLATE])

AS_IT_WAS = "n"
"""What a wrapper outside has compressed already, so that its mark is not taken for one of ours."""

MIN_CHARS = 48
"""Shorter texts are not tried: what there is to win is eaten up by the mark."""

LEVEL = 12
"""Of Zstandard. Above it short texts get no smaller to speak of, and long ones take much longer."""

MAX_TEXT_BYTES = 64 * 2**20
"""The texts of a record, of its earlier versions too, become no larger than this in all when they are inflated,
whatever their compressed forms say."""

SHORT_BYTES = 1024
"""Up to here raw deflate is tried too: its fixed code costs nothing, where a frame of Zstandard costs ten bytes."""

_WINDOW_BYTES = 32_768  # as far back as deflate can refer; most useful is what stands last


@dataclass(frozen=True, slots=True)
class Dictionary:
    """What texts are likely to repeat; ``id`` is of its bytes, so two dictionaries are never taken for each other."""

    body: bytes
    id: str

    @classmethod
    def of(cls, body: object) -> Dictionary:
        """Look at what a caller gave as a dictionary."""
        if not isinstance(body, bytes) or len(body) < 8:
            raise ConfigurationError("dictionary", "expected the bytes of train_dictionary()")
        return cls(body, hashlib.sha256(body).hexdigest()[:8])


class Codec(threading.local):
    """Compressor and decompressor of one dictionary, or of none; those of Zstandard serve one thread at a time."""

    def __init__(self, dictionary: Dictionary | None, level: int) -> None:
        zstd = _zstandard()
        given = zstd.ZstdCompressionDict(dictionary.body) if dictionary else None
        # Magic and dictionary number are eight bytes, a twentieth of a short memory; the mark says the same.
        form = zstd.FORMAT_ZSTD1_MAGICLESS
        settings = zstd.ZstdCompressionParameters.from_level(level, write_content_size=1, write_dict_id=0, format=form)
        if given is not None:
            given.precompute_compress(compression_params=settings)  # not at every text
        self._compressor = zstd.ZstdCompressor(dict_data=given, compression_params=settings)
        self._decompressor = zstd.ZstdDecompressor(dict_data=given, format=form)
        self._preset = dictionary.body[-_WINDOW_BYTES:] if dictionary else b""
        self._deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, self._preset)

    def compress(self, body: bytes) -> tuple[str, str]:
        """Return the name of the method that makes it smallest, and the text it makes of it."""
        data = self._compressor.compress(body)
        if len(body) <= SHORT_BYTES:
            deflater = self._deflater.copy()
            deflated = deflater.compress(body) + deflater.flush()
            if len(deflated) < len(data):
                return DEFLATE, _text_of(deflated)
        return ZSTANDARD, _text_of(data)

    def inflate(self, method: str, text: str, *, max_bytes: int) -> bytes | None:
        """Return the bytes, None where they are more than ``max_bytes``: never more than that is made of them."""
        data = base64.b85decode(text) if method == OLD_DEFLATE else base64.b64decode(text, validate=True)
        if method in (DEFLATE, OLD_DEFLATE):
            inflater = zlib.decompressobj(-15, self._preset)
            body = inflater.decompress(data, max_bytes + 1)
            if len(body) <= max_bytes and not (inflater.eof and not inflater.unused_data):
                raise ValueError("cut or followed by something")
        else:
            zstd = _zstandard()
            stated = zstd.get_frame_parameters(data, zstd.FORMAT_ZSTD1_MAGICLESS).content_size
            if stated > max_bytes:  # also what is not stated: it reads as the largest number there is
                return None
            # One buffer of the stated size is all it gets: a head that lies is an error, whatever follows it.
            body = self._decompressor.decompress(data, allow_extra_data=False)
        return body if len(body) <= max_bytes else None


class CompressedLayer(Sealing):
    """Compresses texts, and leaves alone those that would not get smaller."""

    def __init__(
        self,
        below: Layer,
        *,
        dictionary: bytes | None,
        older_dictionaries: Sequence[bytes],
        min_chars: int,
        level: int,
        max_text_bytes: int,
    ) -> None:
        super().__init__(below)
        self._min_chars = check_count("min_chars", min_chars, least=0, most=2**31)
        self._max_text_bytes = check_count("max_text_bytes", max_text_bytes, least=1, most=2**31)
        check_count("level", level, least=1, most=22)
        current = None if dictionary is None else Dictionary.of(dictionary)
        self._mark = current.id if current else ""
        given: object = older_dictionaries
        if isinstance(given, bytes | str) or not isinstance(given, Sequence):
            raise ConfigurationError("older_dictionaries", "expected a list of dictionaries")
        known = [None, current, *map(Dictionary.of, older_dictionaries)]
        self._codecs = {each.id if each else "": Codec(each, level) for each in known}

    def seal(self, key: RecordKey, item: Item) -> Item:
        """See :class:`Sealing`."""
        method, _ = _last_mark(item)
        if method in METHODS or method == AS_IT_WAS:
            return replace(item, marks=(*item.marks, AS_IT_WAS))
        if len(item.text) < self._min_chars:
            return item
        body = encode_text(item.text)
        method, text = self._codecs[self._mark].compress(body)
        mark = f"{method}:{self._mark}" if self._mark else method
        if len(text) + len(mark) >= len(body):
            return item
        return replace(item, text=text, marks=(*item.marks, mark))

    def sealed(self, key: RecordKey, record: Record, known: Known | None = None) -> Record:
        """See :class:`Sealing`; what could not be opened again is refused."""
        if 4 * sum(len(item.text) for item in record.items) > self._max_text_bytes and record.left is None:
            size = sum(len(encode_text(item.text)) for item in record.items)
            if size > self._max_text_bytes:
                raise InvalidInputError("data", f"{size:,} bytes of text, at most {self._max_text_bytes:,}")
        return super().sealed(key, record, known)

    def is_current(self, item: Item) -> bool:
        """See :class:`Sealing`: what an older dictionary has compressed is compressed anew, what is plain not tried."""
        method, dictionary_id = _last_mark(item)
        return method not in METHODS or dictionary_id == self._mark

    def new_room(self) -> Room:
        """See :class:`Sealing`."""
        return Room(self._max_text_bytes)

    def open(self, key: RecordKey, item: Item, room: Room) -> Item:
        """See :class:`Sealing`."""
        method, dictionary_id = _last_mark(item)
        if method == AS_IT_WAS:
            return replace(item, marks=item.marks[:-1])
        if method not in METHODS:
            return item
        codec = self._codecs.get(dictionary_id)
        if codec is None:
            raise MissingDictionaryError(key, dictionary_id)
        try:
            body = codec.inflate(method, item.text, max_bytes=room.left)
            text = None if body is None else decode_text(body)
        except (ValueError, binascii.Error, zlib.error, _zstandard().ZstdError, CorruptDataError) as exc:
            raise UnreadableMemoryError(key, "its compressed form is damaged") from exc
        if body is None or text is None:
            raise InflationError(key, f"inflates to more than {self._max_text_bytes:,} bytes")
        room.left -= len(body)
        return replace(item, text=text, marks=item.marks[:-1])


class _Compressed(Wrapped[Manager]):
    """What both colours have."""

    def __init__(
        self,
        manager: Manager,
        *,
        dictionary: bytes | None = None,
        older_dictionaries: Sequence[bytes] = (),
        min_chars: int = MIN_CHARS,
        level: int = LEVEL,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        wrap = partial(
            CompressedLayer,
            dictionary=dictionary,
            older_dictionaries=older_dictionaries,
            min_chars=min_chars,
            level=level,
            max_text_bytes=max_text_bytes,
        )
        super().__init__(manager, wrap)


class Compressed(_Compressed[WorkingMemoryManager], Wrapper):
    """Keeps texts compressed where that makes them smaller; metadata stay as they are.

    ``dictionary``: of :func:`train_dictionary`; without one, texts of less than a few hundred characters hardly shrink.
    It is needed to read what was written with it, so keep it; ``older_dictionaries`` are only read with. A record that
    would inflate to more than ``max_text_bytes`` in all is an :class:`InflationError`, and is not inflated; so is an
    earlier version for which nothing of that is left.
    """


class AsyncCompressed(_Compressed[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Compressed` for an event loop."""


def train_dictionary(texts: Iterable[str], *, max_bytes: int = 65_536) -> bytes:
    """Return a dictionary for memories like these.

    A few hundred texts are enough, a few thousand are better; they can be read in it, so keep it as they are kept. Two
    ways are tried on texts that were set aside: what the trainer of Zstandard picks, and simply the newest texts.
    """
    source: object = texts
    if isinstance(source, bytes | str) or not isinstance(source, Iterable):
        raise InvalidInputError("texts", f"expected texts, got {type(source).__name__}")
    given = list(source)
    if not all(isinstance(text, str) for text in given):
        raise InvalidInputError("texts", "expected texts, and there is something else among them")
    bodies = [encode_text(text) for text in given if text]
    if not bodies:
        raise InvalidInputError("texts", "expected at least one text that is not empty")
    most: object = max_bytes
    if isinstance(most, bool) or not isinstance(most, int) or most < 1024:
        raise InvalidInputError("max_bytes", f"expected a whole number from 1,024, got {most!r}")
    aside = bodies[::5]
    learnt = [body for number, body in enumerate(bodies) if number % 5] or bodies
    sizes = {}
    for way in (_newest, _trained):
        candidate = way(learnt, max_bytes)
        if candidate is not None:
            codec = Codec(Dictionary.of(candidate), LEVEL)
            sizes[way] = sum(len(codec.compress(body)[1]) for body in aside)
    best = min(sizes, key=lambda way: sizes[way])
    return best(bodies, max_bytes) or _newest(bodies, max_bytes)


def _last_mark(item: Item) -> tuple[str, str]:
    """Return the method of the last mark, and the dictionary where it is one of compression."""
    method, _, dictionary_id = item.marks[-1].partition(":") if item.marks else ("", "", "")
    return method, dictionary_id


def _text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")  # the lowest layer keeps it as the bytes that it is


def _newest(bodies: Sequence[bytes], max_bytes: int) -> bytes:
    return b"\n".join(bodies)[-max_bytes:].rjust(8, b"\n")


def _trained(bodies: Sequence[bytes], max_bytes: int) -> bytes | None:
    zstd = _zstandard()
    try:
        trained: bytes = zstd.train_dictionary(
            max_bytes, list(bodies), d=8, steps=4, level=LEVEL, split_point=1.0
        ).as_bytes()
    except zstd.ZstdError:  # too little to learn from
        return None
    return trained


def _zstandard() -> Any:
    """Import late: only those who compress need the package."""
    try:
        import zstandard
    except ImportError as exc:
        problem = "needs the package zstandard: install contract-engine[compression]"
        raise ConfigurationError("compression", problem) from exc
    return zstandard
