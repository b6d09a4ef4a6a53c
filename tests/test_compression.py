"""Compressed: smaller where it can be, never larger, and nothing inflates without bound."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zstandard
from msgspec.structs import replace
from wrapper_fixtures import memories_by_conversation, memories_of_demo

from contract_engine.memory.errors import ConfigurationError, CorruptDataError, InvalidInputError
from contract_engine.working_memory import (
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    RichMemory,
)
from contract_engine.working_memory.compression import (
    DEFLATE,
    MAX_TEXT_BYTES,
    ZSTANDARD,
    Compressed,
    Dictionary,
    train_dictionary,
)
from contract_engine.working_memory.errors import (
    InflationError,
    MissingDictionaryError,
    UnreadableMemoryError,
    WrapperMissingError,
)
from contract_engine.working_memory.layers import run
from contract_engine.working_memory.records import Record, RecordKey
from contract_engine.working_memory.versions import Versioned

KEY = RecordKey.under("memory", ConversationMemoryType.WORKING_MEMORY, "c")


def of(text: str = "", *, conversation_id: str = "c") -> IMemoryInput:
    data = [IWorkingMemory(text)] if text else None
    return IMemoryInput(conversation_id, ConversationMemoryType.WORKING_MEMORY, data)


def stored(manager: InMemoryManager) -> Record:
    (record,) = run(manager.layer.read([KEY]))
    assert record is not None
    return record


def put_raw(manager: InMemoryManager, data: bytes, mark: str) -> None:
    """Put a memory there whose compressed form is not of our making."""
    manager.store(of("x"))
    record = stored(manager)
    text = base64.b64encode(data).decode()
    run(manager.layer.write([(KEY, replace(record, items=(replace(record.items[0], text=text, marks=(mark,)),)))]))


@pytest.mark.parametrize("text", ["a" * 200, "The user likes to walk. " * 50, "\x00" * 300, "é\ud800😀" * 100])
def test_what_is_regular_becomes_smaller_and_comes_back(text: str) -> None:
    inner = InMemoryManager()
    manager = Compressed(inner)
    manager.store(of(text))
    (item,) = stored(inner).items
    assert len(item.text) + len(item.marks[0]) < len(text.encode("utf-8", "surrogatepass"))
    assert [memory.working_memory for memory in manager.retrieve(of())] == [text]


def test_what_would_not_become_smaller_stays_as_it_is() -> None:
    inner = InMemoryManager()
    manager = Compressed(inner, min_chars=0)
    noise = random.Random(1)
    texts = ["", "x", "ab" * 4, *("".join(map(chr, noise.choices(range(33, 127), k=k))) for k in (10, 100, 1000))]
    for text in texts:
        manager.store(IMemoryInput("c", KEY.memory_type, [IWorkingMemory(text)]))
        (item,) = stored(inner).items
        assert (item.text, item.marks) == (text, ())
        assert manager.retrieve(of())[0].working_memory == text


def test_short_texts_are_left_alone_below_the_limit() -> None:
    inner = InMemoryManager()
    Compressed(inner, min_chars=201).store(of("a" * 200))
    assert stored(inner).items[0].marks == ()
    Compressed(inner, min_chars=200).store(of("a" * 200))
    assert stored(inner).items[0].marks == (DEFLATE,)


def test_the_method_that_makes_a_text_smallest_is_taken() -> None:
    inner = InMemoryManager()
    manager = Compressed(inner)
    methods = {}
    for name, text in {"short": "to walk or not to walk " * 20, "long": "to walk or not to walk " * 1000}.items():
        manager.store(of(text))
        methods[name] = stored(inner).items[0].marks
        assert manager.retrieve(of())[0].working_memory == text
    assert methods == {"short": (DEFLATE,), "long": (ZSTANDARD,)}


def stored_bytes(manager: InMemoryManager | Compressed, inner: InMemoryManager, text: str) -> int:
    (body,) = inner.store_of_records.get([manager.store(of(text))])
    assert body is not None
    return len(body)


def test_a_record_of_two_hundred_characters_takes_at_most_045_of_its_size_with_a_dictionary() -> None:
    """All that is stored, against all that is stored without it; the dictionary has seen other conversations only."""
    inner, conversations = InMemoryManager(), memories_by_conversation()
    before = after = 0
    for number, texts in enumerate(conversations):
        others = [text for each in conversations[:number] + conversations[number + 1 :] for text in each]
        manager = Compressed(inner, dictionary=train_dictionary(others))
        for text in texts:
            before += stored_bytes(inner, inner, text)
            after += stored_bytes(manager, inner, text)
            assert manager.retrieve(of())[0].working_memory == text
    assert len(conversations) == 5
    assert sum(map(len, conversations)) == 104
    assert after / before <= 0.45


def test_records_of_the_form_before_are_read() -> None:
    """JSON, with longer marks and what was deflated in base85."""
    text, texts = "to walk or not to walk " * 20, memories_of_demo()
    inner, dictionary = InMemoryManager(), Dictionary.of(train_dictionary(texts))
    manager = Compressed(inner, dictionary=dictionary.body)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary.body[-32_768:])
    packed = magicless(write_content_size=1).compress(text.encode())
    kinds = {
        f"deflate:{dictionary.id}": base64.b85encode(deflater.compress(text.encode()) + deflater.flush()),
        "deflate": base64.b85encode(deflated(text.encode())),
        "zstd": base64.b64encode(packed),
    }
    for mark, body in kinds.items():
        data = {"working_memory": body.decode(), "marks": [mark]}
        old = {"data": data, "metadata": {}, "created_at": "2026-01-01T00:00:00+00:00", "last_update": ""}
        inner.store_of_records.put([(KEY.name, json.dumps(old).encode(), None)])
        assert manager.retrieve(of())[0].working_memory == text
    manager.store_rich("c", RichMemory("and more"))
    assert [memory.working_memory for memory in manager.retrieve(of())] == [text, "and more"]


@pytest.mark.parametrize("metadata", [{"n": 2**70}, {"x": "\ud800"}, {"deep": [{"a": None, "b": [1.5, True]}]}])
def test_what_the_shorter_form_of_a_record_cannot_hold_is_kept_all_the_same(metadata: dict[str, Any]) -> None:
    manager, times = Compressed(InMemoryManager(wall_clock=iter(range(10)).__next__)), []
    manager.store(IMemoryInput("c", KEY.memory_type, [IWorkingMemory("a" * 200, metadata)], metadata={"of": "all"}))
    for text in ("a" * 200, "b" * 200):
        (memory,) = manager.retrieve(of())
        assert (memory.working_memory, memory.metadata) == (text, {"of": "all", **metadata})
        times.append((memory.created_at, memory.last_update))
        manager.update(of("b" * 200))
    (began, same), (still, later) = times
    assert began == same == still != later


@pytest.mark.parametrize("text", ["", "QR==", "QQ==", "QQ", "\u20ac", "a text"])
def test_what_another_wrapper_makes_of_a_text_comes_back_from_the_shorter_form_as_it_was(text: str) -> None:
    inner = InMemoryManager()
    inner.store(of("x"))
    record = stored(inner)
    changed = replace(record, items=(replace(record.items[0], text=text, marks=("other",)),))
    run(inner.layer.write([(KEY, changed)]))
    assert stored(inner).items == changed.items


def test_a_record_of_the_shorter_form_that_is_damaged_is_none() -> None:
    inner = InMemoryManager()
    manager = Compressed(inner)
    (whole,) = inner.store_of_records.get([manager.store(of("a" * 200))])
    assert whole is not None
    assert whole[:1] != b"{"
    assert inner.storage[KEY.name]["data"]["marks"] == [DEFLATE]
    for damaged in (whole[:-1], whole + b"x", whole[:1], b"\x96\x90\xc0\xa0\xa0\x90\xa0"):
        inner.store_of_records.put([(KEY.name, damaged, None)])
        with pytest.raises(CorruptDataError):
            manager.retrieve(of())


def test_a_dictionary_is_found_by_what_it_contains_and_old_ones_are_still_read() -> None:
    texts = memories_of_demo()
    old, new = train_dictionary(texts[:40]), train_dictionary(texts[40:])
    inner = InMemoryManager()
    Compressed(inner, dictionary=old).store(of(texts[0]))
    assert stored(inner).items[0].marks[0].endswith(f":{Dictionary.of(old).id}")

    for without in (Compressed(inner), Compressed(inner, dictionary=new)):
        with pytest.raises(MissingDictionaryError, match=Dictionary.of(old).id) as caught:
            without.retrieve(of())
        assert caught.value.dictionary_id == Dictionary.of(old).id
        assert texts[0][:20] not in str(caught.value)

    rotated = Compressed(inner, dictionary=new, older_dictionaries=[old])
    assert rotated.retrieve(of())[0].working_memory == texts[0]
    rotated.update(of(texts[41]))
    assert stored(inner).items[0].marks[0].endswith(f":{Dictionary.of(new).id}")
    assert rotated.retrieve(of())[0].working_memory == texts[41]


@pytest.mark.parametrize("is_short", [True, False])
def test_one_within_another_leaves_alone_what_is_compressed_already(is_short: bool) -> None:
    """Whatever dictionaries they have: each undoes what is its own."""
    texts = memories_of_demo()
    old, new = train_dictionary(texts[:40]), train_dictionary(texts[40:])
    text = texts[0][:60] if is_short else " ".join(texts)
    for within, outside in ((old, new), (None, new), (old, None), (new, new), (None, None)):
        inner = InMemoryManager()
        alone = Compressed(inner, dictionary=outside)
        alone.store(of(text))
        was_compressed, size = bool(stored(inner).items[0].marks), len(stored(inner).items[0].text)
        manager = Compressed(Compressed(Compressed(inner, dictionary=within), dictionary=within), dictionary=outside)
        manager.store(of(text))
        assert manager.retrieve(of())[0].working_memory == text
        manager.store_rich("c", RichMemory("and more"))
        assert [memory.working_memory for memory in manager.retrieve(of())] == [text, "and more"]
        manager.store(of(text))
        if was_compressed:
            assert stored(inner).items[0].marks[1:] == ("n", "n")
            assert len(stored(inner).items[0].text) == size


def test_every_method_has_its_dictionary() -> None:
    texts = memories_of_demo()
    inner = InMemoryManager()
    manager = Compressed(inner, dictionary=train_dictionary(texts))
    long = " ".join(texts)[:20_000]
    manager.store(IMemoryInput("c", KEY.memory_type, [IWorkingMemory(texts[3]), IWorkingMemory(long)]))
    assert [item.marks[0].partition(":")[0] for item in stored(inner).items] == [DEFLATE, ZSTANDARD]
    assert [memory.working_memory for memory in manager.retrieve(of())] == [texts[3], long]


def magicless(**settings: int) -> zstandard.ZstdCompressor:
    form = zstandard.FORMAT_ZSTD1_MAGICLESS
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, format=form, **settings)
    )


def deflated(body: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(body) + deflater.flush()


def many_items(count: int, size: int) -> IMemoryInput:
    data = [IWorkingMemory("x" * size) for _ in range(count)]
    return IMemoryInput("c", ConversationMemoryType.WORKING_MEMORY, data, limit=None)


def test_the_memories_of_a_record_inflate_to_no_more_than_the_limit_in_all() -> None:
    inner = InMemoryManager()
    manager = Compressed(inner, max_text_bytes=10_000)
    manager.store(many_items(10, 1000))
    assert len(manager.retrieve(many_items(10, 1000))) == 10
    before = stored(inner)
    with pytest.raises(InvalidInputError, match="data: 11,000 bytes of text, at most 10,000"):
        manager.store(many_items(11, 1000))
    assert stored(inner) == before
    Compressed(inner).store(many_items(11, 1000))
    with pytest.raises(InflationError, match="more than 10,000"):
        manager.retrieve(many_items(11, 1000))
    assert len(Compressed(inner).retrieve(many_items(11, 1000))) == 11


def test_earlier_versions_have_what_is_left_of_the_limit_the_newest_first() -> None:
    inner = InMemoryManager()
    manager = Versioned(Compressed(inner, max_text_bytes=3_500))
    texts = [str(number) * 1000 for number in range(6)]
    for text in texts:
        manager.store(of(text))
    assert [memory.working_memory for memory in manager.retrieve(of())] == texts[-1:]
    with pytest.raises(InflationError):
        manager.get_memory_history("c", KEY.memory_type)
    versions = stored(inner).versions
    manager.restore_version("c", KEY.memory_type, timestamp=versions[-2].last_update)
    assert [memory.working_memory for memory in manager.retrieve(of())] == [texts[3]]
    with pytest.raises(InflationError):
        manager.restore_version("c", KEY.memory_type, timestamp=versions[0].last_update)
    found = Versioned(Compressed(inner)).get_memory_history("c", KEY.memory_type)
    assert [version["content"] for version in found] == texts, "what was left alone is whole"


def test_a_damaged_version_keeps_nobody_from_what_is_there_now() -> None:
    inner = InMemoryManager()
    manager = Versioned(Compressed(inner))
    texts = [f"{number} {'y' * 100}" for number in range(3)]
    for text in texts:
        manager.store(of(text))
    record = stored(inner)
    (item,) = record.versions[0].items
    assert item.marks
    damaged = replace(record.versions[0], items=(replace(item, text=item.text[:-8]),))
    run(inner.layer.write([(KEY, replace(record, versions=(damaged, *record.versions[1:])))]))
    assert manager.retrieve(of())[0].working_memory == texts[2]
    manager.store_many([of("another " + "z" * 100), of(texts[0], conversation_id="d")])
    assert manager.retrieve(of())[0].working_memory == "another " + "z" * 100
    with pytest.raises(UnreadableMemoryError, match="WORKING_MEMORY:c: its compressed form is damaged") as caught:
        manager.get_memory_history("c", KEY.memory_type)
    assert caught.value.readable == tuple(version.last_update for version in stored(inner).versions[1:])
    manager.restore_version("c", KEY.memory_type, timestamp=record.versions[1].last_update)
    assert manager.retrieve(of())[0].working_memory == texts[1]
    assert stored(inner).versions[0] == damaged, "it stays as it is, until it is the oldest of too many"


BOMB_BYTES = 100_000_000


def bombs() -> dict[str, tuple[bytes, str]]:
    honest = magicless(write_content_size=1).compress(bytes(BOMB_BYTES))
    nameless = magicless(write_content_size=0).compressobj()
    silent = nameless.compress(bytes(BOMB_BYTES)) + nameless.flush()
    small = magicless(write_content_size=1).compress(bytes(200))
    assert small[1] == 200  # the size is the byte after the description of the head
    return {
        "a size that is too large": (honest, ZSTANDARD),
        "no size": (silent, ZSTANDARD),
        "deflate": (deflated(bytes(BOMB_BYTES)), DEFLATE),
    }


INFLATING = """
import base64, sys
from contract_engine.working_memory import Compressed, IMemoryInput, InflationError, InMemoryManager

