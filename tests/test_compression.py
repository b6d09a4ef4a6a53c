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

import pytest
import zstandard
from msgspec.structs import replace
from wrapper_fixtures import memories_of_demo

from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.working_memory import ConversationMemoryType, IMemoryInput, InMemoryManager, IWorkingMemory
from contract_engine.working_memory.compression import (
    DEFLATE,
    MAX_TEXT_BYTES,
    ZSTANDARD,
    Compressed,
    Dictionary,
    train_dictionary,
)
from contract_engine.working_memory.errors import (
    MissingDictionaryError,
    UnreadableMemoryError,
    WrapperMissingError,
)
from contract_engine.working_memory.layers import run
from contract_engine.working_memory.records import Record, RecordKey

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
    text = (base64.b85encode if mark == DEFLATE else base64.b64encode)(data).decode()
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


def test_a_text_of_two_hundred_characters_takes_at_most_045_of_its_size_with_a_dictionary() -> None:
    """Texts of real conversations, none of which the dictionary was trained on, in the form that is stored.

    That is the text alone; with the mark beside it, which is as long for every text, it is more.
    """
    texts = memories_of_demo()
    random.Random(7).shuffle(texts)
    cut = len(texts) * 2 // 3
    inner = InMemoryManager()
    manager = Compressed(inner, dictionary=train_dictionary(texts[:cut]))
    before = after = marks = 0
    for text in texts[cut:]:
        manager.store(of(text))
        before += len(text.encode())
        (item,) = stored(inner).items
        after += len(item.text.encode())
        marks += len(json.dumps({"marks": list(item.marks)}, separators=(",", ":"))) - 1  # a comma for two braces
        assert manager.retrieve(of())[0].working_memory == text
    assert len(texts) - cut >= 30
    assert after / before <= 0.45
    assert marks == 29 * (len(texts) - cut)
    assert (after + marks) / before <= 0.6


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
import sys
from contract_engine.working_memory import Compressed, IMemoryInput, InflationError, InMemoryManager

def most_kilobytes():  # of this program alone: getrusage() also counts what the one that started it had
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

inner, request = InMemoryManager(max_bytes=2**29), IMemoryInput("c", "WORKING_MEMORY")
for limit, body in zip(sys.argv[1:], sys.stdin.buffer, strict=True):
    manager = Compressed(inner, max_text_bytes=int(limit))
    inner.store_of_records.put([("memory:WORKING_MEMORY:c", body, None)])
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
    lines = b"\n".join(bodies)
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
    broken = replace(record.items[0], text="neither base85 nor anything: \u20ac")
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
