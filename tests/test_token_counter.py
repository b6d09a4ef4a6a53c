"""TokenCounter: equal to tiktoken where it says so, bounded everywhere, offline, and right about messages."""

from __future__ import annotations

import enum
import json
import logging
import lzma
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public  # type: ignore[import-untyped]
from tool_traffic import TRAFFIC

from contract_engine.memory import encodings as encodings_package
from contract_engine.memory import token_counter
from contract_engine.memory.encodings import SHIPPED, EncodingLibrary, encodings, load_encoding
from contract_engine.memory.encodings.measurement import (
    CHUNK_CHARS,
    MAX_MEASURED_CHARS,
    RUN_CHARS,
    estimate_tokens,
    measure,
)
from contract_engine.memory.errors import ConfigurationError, CorruptDataError
from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.token_counter import TokenCount, TokenCounter

# tiktoken names a cached file by the SHA-1 of the address it comes from.
CACHE_NAMES = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
MODELS = {"o200k_base": "gpt-4o", "cl100k_base": "gpt-4"}

PROSE = (
    "The orchestrator asks for the session's context, calls its model, and appends the answer; it's 3:45 p.m. and "
    "12,500 messages wait.\n\n    def fold(rest):\n        return rest[:-1]  # keeps the newest\n\tTab, "
    "“quotes” — dash. "
)
SAMPLES = {
    "english": "The library keeps the context small and complete, however long the conversation gets. ",
    "german": "Die Bibliothek hält den Gesprächsverlauf klein und vollständig, wie lang er auch wird. ",
    "russian": "Библиотека хранит контекст разговора коротким и полным, каким бы длинным он ни был. ",
    "chinese": "无论对话变得多长，这个库都能让上下文保持简短而完整。",
    "japanese": "会話がどれだけ長くなっても、このライブラリは文脈を小さく完全に保ちます。",
    "hindi": "बातचीत कितनी भी लंबी हो, यह लाइब्रेरी संदर्भ को छोटा और पूरा रखती है। ",
    "arabic": "مهما طالت المحادثة، تحافظ هذه المكتبة على السياق صغيرًا وكاملاً. ",
    "code": "for index, row in enumerate(rows):\n    total += row['amount'] * 1.19\n",
    "json": '{"id":"call_17","function":{"name":"search","arguments":"{\\"q\\":\\"laptop\\"}"}},',
    "emoji": "😀🎉👩‍👩‍👧‍👦🇨🇭 ok ",
}


def packed_file(name: str) -> bytes:
    return resources.files(encodings_package).joinpath(f"{name}.tiktoken.xz").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tiktoken.Encoding]]:
    """tiktoken's own encodings, made by its own constructors from files laid into its cache."""
    cache = tmp_path_factory.mktemp("tiktoken-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        made = {}
        for name, cache_name in CACHE_NAMES.items():
            (cache / cache_name).write_bytes(lzma.decompress(packed_file(name)))
            made[name] = tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())
        yield made


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    made = TokenCounter()
    assert made.warm()
    return made


class CountingSource:
    """An encoding that makes a token of each character and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def get(self, name: str) -> CountingSource:
        return self

    def encode_ordinary(self, text: str) -> list[int]:
        self.seen.append(text)
        return [0] * len(text)


class FailingSource:
    """An encoding that fails as ``action`` does."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def get(self, name: str) -> FailingSource:
        return self

    def encode_ordinary(self, text: str) -> list[int]:
        self.action()
        raise AssertionError("the action did not fail")


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


def run_python(code: str, **environ: str) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env | environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# Encodings


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_encoding_equals_the_one_tiktoken_builds(name: str, reference: dict[str, tiktoken.Encoding]) -> None:
    ours, theirs = load_encoding(name), reference[name]
    assert ours.name == theirs.name
    assert ours._special_tokens == theirs._special_tokens
    assert ours._mergeable_ranks == theirs._mergeable_ranks
    assert ours._pat_str == theirs._pat_str


def test_import_and_construction_load_nothing() -> None:
    out = run_python(
        "import sys; from contract_engine.memory.token_counter import TokenCounter; TokenCounter('gpt-4');"
        "print([m for m in ('tiktoken', 'regex', 'requests') if m in sys.modules])"
    )
    assert out == "[]"


