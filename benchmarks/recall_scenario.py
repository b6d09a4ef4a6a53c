"""What a question costs where thousands of messages have been folded."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scenario import Bench, Timer, fixed_loop, per_call

from contract_engine.memory import MemoryManager

FOLDED = 3000
CALLS = 10
NAMES = ("Caroline", "Melanie")


def _words(rng: random.Random, count: int) -> str:
    """Return made-up words, few of them frequent and most rare: a language without its function words."""
    ranks = (str(int(30 * rng.paretovariate(0.6)))[:6] for _ in range(count))
    return " ".join("".join("bcdfghklmn"[int(digit)] + "ao"[int(digit) % 2] for digit in rank) for rank in ranks)


def _said(rng: random.Random, number: int) -> dict[str, Any]:
    return {"role": "user", "name": NAMES[number % 2], "content": _words(rng, 25)}


def large_result(rng: random.Random, number: int) -> dict[str, Any]:
    """Return the answer of a tool, as large as those of searches are."""
    rows = [{"order_id": f"W{number}-{row}", "status": "sent", "note": _words(rng, 12)} for row in range(20)]
    return {"role": "tool", "name": "search_orders", "content": json.dumps(rows)}


def recall(*, words: int = 4, told: Callable[[random.Random, int], dict[str, Any]] = _said) -> Callable[[Bench], Any]:
    """Make the scenario of recall into the context of a session with 3,000 folded messages, where PostgreSQL has no
    statistics of it. ``words``: of a question besides a name and what all questions have. ``told``: each tenth message.
    """

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        with MemoryManager(redis_url=bench.redis_url, database_url=bench.database_url) as manager:
            rng = random.Random(0)
            name = f"bench-recall-{words}-{told.__name__}"
            for first in range(0, FOLDED + 30, 30):
                numbers = range(first, first + 30)
                messages = [(told if number % 10 == 0 else _said)(rng, number) for number in numbers]
                manager.add_messages(name, messages)
                manager.wait_for_folds()
            assert manager.get_context(name)["watermark"] >= FOLDED - 30
            manager.search_messages(name, NAMES[0])
            asked = itertools.cycle([f"What did {NAMES[0]} do with {_words(rng, words)}?" for _ in range(50)])

            def ask() -> object:
                return manager.get_context(name, next(asked), recall_tokens=400)

            yield lambda: per_call([ask] * CALLS), fixed_loop

    return prepare
