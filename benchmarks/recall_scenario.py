"""What a question costs where thousands of messages have been folded."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager

from scenario import Bench, Timer, fixed_loop, per_call

from contract_engine.memory import MemoryManager

FOLDED = 3000
CALLS = 10
NAMES = ("Caroline", "Melanie")


def _words(rng: random.Random, count: int) -> str:
    """Return made-up words, few of them frequent and most rare: a language without its function words."""
    ranks = (str(int(30 * rng.paretovariate(0.6)))[:6] for _ in range(count))
    return " ".join("".join("bcdfghklmn"[int(digit)] + "ao"[int(digit) % 2] for digit in rank) for rank in ranks)


@contextmanager
def recall(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
    """Recall into the context of a session with 3,000 folded messages, where PostgreSQL has no statistics of it."""
    with MemoryManager(redis_url=bench.redis_url, database_url=bench.database_url) as manager:
        rng = random.Random(0)
        for first in range(0, FOLDED + 30, 30):
            manager.add_messages(
                "bench-recall",
                [
                    {"role": "user", "name": NAMES[number % 2], "content": _words(rng, 25)}
                    for number in range(first, first + 30)
                ],
            )
            manager.wait_for_folds()
        assert manager.get_context("bench-recall")["watermark"] >= FOLDED - 30
        manager.search_messages("bench-recall", NAMES[0])
        asked = itertools.cycle([f"What did {NAMES[0]} do with {_words(rng, 4)}?" for _ in range(50)])

        def ask() -> object:
            return manager.get_context("bench-recall", next(asked), recall_tokens=400)

        yield lambda: per_call([ask] * CALLS), fixed_loop