def test_counting_never_touches_the_network(tmp_path: Path) -> None:
    code = """
import socket
touched = []
def refuse(*args, **kwargs):
    touched.append(args)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from contract_engine.memory.token_counter import TokenCounter
models = ("gpt-4o", "gpt-4", "gpt-2", "text-davinci-003", "gpt-oss-120b", "code-davinci-edit-001", "claude-x", "none")
counts = [TokenCounter(model).count("hello world") for model in models]
assert all(count == (2, False) for count in counts), counts
print(len(counts), touched)
"""
    assert run_python(code, TMPDIR=str(tmp_path), TIKTOKEN_CACHE_DIR=str(tmp_path / "empty")) == "8 []"
    assert list(tmp_path.iterdir()) == []


def test_without_tiktoken_counts_are_estimates() -> None:
    out = run_python(
        "import sys; sys.modules['tiktoken'] = None\n"
        "from contract_engine.memory.token_counter import TokenCounter\n"
        "c = TokenCounter('gpt-4'); print(c.encoding_name, c.warm(), *c.count('a' * 10))"
    )
    assert out == "o200k_base False 3 True"


def test_an_encoding_is_loaded_once_for_all_threads() -> None:
    opened: list[str] = []

    class Directory(type(Path())):  # type: ignore[misc]  # the concrete class differs by platform
        def joinpath(self, *parts: Any) -> Path:
            opened.append(str(parts[0]))
            time.sleep(0.05)
            return Path(str(self), *parts)

    library = EncodingLibrary(Directory(str(resources.files(encodings_package))))
    barrier = threading.Barrier(8)

    def first_count(_: int) -> int:
        barrier.wait()
        return TokenCounter("gpt-4", source=library).count_tokens("hello world")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first_count, range(8))) == [2] * 8
    assert opened == ["cl100k_base.tiktoken.xz"]


def _other_content() -> bytes:
    data = bytearray(lzma.decompress(packed_file("cl100k_base")))
    data[0] ^= 1
    return lzma.compress(bytes(data), preset=0)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (lambda: None, FileNotFoundError),
        (lambda: b"not xz at all", CorruptDataError),
        (lambda: packed_file("cl100k_base")[:-1000], CorruptDataError),
        (_other_content, CorruptDataError),
    ],
    ids=["missing", "not xz", "truncated", "other content"],
)
def test_damaged_data_is_logged_once_and_counts_become_estimates(
    content: Callable[[], bytes | None], error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if (data := content()) is not None:
        (tmp_path / "cl100k_base.tiktoken.xz").write_bytes(data)
    with pytest.raises(error):
        load_encoding("cl100k_base", tmp_path)
    library = EncodingLibrary(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            damaged = TokenCounter("gpt-4", source=library)
            assert damaged.warm() is False
            assert damaged.count("private words here") == TokenCount(5, True)
            assert damaged.count_tokens("字" * 100_000) == 100_000
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cl100k_base" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("gpt-oss-120b", "o200k_base"),
        ("text-davinci-003", "o200k_base"),
        ("gpt2", "o200k_base"),
        ("some-other-model", "o200k_base"),
    ],
)
def test_model_decides_the_encoding(model: str, encoding: str, reference: dict[str, tiktoken.Encoding]) -> None:
    made = TokenCounter(model)
    assert made.encoding_name == encoding
    assert made.count_tokens(SAMPLES["chinese"]) == len(reference[encoding].encode_ordinary(SAMPLES["chinese"]))


def test_the_default_model_is_gpt_4o() -> None:
    assert TokenCounter().model == "gpt-4o"


@pytest.mark.parametrize("model", [None, 4, b"gpt-4o", ["gpt-4o"], ""])
def test_a_model_that_is_not_a_text_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="model") as caught:
        TokenCounter(model)
    assert caught.value.field == "model"


# One text


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=2 * RUN_CHARS))
def test_any_text_counts_as_tiktoken_encodes_it(name: str, reference: dict[str, tiktoken.Encoding], text: str) -> None:
    expected = TokenCount(len(reference[name].encode_ordinary(text)), False)
    assert TokenCounter(MODELS[name]).count(text) == expected


