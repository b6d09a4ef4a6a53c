"""What a fold costs without servers: the built-in summarizer, against a loop that is the same everywhere."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scenario import Bench, Timer

from contract_engine.demo import conversations
from contract_engine.memory import TokenCounter
from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest

FOLD_TOKENS = 2000
SUMMARY_TOKENS = 800
LOOP = 200_000
"""Rounds of the reference loop: about 10 ms on a machine of 2024."""


def reference_loop() -> float:
    """Time plain Python that allocates nothing."""
    started = time.perf_counter()
    total = 0
    for number in range(LOOP):
        total += number * number % 7
    return time.perf_counter() - started


def _parts(counter: TokenCounter) -> list[Sequence[Mapping[str, Any]]]:
    """Cut the shipped conversations into parts of about ``FOLD_TOKENS``."""
    parts: list[Sequence[Mapping[str, Any]]] = []
    part: list[Mapping[str, Any]] = []
    for message in itertools.chain.from_iterable(record["messages"] for record in conversations()):
        if message["role"] != "system":
            part.append(message)
        if counter.count_batch_tokens(part) >= FOLD_TOKENS:
            parts.append(part)
            part = []
    return parts


@contextmanager
def fold_of_2000_tokens(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    counter, summarizer = TokenCounter(), ExtractiveSummarizer(readable=False)
    counter.warm()
    parts = itertools.cycle(_parts(counter))
    summary = ""

    def call() -> float:
        nonlocal summary
        request = SummaryRequest(
            previous=summary, messages=next(parts), max_tokens=SUMMARY_TOKENS, count_tokens=counter.count_tokens
        )
        started = time.perf_counter()
        summary = summarizer.summarize(request)
        return time.perf_counter() - started

    yield call, reference_loop
