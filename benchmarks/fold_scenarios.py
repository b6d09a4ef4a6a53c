"""What a fold costs: the built-in summarizer alone, and the whole way from the message that makes a fold due."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scenario import Bench, Timer, fixed_loop

from contract_engine.demo import conversations
from contract_engine.memory import MemoryManager, TokenCounter
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest

FOLD_TOKENS = 2000
SUMMARY_TOKENS = 800


def _parts(counter: TokenCounter, tokens: int) -> list[Sequence[Mapping[str, Any]]]:
    """Cut the shipped conversations into parts of about so many tokens."""
    parts: list[Sequence[Mapping[str, Any]]] = []
    part: list[Mapping[str, Any]] = []
    for message in itertools.chain.from_iterable(record["messages"] for record in conversations()):
        if message["role"] != "system":
            part.append(message)
        if counter.count_batch_tokens(part) >= tokens:
            parts.append(part)
            part = []
    return parts


@contextmanager
def fold_of_2000_tokens(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    counter, summarizer = TokenCounter(), ExtractiveSummarizer(readable=False)
    counter.warm()
    parts = itertools.cycle(_parts(counter, FOLD_TOKENS))
    summary = ""

    def call() -> float:
        nonlocal summary
        request = SummaryRequest(
            previous=summary, messages=next(parts), max_tokens=SUMMARY_TOKENS, count_tokens=counter.count_tokens
        )
        started = time.perf_counter()
        summary = summarizer.summarize(request)
        return time.perf_counter() - started

    yield call, fixed_loop


@contextmanager
def usable_summary(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """From the append that makes a fold due to the summary that every process reads."""
    numbers = itertools.count()
    with MemoryManager(redis_url=bench.redis_url, database_url=bench.database_url, max_buffer_messages=1000) as manager:
        limits = manager.config.limits
        parts = itertools.cycle(_parts(manager.token_counter, limits.summary_trigger_tokens))

        def call() -> float:
            name, (*before, last) = f"bench-usable-{next(numbers)}", next(parts)
            manager.add_messages(name, [dict(message) for message in before])
            started = time.perf_counter()
            manager.add_message(name, dict(last))
            manager.wait_for_folds()
            taken = time.perf_counter() - started
            assert manager.get_context(name)["watermark"], "it was folded"
            return taken

        yield call, fixed_loop