FRAGMENTS = [
    *("a", "B", "word", " word", "it's", "'s", "’s", "\u0301", "1", "12345", "½", "Ⅷ", "_", "-", "…", "...", "/", "//"),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        " \n ",
        "\t",
        "\xa0",
        "\u3000",
        "\x1c",
        "\x85",
        "。",
        "、",
        "中文字",
        "「",
        "々",
        "ไทยภาษา",
    ),
    *(
        "हिन्दी",
        "한국어",
        "😀",
        "\ud83d",
        "\ude00",
        "\0",
        "ſ",
        "İ",
        "<|endoftext|>",
        "0x1F",
        "==",
        '{"k":',
        "🇨🇭",
        "\u200d",
    ),
]


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from([1, 1, 1, 2, 7, 700])), min_size=1, max_size=30
    ),
    length=st.integers(2 * RUN_CHARS + 1, 6 * RUN_CHARS),
)
@example(parts=[("12345", 1), ("½", 1)], length=1454)
@example(parts=[("x½", 1), ("12345½", 700)], length=1454)
def test_a_count_of_a_long_text_is_exact_or_says_that_it_is_not(
    name: str, reference: dict[str, tiktoken.Encoding], parts: list[tuple[str, int]], length: int
) -> None:
    unit = "".join(fragment * times for fragment, times in parts)
    text = (unit * (length // len(unit) + 1))[:length]
    exact = len(reference[name].encode_ordinary(text))
    count = measure(encodings.get(name), text)
    if count.is_estimate:
        # A torn cut stands at the end of 512 characters, so there are at most 12 of them, each a few tokens off.
        assert abs(count.tokens - exact) <= 12 * 6
    else:
        assert count.tokens == exact


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("language", SAMPLES)
def test_ordinary_long_texts_are_exact(name: str, language: str, reference: dict[str, tiktoken.Encoding]) -> None:
    text = (SAMPLES[language] * 6000)[: CHUNK_CHARS + 9_999]
    assert len(text) == CHUNK_CHARS + 9_999
    assert measure(encodings.get(name), text) == (len(reference[name].encode_ordinary(text)), False)


def test_text_up_to_the_cap_is_measured_whole(counter: TokenCounter, reference: dict[str, tiktoken.Encoding]) -> None:
    text = (PROSE * 2000)[:MAX_MEASURED_CHARS]
    assert counter.count(text) == (len(reference["o200k_base"].encode_ordinary(text)), False)


def test_text_above_the_cap_is_sampled_from_all_its_parts(
    counter: TokenCounter, reference: dict[str, tiktoken.Encoding]
) -> None:
    # Half of it in one language and half in another: measuring the beginning alone would be off by a factor.
    text = SAMPLES["english"] * 6000 + SAMPLES["chinese"] * 20_000
    exact = len(reference["o200k_base"].encode_ordinary(text))
    count = counter.count(text)
    assert count.is_estimate
    assert abs(count.tokens - exact) < 0.06 * exact


def test_special_tokens_are_ordinary_text(counter: TokenCounter) -> None:
    text = "<|endoftext|><|endofprompt|><|im_start|>"
    assert counter.count(text).tokens > 10
    assert TokenCounter("gpt-4").count("<|fim_prefix|>").tokens > 3


PATHOLOGICAL = [
    "a",
    "A",
    " ",
    "\n",
    "\t",
    "=",
    "中",
    "😀",
    "\0",
    "\ud800",
    "\u0301",
    "\u3000",
    "\u200b",
    "a\u0301",
    "7",
]


@pytest.mark.parametrize("unit", PATHOLOGICAL, ids=ascii)
def test_a_million_repetitions_count_in_bounded_time(unit: str, counter: TokenCounter) -> None:
    # Prose of the measured length, encoded by tiktoken itself, is the yardstick; both run on the same busy machine.
    text = (PROSE * 2000)[:MAX_MEASURED_CHARS]
    encode = load_cached("o200k_base").encode_ordinary
    yardstick = min(seconds(lambda: encode(text)) for _ in range(2))
    for length in (1_000_000, 16 * 1024 * 1024):
        repeated = unit * (length // len(unit))
        assert min(seconds(lambda t=repeated: counter.count(t)) for _ in range(2)) < 60 * yardstick  # type: ignore[misc]
        count = counter.count(repeated)
        assert count.is_estimate
        assert len(repeated) / 200 < count.tokens <= 4 * len(repeated)


def load_cached(name: str) -> tiktoken.Encoding:
    found = encodings.get(name)
    assert found is not None
    return found


@pytest.mark.parametrize("length", [RUN_CHARS, 2 * RUN_CHARS, 2 * RUN_CHARS + 1, CHUNK_CHARS, CHUNK_CHARS + 1])
def test_long_runs_are_a_few_tokens_off_at_most(length: int, counter: TokenCounter) -> None:
    for unit in ("a", " ", "中"):
        exact = len(load_cached("o200k_base").encode_ordinary(unit * length))
        count = counter.count(unit * length)
        assert count.is_estimate == (length > 2 * RUN_CHARS)
        assert abs(count.tokens - exact) <= (length // RUN_CHARS + 2 if count.is_estimate else 0)


def test_no_long_run_reaches_tiktoken_in_one_call() -> None:
    source = CountingSource()
    lazy = TokenCounter(source=source)
    for text in ("x" * 300_000, " " * 5000, "\n \t" * 4000, PROSE * 10 + "y" * 2000 + PROSE * 10):
        source.seen.clear()
        lazy.count(text)
        for piece in source.seen:
            assert len(piece) <= RUN_CHARS or max(map(len, piece.split(" "))) < 2 * RUN_CHARS


def test_estimates_stay_within_a_factor_of_the_truth(reference: dict[str, tiktoken.Encoding]) -> None:
    for name, text in SAMPLES.items():
        for encoding in reference.values():
            ratio = estimate_tokens(text) / len(encoding.encode_ordinary(text))
            assert 0.45 < ratio < 3, (name, encoding.name, ratio)
    assert estimate_tokens("") == 0
    assert estimate_tokens("a") == 1
    assert estimate_tokens("\ud800") == 1


class Colour(str, enum.Enum):  # noqa: UP042  # the older spelling is the one whose str() is not its value
    RED = "red wine"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "same_as"),
    [
        (None, ""),
        ("", ""),
        (42, "42"),
        (True, "true"),
        (1.5, "1.5"),
        (b"hello world", "hello world"),
        (bytearray(b"\xff"), "\ufffd"),
        ({"a": [1, "é"]}, '{"a":[1,"é"]}'),
        ({("no", "key"): 1, "b": 2}, '{"b":2}'),
        (Colour.RED, "red wine"),
        (Unprintable(), "Unprintable"),
        (CYCLE, "list"),
        (10**5000, "int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_texts_count_as_what_would_be_sent(
    value: object, same_as: str, counter: TokenCounter
) -> None:
    assert counter.count(value) == counter.count(same_as)
    assert counter.count_tokens(value) == counter.count_tokens(same_as)


def test_a_panic_in_tiktoken_becomes_an_estimate(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fired: list[BaseException] = []

    def panic() -> object:
        try:
            return load_cached("o200k_base").encode_ordinary(" " * 1_000_000)
        except BaseException as exc:
            fired.append(exc)
            raise

    with caplog.at_level(logging.WARNING):
        assert TokenCounter(source=FailingSource(panic)).count("some words of a user") == TokenCount(5, True)
    assert [isinstance(exc, Exception) for exc in fired] == [False]
    assert "PanicException" in caplog.text
    assert "words" not in caplog.text
    capfd.readouterr()


def test_an_error_in_tiktoken_becomes_an_estimate_for_that_piece_only() -> None:
    calls = iter(range(100))

    class Flaky(CountingSource):
        def encode_ordinary(self, text: str) -> list[int]:
            if next(calls) == 1:
                raise ValueError("backtrack limit exceeded")
            return super().encode_ordinary(text)

    source = Flaky()
    count = TokenCounter(source=source).count("word " * 20_000)
    assert count.is_estimate
    assert len(source.seen) == 1
    assert count.tokens == len(source.seen[0]) + (100_000 - len(source.seen[0]) + 3) // 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
def test_what_stops_the_program_is_not_swallowed(error: BaseException) -> None:
    with pytest.raises(type(error)):
        TokenCounter(source=FailingSource(raising(error))).count("text")


# What is remembered


def test_a_repeated_text_is_not_encoded_again() -> None:
    source = CountingSource()
    made = TokenCounter(source=source)
    assert [made.count_tokens("same"), made.count_tokens("sa" + "me"), made.count("same")] == [4, 4, (4, False)]
    assert source.seen == ["same"]


def test_a_repeated_text_costs_next_to_nothing(counter: TokenCounter) -> None:
    text = (PROSE * 20)[:4000]
    encode = load_cached("o200k_base").encode_ordinary
    plain = min(seconds(lambda: encode(text)) for _ in range(20))
    counter.count_tokens(text)
    repeated = min(seconds(lambda: counter.count_tokens(text)) for _ in range(1000))
    assert repeated < plain / 20


def test_a_batch_costs_hardly_more_than_tiktoken_alone() -> None:
    encode = load_cached("o200k_base").encode_ordinary
    ours, plain = [], []
    for turn in range(40):
        texts = [f"{turn} {index} {PROSE * 2}" for index in range(30)]
        messages = [{"role": "user", "content": text} for text in texts]
        fresh = TokenCounter()
        fresh.count_tokens("user")
        plain.append(seconds(lambda t=texts: sum(len(encode(text)) for text in t)))  # type: ignore[misc]
        ours.append(seconds(lambda f=fresh, m=messages: f.count_batch_tokens(m)))  # type: ignore[misc]
    assert min(ours) < 1.5 * min(plain)


def test_what_is_remembered_is_bounded_and_what_is_used_stays() -> None:
    source = CountingSource()
    made = TokenCounter(source=source)
    for index in range(3 * token_counter.MAX_REMEMBERED_TEXTS):
        made.count_tokens(f"text {index}")
        made.count_tokens("user")
    held = len(made._recent) + len(made._recent._old)
    assert token_counter.MAX_REMEMBERED_TEXTS // 2 <= held <= token_counter.MAX_REMEMBERED_TEXTS
    assert source.seen.count("user") == 1
    made.count_tokens("text 0")
    assert source.seen.count("text 0") == 2


def test_the_characters_remembered_are_bounded() -> None:
    made = TokenCounter(source=CountingSource())
    length = token_counter.MAX_REMEMBERED_LENGTH
    for index in range(4 * token_counter.MAX_REMEMBERED_CHARS // length):
        made.count_tokens((f"{index} words " * length)[:length])
    held = sum(map(len, [*made._recent, *made._recent._old]))
    assert token_counter.MAX_REMEMBERED_CHARS // 2 <= held <= token_counter.MAX_REMEMBERED_CHARS
    longer = ("words " * length)[: length + 1]
    made.count_tokens(longer)
    assert longer not in made._recent


def test_what_is_remembered_goes_with_its_counter() -> None:
    made = TokenCounter(source=CountingSource())
    made.count_tokens("text")
    gone = weakref.ref(made._recent)
    del made
    assert gone() is None


def test_threads_get_the_same_counts(reference: dict[str, tiktoken.Encoding]) -> None:
    texts = [f"{SAMPLES['german']} {index}" for index in range(6000)]
    expected = [len(reference["o200k_base"].encode_ordinary(text)) for text in texts]
    shared = TokenCounter()
    with ThreadPoolExecutor(8) as pool:
        for counts in pool.map(lambda _: [shared.count_tokens(text) for text in texts], range(8)):
            assert counts == expected


# Messages


def words(counter: TokenCounter, *texts: str) -> int:
    return sum(counter.count_tokens(text) for text in texts)


def test_a_plain_message_follows_the_cookbook(counter: TokenCounter) -> None:
    # The cookbook's own example message: 3 of framing, role, content, name and 1 for the name.
    message = {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."}
    encode = load_cached("o200k_base").encode_ordinary
    assert counter.count_message_tokens(message) == 3 + sum(len(encode(text)) for text in message.values()) + 1


def test_a_message_may_be_none_empty_or_a_bare_text(counter: TokenCounter) -> None:
    assert counter.count_message_tokens(None) == 0
    assert counter.count_message_tokens({}) == 3
    assert counter.count_message_tokens("hello world") == 3 + 2
    odd: Any = 42
    assert counter.count_message_tokens(odd) == 3 + counter.count_tokens("42")
    assert counter.count_message_tokens({"role": "user", "content": None}) == 3 + 1
    assert counter.count_message_tokens({"content": 42, "role": 7}) == 3 + 1 + 1


def test_keys_that_no_model_sees_are_not_counted(counter: TokenCounter) -> None:
    message = {"role": "user", "content": "I want to buy a laptop"}
    more = message | {"timestamp": 1_700_000_000, "metadata": {"ip": "x" * 100}, "message_id": "abc", "seq": 4}
    assert counter.count_message_tokens(more) == counter.count_message_tokens(message)


CALL = {"id": "call_1", "type": "function", "function": {"name": "find_laptops", "arguments": '{"max_price": 900}'}}


@pytest.mark.parametrize(
    ("extra", "texts"),
    [
        ({"tool_calls": [CALL, CALL]}, ["find_laptops", '{"max_price": 900}'] * 2),
        ({"tool_calls": CALL}, ["find_laptops", '{"max_price": 900}']),
        ({"tool_calls": [{"name": "f", "args": {"a": 1}, "id": "1"}]}, ["f", '{"a":1}']),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, ["f", '{"a":1}']),
        ({"tool_calls": [{"type": "custom", "x": 1}]}, ['{"type":"custom","x":1}']),
        ({"tool_calls": ["odd"]}, ["odd"]),
        ({"tool_calls": [{"function": "odd"}]}, ['{"function":"odd"}']),
        ({"tool_calls": []}, []),
        ({"function_call": {"name": "legacy", "arguments": "{}"}}, ["legacy", "{}"]),
        ({"refusal": "I cannot help with that."}, ["I cannot help with that."]),
        ({"tool_call_id": "call_1"}, ["call_1"]),
    ],
)
@pytest.mark.parametrize("base", [{"role": "assistant"}, {"role": "assistant", "content": None}])
def test_calls_and_their_kin_are_counted(
    base: dict[str, object], extra: dict[str, object], texts: list[str], counter: TokenCounter
) -> None:
    assert counter.count_message_tokens(base | extra) == 3 + words(counter, "assistant", *texts)


BASE64 = "iVBORw0KGgo" * 10_000


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}}, 765),
        ({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}, 85),
        ({"type": "image_url", "image_url": "https://x/y.png"}, 765),
        ({"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}, 85),
        ({"type": "image", "source": {"type": "base64", "data": BASE64}}, 765),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}, 300),
        ({"type": "file", "file": {"file_data": BASE64}}, 1500),
        ({"type": "document", "source": {"type": "base64", "data": BASE64}}, 1500),
    ],
)
def test_media_cost_a_flat_estimate(block: dict[str, object], tokens: int, counter: TokenCounter) -> None:
    text = {"type": "text", "text": "What is this?"}
    message = {"role": "user", "content": [text, block]}
    assert counter.count_message_tokens(message) == 3 + words(counter, "user", "What is this?") + tokens
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [block]}
    assert counter.count_message_tokens({"content": [result]}) == 3 + words(counter, "t1") + tokens


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (["bare text", {"text": "no type"}], ["bare text", "no type"]),
        ({"type": "text", "text": "one block"}, ["one block"]),
        (({"type": "refusal", "refusal": "No."},), ["No."]),
        ([{"type": "tool_result", "tool_use_id": "t1", "content": "done"}], ["t1", "done"]),
        ([None, 7], ["7"]),
        ([{"type": ["odd"]}], ['{"type":["odd"]}']),
        ([{"type": "tool_use", "id": "t", "input": {"a": 1}}], ['{"type":"tool_use","id":"t","input":{"a":1}}']),
        (
            [{"type": "document", "source": {"type": "text", "data": "words"}}],
            ['{"type":"document","source":{"type":"text","data":"words"}}'],
        ),
        (
            [{"type": "tool_result", "content": [{"type": "tool_result", "content": []}]}],
            ['{"type":"tool_result","content":[]}'],
        ),
    ],
)
def test_other_blocks_count_by_their_text_or_json(content: object, texts: list[str], counter: TokenCounter) -> None:
    assert counter.count_message_tokens({"role": "user", "content": content}) == 3 + words(counter, "user", *texts)


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You help people to choose a laptop."},
    {"role": "user", "content": "I want to buy a laptop for 900 euros.", "name": "Ada", "timestamp": 1_700_000_000},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": json.dumps([{"model": "X1", "price": 899}])},
    {"role": "assistant", "content": "The X1 costs 899 euros. Do you need a large screen?"},
    {"role": "user", "content": [{"type": "text", "text": "Like this one:"}, {"type": "image_url", "image_url": {}}]},
]