def most_kilobytes():  # of this program alone: getrusage() also counts what the one that started it had
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

inner, request = InMemoryManager(max_bytes=2**29), IMemoryInput("c", "WORKING_MEMORY")
for limit, line in zip(sys.argv[1:], sys.stdin.buffer, strict=True):
    manager = Compressed(inner, max_text_bytes=int(limit))
    inner.store_of_records.put([("memory:WORKING_MEMORY:c", base64.b64decode(line), None)])
    before = most_kilobytes()
    try:
        size = len(manager.retrieve(request)[0].working_memory)
    except InflationError:
        size = -1
    print(size, most_kilobytes() - before)
"""


def test_a_bomb_is_refused_and_not_inflated() -> None:
    """In a process of its own, whose memory nobody else has used; it sees one that is inflated, after the others."""
    inner, refused = InMemoryManager(), bombs()
    kinds = {**refused, "within the limit": refused["a size that is too large"]}
    limits = [*(1_000_000 for _ in refused), BOMB_BYTES]
    bodies: list[bytes] = []
    for data, mark in kinds.values():
        assert len(data) < MAX_TEXT_BYTES / 100
        put_raw(inner, data, mark)
        bodies += filter(None, inner.store_of_records.get([KEY.name]))
    command = [sys.executable, "-W", "error", "-c", INFLATING, *map(str, limits)]
    lines = b"\n".join(map(base64.b64encode, bodies))
    done = subprocess.run(command, env=dict(os.environ), input=lines, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = [map(int, line.split()) for line in done.stdout.splitlines()]
    sizes, grown = (dict(zip(kinds, each, strict=True)) for each in zip(*found, strict=True))
    assert sizes == {**dict.fromkeys(refused, -1), "within the limit": BOMB_BYTES}
    inflated = grown.pop("within the limit")
    assert max(grown.values()) < BOMB_BYTES / 1024 / 4, grown
    assert inflated > BOMB_BYTES / 1024


def test_a_size_that_is_a_lie_is_damage() -> None:
    inner = InMemoryManager()
    data = bytearray(magicless(write_content_size=1).compress(bytes(200)))
    assert data[1] == 200
    data[1] = 100
    put_raw(inner, bytes(data), ZSTANDARD)
    with pytest.raises(UnreadableMemoryError):
        Compressed(inner).retrieve(of())


@pytest.mark.parametrize("method", [ZSTANDARD, DEFLATE])
def test_damage_is_told_and_is_no_text(method: str) -> None:
    whole = magicless(write_content_size=1).compress(b"abc" * 99) if method == ZSTANDARD else deflated(b"abc" * 99)
    inner = InMemoryManager()
    for data in (b"", whole[:-2], whole + b"\x00\x00", b"\xff" * 50):
        put_raw(inner, data, method)
        with pytest.raises(UnreadableMemoryError):
            Compressed(inner).retrieve(of())
    record = stored(inner)
    broken = replace(record.items[0], text="neither base64 nor anything: \u20ac")
    run(inner.layer.write([(KEY, replace(record, items=(broken,)))]))
    with pytest.raises(UnreadableMemoryError):
        Compressed(inner).retrieve(of())


def test_a_reader_without_the_wrapper_is_told_so_and_one_with_it_reads_what_was_plain() -> None:
    inner = InMemoryManager()
    inner.store(of("written before there was a wrapper, and long enough to be compressed " * 3))
    manager = Compressed(inner)
    assert manager.retrieve(of())[0].working_memory.startswith("written before")
    manager.store(of("b" * 500))
    with pytest.raises(WrapperMissingError):
        inner.retrieve(of())


def test_threads_share_a_wrapper() -> None:
    texts = memories_of_demo()
    manager = Compressed(InMemoryManager(), dictionary=train_dictionary(texts))

    def work(number: int) -> bool:
        name, text = f"c{number}", texts[number % len(texts)] * (1 + number % 3 * 20)
        manager.store(of(text, conversation_id=name))
        return manager.retrieve(of(conversation_id=name))[0].working_memory == text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(800)))


def test_settings_are_checked() -> None:
    inner = InMemoryManager()
    for settings in ({"level": 0}, {"level": 23}, {"min_chars": -1}, {"max_text_bytes": 0}, {"level": True}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            Compressed(inner, **settings)
    for dictionary in ("text", b"", b"short"):
        with pytest.raises(ConfigurationError, match="dictionary"):
            Compressed(inner, dictionary=dictionary)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="texts"):
        train_dictionary(["", ""])
    with pytest.raises(InvalidInputError, match="max_bytes"):
        train_dictionary(["a"], max_bytes=10)
    with pytest.raises(InvalidInputError, match="manager"):
        Compressed("a manager")  # type: ignore[arg-type]


def test_a_text_that_could_not_be_read_again_is_not_written() -> None:
    manager = Compressed(InMemoryManager(), max_text_bytes=1000)
    with pytest.raises(InvalidInputError, match="1,001"):
        manager.store(of("a" * 1001))
    assert manager.retrieve(of()) == []


def test_a_dictionary_is_made_of_anything() -> None:
    for texts in (["a"], ["one text only, and it is short"], ["x" * 100_000], [f"memory {n}" for n in range(2000)]):
        dictionary = train_dictionary(texts, max_bytes=2048)
        assert 8 <= len(dictionary) <= 2048
        inner = InMemoryManager()
        manager = Compressed(inner, dictionary=dictionary)
        text = (texts[-1] * 30)[:100_000]
        manager.store(of(text))
        assert manager.retrieve(of())[0].working_memory == text


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigurationError, match=r"contract-engine\[compression\]"):
        Compressed(InMemoryManager())
