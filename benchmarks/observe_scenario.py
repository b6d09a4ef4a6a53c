"""What it costs to be watched: ``add_message`` with metrics and hooks against the same without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scenario import CALLS, Bench, Timer, per_call

from contract_engine.memory import MemoryManager
from contract_engine.memory.hooks import observers
from contract_engine.memory.metrics import MemoryMetrics

PIECES = 10
"""Watched and unwatched calls take turns in pieces so small that a slow moment of the machine meets both."""


def add_watched(manager_of: Callable[[Bench], MemoryManager], *, is_watched: bool = True) -> Callable[[Bench], Any]:
    """Make the scenario; with ``is_watched`` False nobody listens, which shows how exact the figure is."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        manager = manager_of(bench)
        metrics = MemoryMetrics()
        metrics.watch(manager)
        metrics.close()
        hook = metrics._take
        name = bench.session(manager)

        def timer(*, is_told: bool) -> Timer:
            def call() -> float:
                seconds = 0.0
                for _ in range(PIECES):
                    messages = bench.fresh(CALLS)
                    stop = observers.add(hook) if is_told else None
                    seconds += per_call([lambda one=one: manager.add_message(name, one) for one in messages])  # type: ignore[misc]
                    if stop is not None:
                        stop()
                return seconds / PIECES

            return call

        yield timer(is_told=is_watched), timer(is_told=False)

    return prepare