def test_a_batch_is_the_sum_of_its_messages(counter: TokenCounter) -> None:
    total = sum(counter.count_message_tokens(message) for message in CONVERSATION)
    assert total > 765
    assert counter.count_batch_tokens(CONVERSATION) == total
    assert counter.count_batch_tokens(iter(CONVERSATION)) == total
    assert counter.count_batch_tokens([]) == counter.count_batch_tokens(None) == 0


def test_a_context_is_summary_messages_and_the_priming_of_the_reply(counter: TokenCounter) -> None:
    batch = counter.count_batch_tokens(CONVERSATION)
    assert counter.estimate_context_tokens(CONVERSATION) == batch + 3
    assert counter.estimate_context_tokens(CONVERSATION, "") == batch + 3
    summary = "Ada looks for a laptop."
    framed = counter.count_message_tokens({"role": "system", "content": summary})
    assert counter.estimate_context_tokens(CONVERSATION, summary) == framed + batch + 3
    assert counter.estimate_context_tokens(None, summary=summary) == framed + 3


def test_a_summary_is_due_from_the_threshold_on(counter: TokenCounter) -> None:
    total = counter.count_batch_tokens(CONVERSATION)
    assert counter.should_trigger_summary(CONVERSATION, total)
    assert not counter.should_trigger_summary(CONVERSATION, total + 1)
    assert not counter.should_trigger_summary(CONVERSATION)
    assert counter.should_trigger_summary([{"content": " word" * 2997}])
    assert not counter.should_trigger_summary([{"content": " word" * 2996}])


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 60)), max_size=20),
    cap=st.integers(-1, 400),
)
def test_overflow_is_the_shortest_prefix_whose_removal_suffices(sizes: list[int | None], cap: int) -> None:
    counter = TokenCounter()
    messages = [None if size is None else {"role": "user", "content": " word" * size} for size in sizes]
    before = list(messages)
    overflow = counter.get_overflow_messages(messages, cap)
    assert messages == before
    assert overflow is not messages
    assert overflow == messages[: len(overflow)]
    rest = counter.count_batch_tokens(messages[len(overflow) :])
    if overflow:
        # With the last of them back it would not fit: nothing was removed in vain.
        assert counter.count_batch_tokens(messages[len(overflow) - 1 :]) > cap
    assert rest <= cap or len(overflow) == len(messages)


