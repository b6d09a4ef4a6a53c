"""What it costs to be watched: ``add_message`` with metrics, or a hook, against the same call without.

The two take turns in pieces of a few milliseconds, so that a slow moment of the machine meets both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scenario import CALLS, Bench, Timer

from contract_engine.memory import MemoryManager
from contract_engine.memory.hooks import observers
from contract_engine.memory.metrics import MemoryMetrics

PIECES = 10

METRICS, HOOK, NOBODY = "metrics", "hook", "nobody"


def _nothing(_: object) -> None:
    """Be told, and do nothing: what a hook does itself is its own affair."""


def watched(manager_of: Callable[[Bench], MemoryManager], who: str = METRICS) -> Callable[[Bench], Any]:
    """Make the scenario; with NOBODY nobody listens on either side, which shows how exact it is."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        manager = manager_of(bench)
        metrics = MemoryMetrics()
        metrics.close()  # it is told in turns, below
        begin: dict[str, Callable[[], Callable[[], object]]] = {
            METRICS: lambda: observers.add_recorder(metrics.take),
            HOOK: lambda: observers.add(_nothing),
            NOBODY: lambda: lambda: None,
        }
        name = bench.session(manager)
        taken: dict[bool, float] = {}

        def piece(*, is_told: bool) -> float:
            messages = bench.fresh(CALLS)
            stop = begin[who if is_told else NOBODY]()
            started = time.perf_counter()
            for one in messages:
                manager.add_message(name, one)
            seconds = time.perf_counter() - started
            stop()
            return seconds / (PIECES * CALLS)

        def timer(*, is_told: bool) -> Timer:
            def call() -> float:
                """Answer what this side took; whichever of the two is asked first runs both in turns."""
                if is_told not in taken:
                    taken.update({True: 0.0, False: 0.0})
                    for number in range(2 * PIECES):
                        side = number % 4 in (1, 2)
                        taken[side] += piece(is_told=side)
                return taken.pop(is_told)

            return call

        yield timer(is_told=True), timer(is_told=False)

    return prepare
