"""What a fold costs: the built-in summarizer alone, and the whole way from the message that makes a fold due."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scenario import Bench, Timer, fixed_loop

from contract_engine.demo import conversations
from contract_engine.memory import MemoryManager, TokenCounter
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest, form, sentences

FOLD_TOKENS = 2000


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


def fold_of_2000_tokens(*, summary_tokens: int = 800, is_counted: bool = True) -> Callable[[Bench], Any]:
    """Make the scenario of folding into a summary that is full; ``is_counted``: this process has folded it before."""

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        counter, summarizer = TokenCounter(), ExtractiveSummarizer(readable=False)
        counter.warm()
        parts = itertools.cycle(_parts(counter, FOLD_TOKENS))
        summary = ""

        def fold() -> float:
            nonlocal counter, summary
            if not is_counted:
                counter = TokenCounter()
                counter.warm()
                for remembered in (form._told, sentences.is_sentence, sentences._separator):
                    remembered.cache_clear()
            request = SummaryRequest(
                previous=summary, messages=next(parts), max_tokens=summary_tokens, count_tokens=counter.count_tokens
            )
            started = time.perf_counter()
            summary = summarizer.summarize(request)
            return time.perf_counter() - started

        while counter.count_tokens(summary) < 0.95 * summary_tokens:
            fold()
        yield fold, fixed_loop

    return prepare


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