@settings(deadline=None)
@given(TRAFFIC, st.integers(0, 250))
def test_overflow_takes_a_call_with_its_results(messages: list[dict[str, Any]], cap: int) -> None:
    counter = TokenCounter()
    count = len(counter.get_overflow_messages(messages, cap))
    assert counter.count_batch_tokens(messages[count:]) <= cap
    groups = exchange_groups(messages)
    fits = [group.start for group in groups if counter.count_batch_tokens(messages[group.start :]) <= cap]
    if fits:
        assert count in {group.start for group in groups}
        assert count >= fits[0]


def test_overflow_at_the_exact_limit(counter: TokenCounter) -> None:
    total = counter.count_batch_tokens(CONVERSATION)
    assert counter.get_overflow_messages(CONVERSATION, total) == []
    assert counter.get_overflow_messages(CONVERSATION, total - 1) == CONVERSATION[:1]
    assert counter.get_overflow_messages(tuple(CONVERSATION), 0) == CONVERSATION
    assert counter.get_overflow_messages(None) == counter.get_overflow_messages([]) == []


def test_overflow_defaults_to_four_thousand_tokens(counter: TokenCounter) -> None:
    messages = [{"content": " word" * 1997} for _ in range(2)]
    assert counter.count_batch_tokens(messages) == 4000
    assert counter.get_overflow_messages(messages) == []
    messages.append({"content": ""})
    assert counter.get_overflow_messages(messages) == messages[:1]
