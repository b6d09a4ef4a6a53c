"""What a model summarizer has done so far, counted."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from contract_engine.memory.summarizers.request import FactsWriter

ACCEPTED, REJECTED, FAILED = "accepted", "rejected", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStats:
    """Counts since the summarizer was made. ``writes`` is ``accepted`` and all of ``rejected`` and ``failed`` together.

    ``rejected``: answers the gate turned down, by reason. ``failed``: writes without an answer, by kind: those of
    :class:`ModelUnavailableError`, ``breaker_open``, ``cancelled``, and ``unexpected`` for an exception that was passed
    on. ``dropped``: notes left out of
    answers that were accepted. ``requests`` and ``retries``: calls of the model, and how many of them repeated one that
    failed. ``tokens_in`` and ``tokens_out`` are of all answers, accepted or not. ``running``: writes under way.
    """

    model: str
    prompt_hash: str
    breaker: str
    running: int
    writes: int
    accepted: int
    rejected: Mapping[str, int]
    failed: Mapping[str, int]
    dropped: int
    requests: int
    retries: int
    tokens_in: int
    tokens_out: int


@runtime_checkable
class CountedWriter(FactsWriter, Protocol):
    """A writer of facts that counts what it does: ``health()`` shows it."""

    def stats(self) -> ModelStats:
        """Return what has been counted so far."""
        ...


class Outcome(NamedTuple):
    """How a write ended: accepted, or why not."""

    kind: str
    reason: str = ""


class Tally:
    """The counts themselves; any thread may add to them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[Outcome] = Counter()
        self._lock = threading.Lock()
        _tallies.add(self)

    def add(self, **counts: int) -> None:
        """Add to the counts by name."""
        with self._lock:
            self._counts.update(counts)

    def end(self, outcome: Outcome) -> None:
        """Count a write that has ended."""
        with self._lock:
            self._counts["running"] -= 1
            self._reasons[outcome] += 1

    def stats(self, *, model: str, prompt_hash: str, breaker: str) -> ModelStats:
        """Return the counts of one moment."""
        with self._lock:
            counts, reasons = Counter(self._counts), dict(self._reasons)
        names = ("running", "dropped", "requests", "retries", "tokens_in", "tokens_out")
        return ModelStats(
            model=model,
            prompt_hash=prompt_hash,
            breaker=breaker,
            writes=sum(reasons.values()),
            accepted=reasons.get(Outcome(ACCEPTED), 0),
            rejected={outcome.reason: count for outcome, count in reasons.items() if outcome.kind == REJECTED},
            failed={outcome.reason: count for outcome, count in reasons.items() if outcome.kind == FAILED},
            **{name: counts[name] for name in names},
        )


_tallies: weakref.WeakSet[Tally] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    for tally in _tallies:
        tally._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
