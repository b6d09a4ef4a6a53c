"""The calls that are measured, each with the reference it is measured against."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from breaker_scenarios import append_with_redis_away, breaker_closed, breaker_open, redis_away
from compression_scenario import compressed_size, compressed_time
from dual_write_scenario import SCENARIOS as DUAL_WRITE
from fold_scenarios import fold_of_2000_tokens, usable_summary
from observe_scenario import HOOK, NOBODY, watched
from recall_scenario import large_result, recall
from scenario import CALLS, WIDE, Bench, Scenario, Timer, fixed_loop, message, per_call, repeated
from working_memory_scenario import WORKING_MEMORY

from contract_engine.memory import AsyncMemoryManager, TokenCounter, to_messages
from contract_engine.memory._effects import RedisCall
from contract_engine.memory._log import APPEND_ONE
from contract_engine.memory._scripts import APPEND
from contract_engine.memory.encodings import encodings
from contract_engine.memory.intake import Intake
from contract_engine.memory.models import Placed
from contract_engine.memory.session_cache import SessionCache


@contextmanager
def add_ephemeral(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    def call() -> float:
        name, messages = bench.session(bench.ephemeral), bench.fresh(CALLS)
        add = bench.ephemeral.add_message
        return per_call([lambda one=one: add(name, one) for one in messages])  # type: ignore[misc]  # bound now

    yield call, bench.ping


@contextmanager
def get_context(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    name = bench.session(bench.ephemeral)
    yield lambda: per_call([lambda: bench.ephemeral.get_context(name)] * CALLS), bench.ping


@contextmanager
def turn_ephemeral(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    def call() -> float:
        turn = bench.ephemeral.add_and_get_context
        # Ten sessions, a few turns each: the context stays near 30 messages.
        names = [bench.session(bench.ephemeral, 28) for _ in range(CALLS // 4)]
        work = zip(itertools.cycle(names), bench.fresh(CALLS), strict=False)
        return per_call([lambda name=name, one=one: turn(name, one) for name, one in work])  # type: ignore[misc]

    yield call, bench.ping


class Bare:
    """A durable append without this package: its statement on psycopg, its script on redis-py."""

    def __init__(self, bench: Bench) -> None:
        manager = bench.durable
        self._intake = Intake(manager.token_counter, max_message_bytes=2**20)
        self._cache = SessionCache(manager.config)
        self._redis = bench.redis
        self._redis.script_load(APPEND.source)
        self._connection = psycopg.connect(bench.database_url, autocommit=True)

    def parameters(self, name: str, one: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Encode everything beforehand: only the two round trips are to be measured."""
        outgoing = self._intake.message(one)
        row = {
            "of_tenant": "bare",
            "of_session": name,
            "message_id": outgoing.message_id,
            "tokens": outgoing.tokens,
            "body": outgoing.body,
        }
        placed = Placed((1,), (int(time.time() * 1000),), 1, 0)
        call = next(self._cache.append(f"bare-{name}", placed, (outgoing,), read=False))
        assert isinstance(call, RedisCall)
        return row, call.commands[0].words

    def append(self, row: dict[str, Any], words: tuple[Any, ...]) -> None:
        """Send the statement, then the script."""
        self._connection.execute(APPEND_ONE.sql, row, prepare=True, binary=True).fetchall()
        self._redis.evalsha(APPEND.sha, *words)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def add_durable(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    bare = Bare(bench)

    def call() -> float:
        name, messages = bench.session(bench.durable), bench.fresh(CALLS)
        add = bench.durable.add_message
        return per_call([lambda one=one: add(name, one) for one in messages])  # type: ignore[misc]

    def reference() -> float:
        work = [bare.parameters(f"{time.time_ns()}-{number}", one) for number, one in enumerate(bench.fresh(CALLS))]
        same = [(row | {"of_session": work[0][0]["of_session"]}, words) for row, words in work]
        return per_call([lambda row=row, words=words: bare.append(row, words) for row, words in same])  # type: ignore[misc]

    yield call, reference
    bare.close()


def _long_session(bench: Bench) -> str:
    """Return a session with a long history behind its watermark and 30 messages before it."""
    name = f"long-{time.time_ns()}"
    narrow = {"summary_trigger_tokens": 3000, "max_buffer_tokens": 4000, "max_buffer_messages": 30}
    bench.durable.set_session_config(name, narrow)
    for _ in range(bench.history // 1000):
        bench.durable.add_messages(name, bench.fresh(1000))
    bench.durable.set_session_config(name, WIDE.as_dict())
    held = bench.durable.get_context(name)["message_count"]
    bench.durable.add_messages(name, bench.fresh(30 - held))
    return name


@contextmanager
def growth_append(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    add = bench.durable.add_message
    long, short = _long_session(bench), bench.session(bench.durable)

    def timer(name: str) -> Timer:
        def call() -> float:
            return per_call([lambda one=one: add(name, one) for one in bench.fresh(CALLS)])  # type: ignore[misc]

        return call

    yield timer(long), timer(short)


@contextmanager
def growth_read(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    get = bench.durable.get_context
    long, short = _long_session(bench), bench.session(bench.durable)
    # The long session has a summary, which is part of what is read: give the short one the same.
    bench.durable.summary_store.add_summary(short, bench.durable.get_context(long)["current_summary"])
    for name in (long, short):
        get(name)
    yield lambda: per_call([lambda: get(long)] * CALLS), lambda: per_call([lambda: get(short)] * CALLS)


@contextmanager
def count_batch(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    counter = TokenCounter()
    counter.warm()
    plain = encodings.get(counter.encoding_name)
    assert plain is not None, "the shipped encodings load"

    def batches(numbers: Iterator[int]) -> list[list[str]]:
        """Return full buffers: 30 messages, 4,000 tokens."""
        return [
            [" ".join(message(next(numbers))["content"] for _ in range(3)) for _ in range(30)]
            for _ in range(CALLS // 4)
        ]

    # Both count the same texts, each for the first time.
    our_numbers, their_numbers = itertools.count(), itertools.count()

    def ours() -> float:
        found = [[{"role": "user", "content": text} for text in texts] for texts in batches(our_numbers)]
        return per_call([lambda one=one: counter.count_batch_tokens(one) for one in found])  # type: ignore[misc]

    def theirs() -> float:
        found, encode = batches(their_numbers), plain.encode_ordinary
        return per_call([lambda texts=texts: sum(len(encode(text)) for text in texts) for texts in found])  # type: ignore[misc]

    yield ours, theirs


@contextmanager
def count_repeated(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    counter = TokenCounter()
    text = bench.fresh(1)[0]["content"]

    yield lambda: repeated(lambda: counter.count_tokens(text)), lambda: repeated(lambda: len(text))


def _full_context(bench: Bench) -> dict[str, Any]:
    """Return a context as full as it gets by default.

    30 messages of 4,000 tokens, 18 of them calls of tools and their results, and a summary of 1,600.
    """
    messages: list[dict[str, Any]] = []
    for number in range(6):
        ids = (f"call_{number}_a", f"call_{number}_b")
        calls = [{"id": one, "function": {"name": "look_up", "arguments": '{"q": "Rome", "page": 2}'}} for one in ids]
        question, answer, *told = bench.fresh(11)
        rows = [{"order_id": f"W{at}7731", "status": "sent", "note": one["content"]} for at, one in enumerate(told)]
        results = [
            {"role": "tool", "tool_call_id": one, "content": json.dumps(rows[place::2])}
            for place, one in enumerate(ids)
        ]
        messages += [question, {"role": "assistant", "content": None, "tool_calls": calls}, *results, answer]
    summary = "\n".join(f"user: {one['content']}" for one in bench.fresh(38))
    return {"current_summary": summary, "buffer_messages": messages}


def package(provider: str, *, max_tokens: int, is_counted: bool) -> Callable[[Bench], Any]:
    """Make the scenario of packaging a full context; ``is_counted``: its texts were counted in this process before."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        known = _full_context(bench)
        tokens = bench.durable.token_counter.count_batch_tokens(known["buffer_messages"])
        assert 3600 <= tokens <= 4000, f"a full buffer has 4,000 tokens, this one {tokens}"

        def call() -> float:
            contexts = [known if is_counted else _full_context(bench) for _ in range(CALLS)]
            return per_call(
                [lambda one=one: to_messages(one, provider, max_tokens=max_tokens) for one in contexts]  # type: ignore[misc]
            )

        yield call, fixed_loop

    return prepare


@contextmanager
def imports(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    def timer(code: str) -> Timer:
        def call() -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            return time.perf_counter() - started

        return call

    yield timer("import contract_engine.memory"), timer("import redis, sqlalchemy, psycopg")


def on_loop(work: Callable[[Bench], Coroutine[Any, Any, float]]) -> Callable[[Bench], Any]:
    """Make a scenario of a coroutine that times its own calls."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        yield lambda: bench.loop.run_until_complete(work(bench)), bench.ping

    return prepare


async def _async_add(bench: Bench, manager: AsyncMemoryManager) -> float:
    name = f"bench-{time.time_ns()}"
    await manager.add_messages(name, bench.fresh(30))
    messages = bench.fresh(CALLS)
    started = time.perf_counter()
    for one in messages:
        await manager.add_message(name, one)
    return (time.perf_counter() - started) / CALLS


async def _async_get(bench: Bench) -> float:
    name = f"bench-{time.time_ns()}"
    await bench.async_ephemeral.add_messages(name, bench.fresh(30))
    started = time.perf_counter()
    for _ in range(CALLS):
        await bench.async_ephemeral.get_context(name)
    return (time.perf_counter() - started) / CALLS


async def _async_turn(bench: Bench) -> float:
    name = f"bench-{time.time_ns()}"
    await bench.async_ephemeral.add_messages(name, bench.fresh(28))
    messages = bench.fresh(4)
    started = time.perf_counter()
    for one in messages:
        await bench.async_ephemeral.add_and_get_context(name, one)
    return (time.perf_counter() - started) / len(messages)


LOOPS = "10,000 multiplications"
LOOP_MS = 0.6
"""What they take on the machine on which processor time was given its reach, in milliseconds."""

SCENARIOS = (
    Scenario("add_message, ephemeral", "PING", 1.8, add_ephemeral),
    Scenario("add_message, ephemeral, async", "PING", None, on_loop(lambda b: _async_add(b, b.async_ephemeral))),
    Scenario("get_context, 30 messages", "PING", 1.9, get_context),
    Scenario("get_context, 30 messages, async", "PING", None, on_loop(_async_get)),
    Scenario("add_and_get_context, ephemeral", "PING", 3.0, turn_ephemeral),
    Scenario("add_and_get_context, ephemeral, async", "PING", None, on_loop(_async_turn)),
    Scenario("add_message, durable", "bare SQL + bare EVALSHA", 1.25, add_durable),
    Scenario("add_message, durable, async", "PING", None, on_loop(lambda b: _async_add(b, b.async_durable))),
    Scenario("growth: append to a long session", "at 30", 1.1, growth_append),
    Scenario("growth: read of a long session", "at 30", 1.1, growth_read),
    Scenario("count a batch of 4,000 tokens", "plain tiktoken", 1.15, count_batch),
    Scenario("count a repeated text", "len()", None, count_repeated),
    Scenario("fold of 2,000 tokens into a summary of 800", LOOPS, 25 / LOOP_MS, fold_of_2000_tokens()),
    Scenario(
        "fold of 2,000 tokens into a full summary of 800, never seen",
        LOOPS,
        25 / LOOP_MS,
        fold_of_2000_tokens(is_counted=False),
    ),
    Scenario(
        "fold of 2,000 tokens into a full summary of 1,600, never seen",
        LOOPS,
        None,
        fold_of_2000_tokens(summary_tokens=1600, is_counted=False),
    ),
    Scenario("a usable summary after the trigger", LOOPS, 50 / LOOP_MS, usable_summary, rounds=15),
    *(
        Scenario(
            f"to_messages, full context, {provider}",
            LOOPS,
            1 / LOOP_MS,
            package(provider, max_tokens=8000, is_counted=True),
        )
        for provider in ("openai", "anthropic", "gemini", "langchain-json")
    ),
    Scenario(
        "to_messages, full context never seen, a window of 64,000",
        LOOPS,
        1 / LOOP_MS,
        package("openai", max_tokens=64_000, is_counted=False),
    ),
    Scenario(
        "to_messages, full context never seen, a window of 8,000",
        LOOPS,
        None,
        package("openai", max_tokens=8000, is_counted=False),
    ),
    Scenario("breaker, closed", "the call alone", 20, breaker_closed(), most_added=1),
    Scenario(
        "breaker, closed, with a window",
        "the call alone",
        None,
        breaker_closed(window_size=100, failure_rate=0.5, slow_call_seconds=1, slow_call_rate=0.5),
    ),
    Scenario("breaker, open: a rejection", "a call that fails at once", 4, breaker_open, most_added=1),
    Scenario(
        "get_context with the breaker open", "the log alone", 1.1, redis_away, most_added=10, rounds_of_each=CALLS
    ),
    Scenario(
        "add_message with the breaker open",
        "the session store's append",
        1.1,
        append_with_redis_away,
        most_added=10,
        rounds_of_each=CALLS,
    ),
    Scenario("get_context with a query, 3,000 folded", LOOPS, 10 / LOOP_MS, recall()),
    Scenario("get_context with a query of 32 words, 3,000 folded", LOOPS, None, recall(words=27)),
    Scenario(
        "get_context with a query, 3,000 folded, 300 of them large results of tools",
        LOOPS,
        None,
        recall(told=large_result),
    ),
    *DUAL_WRITE,
    Scenario("add_message, durable, with metrics", "without", 1.03, watched(lambda bench: bench.durable)),
    Scenario("add_message, ephemeral, with metrics", "without", 1.03, watched(lambda bench: bench.ephemeral)),
    Scenario("add_message, durable, with a hook", "without", 1.03, watched(lambda bench: bench.durable, HOOK)),
    Scenario("add_message, ephemeral, with a hook", "without", 1.03, watched(lambda bench: bench.ephemeral, HOOK)),
    Scenario("add_message, durable, nobody listens", "the same", None, watched(lambda bench: bench.durable, NOBODY)),
    *WORKING_MEMORY,
    Scenario("record of 200 characters, dictionary (bytes)", "as it is", 0.45, compressed_size(with_dictionary=True)),
    Scenario(
        "record of 200 characters, no dictionary (bytes)", "as it is", None, compressed_size(with_dictionary=False)
    ),
    Scenario("store and retrieve, compressed", "not compressed", None, compressed_time),
    Scenario("import contract_engine.memory", "redis, sqlalchemy, psycopg", 1.2, imports, rounds=10),
)
