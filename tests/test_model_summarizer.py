"""The summarizer around a model: callables of every kind, parts, settings, counts, threads, the end of a program."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from memory_contract import Backend, run_threads
from model_server import EIGHTH_OF_MAY, GOOD, facts_request, model_server

from contract_engine.memory import (
    AsyncMemoryManager,
    CircuitBreaker,
    ConfigurationError,
    MemoryConfig,
    MemoryManager,
    ModelUnavailableError,
)
from contract_engine.memory._effects import write_facts
from contract_engine.memory._runtime import Runtime
from contract_engine.memory.daemon import run_in_own_loop, start_daemon
from contract_engine.memory.summarizers import (
    ExtractiveSummarizer,
    Facts,
    FactsRequest,
    ModelAnswer,
    ModelStats,
    ModelSummarizer,
    OpenAIChat,
    Rejected,
    SummaryPrompt,
)
from contract_engine.memory.summarizers.form import read
from contract_engine.memory.summarizers.openai_answer import parsed

pytest_plugins = ["memory_fixtures"]

Messages = Sequence[Mapping[str, str]]
HANG = 60.0
TESTS = __file__.rpartition("/")[0]


def answer_good(messages: Messages, *, max_tokens: int) -> str:
    return GOOD


async def answer_good_later(messages: Messages, *, max_tokens: int) -> ModelAnswer:
    await asyncio.sleep(0)
    return ModelAnswer(GOOD, 7, 3)


class Model:
    """An object with the one method."""

    model = "own-model"

    def __init__(self) -> None:
        self.limits: list[int] = []

    def complete(self, messages: Messages, *, max_tokens: int) -> str:
        self.limits.append(max_tokens)
        assert [message["role"] for message in messages] == ["system", "user"]
        return GOOD


class AsyncCallable:
    async def __call__(self, messages: Messages, max_tokens: int) -> str:
        return GOOD


MODELS: list[Any] = [
    answer_good,
    answer_good_later,
    Model(),
    AsyncCallable(),
    functools.partial(answer_good_later),
    lambda messages, max_tokens: answer_good_later(messages, max_tokens=max_tokens),
    lambda messages, **_: GOOD,
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
async def test_any_callable_or_object_with_one_method_is_a_model(model: Any) -> None:
    facts = await ModelSummarizer(model).write(facts_request())
    assert isinstance(facts, Facts)
    assert facts.text == GOOD


async def test_what_a_model_does_not_count_is_counted_here() -> None:
    request = facts_request()
    facts = await ModelSummarizer(answer_good).write(request)
    assert isinstance(facts, Facts)
    assert facts.tokens_out == request.count_tokens(GOOD)
    assert facts.tokens_in > request.count_tokens(SummaryPrompt().system)
    counted = await ModelSummarizer(answer_good_later, name="mine").write(request)
    assert isinstance(counted, Facts)
    assert (counted.model, counted.tokens_in, counted.tokens_out) == ("mine", 7, 3)


def test_the_name_of_a_model_is_what_it_calls_itself() -> None:
    assert ModelSummarizer(Model()).name == "own-model"
    assert ModelSummarizer(answer_good).name == "answer_good"
    assert ModelSummarizer(AsyncCallable()).name == "AsyncCallable"


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("model", {"model": "gpt"}),
        ("model", {"model": lambda: "no arguments"}),
        ("model", {"model": Model}),
        ("prompt", {"prompt": "Summarize!"}),
        ("gate", {"gate": {}}),
        ("name", {"name": " "}),
        ("window_tokens", {"window_tokens": 10}),
        ("max_answer_tokens", {"max_answer_tokens": 5000}),
        ("max_answer_tokens", {"max_answer_tokens": 1.5}),
        ("timeout_seconds", {"timeout_seconds": 0}),
        ("attempts", {"attempts": 0}),
        ("attempts", {"attempts": True}),
        ("deadline_seconds", {"deadline_seconds": -1}),
        ("backoff_seconds", {"backoff_seconds": "1"}),
        ("max_backoff_seconds", {"max_backoff_seconds": None}),
        ("failures", {"failures": ("ValueError",)}),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ModelSummarizer(**({"model": answer_good} | settings))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("model", {"model": ""}),
        ("base_url", {"base_url": "localhost:8000"}),
        ("api_key", {"api_key": "secret key"}),
        ("temperature", {"temperature": 3}),
        ("timeout_seconds", {"timeout_seconds": 0}),
        ("max_answer_bytes", {"max_answer_bytes": 1}),
        ("limit_name", {"limit_name": "tokens"}),
    ],
)
def test_a_setting_of_the_client_that_cannot_be_is_refused_by_name(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OpenAIChat(**({"model": "m", "base_url": "http://127.0.0.1:1/v1"} | settings))
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_the_key_of_the_environment_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    with model_server() as server:
        assert asyncio.run(ModelSummarizer(OpenAIChat("m", server.url)).write(facts_request()))
        assert "key-of-openai" not in str(server.headers)
    OpenAIChat("m")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        OpenAIChat("m")


def test_without_the_package_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["openai"] = None
from contract_engine.memory.summarizers import OpenAIChat
try:
    OpenAIChat("m")
except ValueError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "contract-engine[llm]"' in done.stdout


# -- failures of callables


@pytest.mark.parametrize(
    ("error", "kind", "calls"),
    [
        (ConnectionResetError(), "connection", 3),
        (TimeoutError(), "timeout", 3),
        (ModelUnavailableError("rate_limited", "later"), "rate_limited", 3),
        (ModelUnavailableError("configuration", "no such model"), "configuration", 1),
        (LookupError(), "connection", 3),
    ],
)
async def test_a_callable_that_says_its_model_is_away_is_a_failure(error: Exception, kind: str, calls: int) -> None:
    made = []

    def fail(messages: Messages, max_tokens: int) -> str:
        made.append(max_tokens)
        raise error

    writer = ModelSummarizer(fail, backoff_seconds=0.001, failures=(LookupError,))
    assert await writer.write(facts_request()) is None
    assert writer.stats().failed == {kind: 1}
    assert len(made) == calls


@pytest.mark.parametrize("is_async", [True, False])
async def test_an_exception_nobody_named_is_counted_and_passed_on(*, is_async: bool) -> None:
    async def fail_later(messages: Messages, max_tokens: int) -> str:
        raise ZeroDivisionError

    def fail(messages: Messages, max_tokens: int) -> str:
        raise ZeroDivisionError

    writer = ModelSummarizer(fail_later if is_async else fail)
    with pytest.raises(ZeroDivisionError):
        await writer.write(facts_request())
    stats = writer.stats()
    assert (stats.failed, stats.running, stats.requests) == ({"unexpected": 1}, 0, 1)
    assert writer.breaker.snapshot().failed == 1


@pytest.mark.parametrize("answer", [None, 7, b"bytes", ModelAnswer(None)])  # type: ignore[arg-type]  # that is the test
async def test_an_answer_that_is_no_text_is_a_failure(answer: Any) -> None:
    writer = ModelSummarizer(lambda messages, max_tokens: answer, attempts=1)
    assert await writer.write(facts_request()) is None
    assert writer.stats().failed == {"invalid_answer": 1}


async def test_a_write_that_is_cancelled_is_no_failure_of_the_model() -> None:
    begun = asyncio.Event()

    async def hang(messages: Messages, max_tokens: int) -> str:
        begun.set()
        await asyncio.sleep(1000)
        return ""

    writer = ModelSummarizer(hang)
    task = asyncio.create_task(writer.write(facts_request()))
    await begun.wait()
    assert writer.stats().running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stats = writer.stats()
    assert (stats.failed, stats.running) == ({"cancelled": 1}, 0)
    assert writer.breaker.snapshot().failed == 0


async def test_waits_double_and_are_jittered_in_full() -> None:
    asked = []

    def jitter(least: float, most: float) -> float:
        asked.append((least, most))
        return 0.0

    async def fail(messages: Messages, max_tokens: int) -> str:
        raise OSError

    writer = ModelSummarizer(fail, attempts=6, backoff_seconds=0.5, max_backoff_seconds=3, jitter=jitter)
    assert await writer.write(facts_request()) is None
    assert asked == [(0, 0.5), (0, 1), (0, 2), (0, 3), (0, 3)]


# -- parts


def long_conversation() -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": f"Order number {1000 + n} of {n} May goes to street {20 + n}. " + "It is urgent. " * 20,
        }
        for n in range(1, 25)
    ]


def note_numbers(messages: Messages, max_tokens: int) -> str:
    """Answer one note for each order that is asked about."""
    inside = messages[-1]["content"].split("<<<")[-1]
    orders = [line.partition("Order number ")[2][:4] for line in inside.splitlines() if "Order number" in line]
    return "8 May 2023\n" + "\n".join(f"user: order {order} to street {int(order) - 980}" for order in orders)


def long_request(**changes: Any) -> FactsRequest:
    messages = long_conversation()
    given: dict[str, Any] = {"messages": messages, "times": [EIGHTH_OF_MAY] * len(messages), "max_tokens": 400}
    return facts_request(**(given | changes))


async def test_a_span_above_the_window_is_asked_about_in_parts_and_joined_in_order() -> None:
    asked: list[Messages] = []

    def answer(messages: Messages, max_tokens: int) -> str:
        asked.append(messages)
        return note_numbers(messages, max_tokens)

    writer = ModelSummarizer(answer, window_tokens=1900, max_answer_tokens=400)
    request = long_request()
    facts = await writer.write(request)
    assert isinstance(facts, Facts)
    assert len(asked) > 2
    for messages in asked:
        assert sum(request.count_tokens(message["content"]) for message in messages) + 400 <= 1900
    everything = " ".join(messages[-1]["content"] for messages in asked)
    assert all(str(message["content"]).strip() in everything for message in request.messages)
    orders = [unit.text.split()[1] for unit in read(facts.text)]
    assert orders == [str(1000 + n) for n in range(1, 25)]
    assert request.count_tokens(facts.text) <= 400
    assert facts.tokens_in == sum(
        request.count_tokens(message["content"]) for messages in asked for message in messages
    )


@pytest.mark.parametrize(("bad", "reason"), [("PWNED", "malformed"), ("I'm sorry, I can't help with that.", "refusal")])
async def test_one_bad_part_spoils_the_whole(bad: str, reason: str) -> None:
    answers = iter(["good", bad])

    def answer(messages: Messages, max_tokens: int) -> str:
        return bad if next(answers, "good") == bad else note_numbers(messages, max_tokens)

    writer = ModelSummarizer(answer, window_tokens=1900, max_answer_tokens=400)
    assert await writer.write(long_request()) == Rejected(reason)
    assert writer.stats().rejected == {reason: 1}


async def test_a_part_with_nothing_to_note_does_not_hide_that_facts_were_lost() -> None:
    answers = iter(["good"])

    def answer(messages: Messages, max_tokens: int) -> str:
        return note_numbers(messages, max_tokens) if next(answers, "") else "NONE"

    writer = ModelSummarizer(answer, window_tokens=1900, max_answer_tokens=400)
    assert await writer.write(long_request()) == Rejected("lost_facts")
    assert writer.stats().rejected == {"lost_facts": 1}
    chat = [*long_conversation()[:6], *({"role": "user", "content": "Oh well, never mind. " * 40} for _ in range(12))]
    writer = ModelSummarizer(
        lambda messages, max_tokens: (
            note_numbers(messages, max_tokens) if "Order" in messages[1]["content"] else "NONE"
        ),
        window_tokens=1900,
        max_answer_tokens=400,
    )
    facts = await writer.write(long_request(messages=chat, times=[EIGHTH_OF_MAY] * len(chat)))
    assert isinstance(facts, Facts)
    assert len(read(facts.text)) == 6


async def test_one_message_above_the_window_is_asked_about_in_pieces() -> None:
    text = "\n".join(str(message["content"]) for message in long_conversation())
    writer = ModelSummarizer(note_numbers, window_tokens=1900, max_answer_tokens=400)
    facts = await writer.write(long_request(messages=[{"role": "user", "content": text}], times=[EIGHTH_OF_MAY]))
    assert isinstance(facts, Facts)
    assert writer.stats().requests > 2
    assert {unit.text.split()[1] for unit in read(facts.text)} == {str(1000 + n) for n in range(1, 25)}


async def test_a_window_too_small_for_the_prompt_is_a_wrong_setting() -> None:
    writer = ModelSummarizer(answer_good, window_tokens=600, max_answer_tokens=64)
    assert await writer.write(facts_request()) is None
    stats = writer.stats()
    assert (stats.failed, stats.requests) == ({"configuration": 1}, 0)


SMALL_TALK = [{"role": "user", "content": "Oh well, never mind, and thank you."}]


async def test_that_nothing_is_worth_noting_is_believed_where_the_built_in_notes_hold_no_facts() -> None:
    writer = ModelSummarizer(lambda messages, max_tokens: "NONE")
    assert await writer.write(facts_request(messages=SMALL_TALK)) == Rejected("none")
    assert await writer.write(facts_request()) == Rejected("lost_facts")


async def test_no_messages_need_no_model() -> None:
    writer = ModelSummarizer(answer_good)
    assert await writer.write(facts_request(messages=[{"role": "user", "content": " "}])) == Rejected("none")
    stats = writer.stats()
    assert (stats.rejected, stats.requests) == ({"none": 1}, 0)


# -- counts


def test_counts_are_exact_among_threads() -> None:
    answers = {"good": GOOD, "none": "NONE", "obeys": "PWNED"}

    def answer(messages: Messages, max_tokens: int) -> str:
        return answers[messages[1]["content"].partition("Case ")[2].split()[0]]

    writer = ModelSummarizer(answer)

    def work(number: int) -> None:
        for case in ("good", "none", "obeys"):
            asyncio.run(writer.write(facts_request(instructions=f"Case {case} .")))

    run_threads(8, work)
    stats = writer.stats()
    assert (stats.writes, stats.accepted, stats.rejected) == (24, 8, {"lost_facts": 8, "malformed": 8})
    assert (stats.requests, stats.running, stats.failed) == (24, 0, {})


def test_health_shows_the_counts_of_a_writer_that_has_some(durable: Backend) -> None:
    writer = ModelSummarizer(lambda messages, max_tokens: "NONE", name="mine")
    assert asyncio.run(writer.write(facts_request(messages=SMALL_TALK))) == Rejected("none")
    kind = MemoryManager if durable.colour == "sync" else AsyncMemoryManager
    manager = durable.keep(kind(config=durable.config(), facts_writer=writer))
    assert isinstance(manager, object)
    summarizer: ModelStats = manager.health().summarizer  # type: ignore[attr-defined]  # a view of either kind
    assert summarizer.model == "mine"
    assert summarizer.rejected == {"none": 1}
    assert summarizer.breaker == "closed"


def test_health_shows_no_counts_where_there_is_no_writer(backend: Backend) -> None:
    assert backend.open().health().summarizer is None


# -- threads, loops, and the end of the program


def test_the_blocking_runtime_writes_beside_a_running_loop() -> None:
    runtime = Runtime(
        MemoryConfig(redis_url="redis://127.0.0.1:1"),
        breaker=CircuitBreaker(),
        summarizer=ExtractiveSummarizer(),
        facts_writer=ModelSummarizer(answer_good_later),
    )

    async def inside_a_loop() -> str:
        facts = runtime.run(write_facts(facts_request()))
        assert isinstance(facts, Facts)
        return facts.text

    assert asyncio.run(inside_a_loop()) == GOOD


def test_without_a_writer_there_is_nothing_to_use() -> None:
    runtime = Runtime(
        MemoryConfig(redis_url="redis://127.0.0.1:1"), breaker=CircuitBreaker(), summarizer=ExtractiveSummarizer()
    )
    assert runtime.run(write_facts(facts_request())) is None


def test_a_daemon_carries_back_what_was_returned_or_raised() -> None:
    assert start_daemon(lambda: 7, "seven").result(10) == 7
    with pytest.raises(ZeroDivisionError):
        start_daemon(lambda: 1 // 0, "none").result(10)

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        run_in_own_loop(fail, "none")


def test_a_callable_that_hangs_holds_up_neither_the_loop_nor_the_deadline() -> None:
    release = threading.Event()
    ticks = 0

    async def scene() -> None:
        nonlocal ticks
        writer = ModelSummarizer(lambda messages, max_tokens: str(release.wait(HANG)), deadline_seconds=0.5)
        task = asyncio.create_task(writer.write(facts_request()))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        assert await task is None
        assert writer.stats().failed == {"deadline": 1}

    started = time.monotonic()
    asyncio.run(scene())
    release.set()
    assert time.monotonic() - started < HANG / 2
    assert ticks > 5


def test_a_callable_that_hangs_does_not_hold_up_the_end_of_the_program() -> None:
    code = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[1])
from model_server import facts_request
from contract_engine.memory.summarizers import ModelSummarizer
writer = ModelSummarizer(lambda messages, max_tokens: threading.Event().wait(), deadline_seconds=0.5)
print(asyncio.run(writer.write(facts_request())), writer.stats().failed)
"""
    done = subprocess.run([sys.executable, "-c", code, TESTS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None {'deadline': 1}\n"


ENDING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from model_server import GOOD, facts_request
from contract_engine.memory import CircuitBreaker, MemoryConfig
from contract_engine.memory._effects import write_facts
from contract_engine.memory._runtime import Runtime
from contract_engine.memory.summarizers import ExtractiveSummarizer, ModelSummarizer, OpenAIChat
def slow(messages, max_tokens):
    time.sleep(0.5)
    return GOOD
model = OpenAIChat("m", sys.argv[2]) if sys.argv[2:] else slow
writer = ModelSummarizer(model, backoff_seconds=0.01, deadline_seconds=20)
config = MemoryConfig(redis_url="redis://127.0.0.1:1")
runtime = Runtime(config, breaker=CircuitBreaker(), summarizer=ExtractiveSummarizer(), facts_writer=writer)
def write():
    print("wrote", runtime.run(write_facts(facts_request())) is not None, sum(writer.stats().failed.values()))
runtime.background.start(write, "write")
"""
"""A program that ends while a write is under way."""


def run_ending(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENDING, TESTS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)


def test_a_program_that_ends_finishes_a_write() -> None:
    done = run_ending()
    assert (done.stdout, done.stderr) == ("wrote True 0\n", "")


def test_a_program_that_ends_opens_no_connections_any_more_and_leaves_the_write() -> None:
    with model_server("500") as server:
        done = run_ending(server.url)
    assert done.stdout == "wrote False 1\n"
    assert "Traceback" not in done.stderr


# -- what servers send


def test_answers_of_servers_are_read_in_all_their_forms() -> None:
    stream = (
        b': hello\r\n\r\ndata: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\ndata: {"choices":[{"index":1,"delta":'
    )
    stream += b'{"content":"x"}},{"index":0,"delta":{"content":null},"finish_reason":"length"}]}\r\n\r\n'
    assert parsed(stream) == ModelAnswer("a", None, None, is_cut=True)
    blocks = b'{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}'
    whole = b'{"choices":[{"message":%b}],"usage":{"prompt_tokens":-1}}' % blocks
    assert parsed(whole) == ModelAnswer("ab")
    refused = b'{"choices":[{"message":{"content":null,"refusal":"I cannot help."}}]}'
    assert parsed(refused).text == "I cannot help."


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "invalid_answer"),
        (b"[]", "invalid_answer"),
        (b'{"choices":[]}', "invalid_answer"),
        (b"\xff\xfe", "invalid_answer"),
        (b"[" * 100_000, "invalid_answer"),
        (b'{"error":{"message":"overloaded"}}', "server_error"),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "cut_stream"),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choi', "cut_stream"),
        (b"data: [DONE", "cut_stream"),
        (b"data: 7\n\n", "invalid_answer"),
    ],
)
def test_what_is_no_answer_is_named(body: bytes, kind: str) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        parsed(body)
    assert caught.value.kind == kind
    assert caught.value.__cause__ is None
