"""What is timed and told of: an operation, or a step of one, under its name. Used only where somebody listens."""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter

from contract_engine.memory.durations import Distribution, durations_of
from contract_engine.memory.errors import (
    CircuitOpenError,
    ContentionError,
    DatabaseCircuitOpenError,
    DeadlineExceededError,
    InvalidInputError,
    LegacyCircuitOpenError,
    ModelUnavailableError,
    PoolExhaustedError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from contract_engine.memory.hooks import MODEL, OK, Ending, OperationEnded, SpanEnd, observers, tell_all

# The first that fits; subclasses stand before their parents.
_OUTCOMES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    ((CircuitOpenError, DatabaseCircuitOpenError, LegacyCircuitOpenError), "rejected"),
    (DeadlineExceededError, "deadline"),
    (PoolExhaustedError, "pool_exhausted"),
    ((StoreUnavailableError, ModelUnavailableError), "unavailable"),
    (StoreMisconfiguredError, "misconfigured"),
    (InvalidInputError, "invalid"),
    (ContentionError, "contention"),
    ((asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit), "cancelled"),
)

_FALSE_IS_REFUSED = frozenset(
    {
        "add_message",
        "save_context",
        "clear_session_memory",
        "add_summary",
        "clear_summaries",
        "clear_buffer",
        "add_chat_message",
        "save_session_context_atomic",
    }
)
"""Operations that answer False where nothing was acknowledged, instead of raising."""


class Observed:
    """An operation or step of one name; its endings are made once."""

    __slots__ = ("_endings", "_ok", "backend", "operation")

    def __init__(self, operation: str, backend: str) -> None:
        self.operation = operation
        self.backend = backend
        self._endings: dict[str, tuple[Ending, Distribution]] = {}
        self._ok = self._ending(OK)

    def ended(self, started: float, spans: list[SpanEnd] | None, answer: object) -> None:
        """Note how long it took, which ended well with this answer, and tell of it."""
        seconds = perf_counter() - started
        ending, durations = self._ok if answer else self._ending_of(answer)
        if observers.records:
            durations.add(seconds)
        if spans is not None:
            observers.end(spans, ending, None)
        if hooks := observers.hooks:
            tell_all(hooks, OperationEnded(ending, seconds), observers.failed)

    def failed(self, started: float, spans: list[SpanEnd] | None) -> None:
        """Note how long it took, which raised, and tell of it; to be called while the error is on its way."""
        seconds, error = perf_counter() - started, sys.exception()
        ending, durations = self._ending(outcome_of(error))
        if observers.records:
            durations.add(seconds)
        if spans is not None:
            observers.end(spans, ending, error)
        if hooks := observers.hooks:
            tell_all(hooks, OperationEnded(ending, seconds), observers.failed)

    def _ending_of(self, answer: object) -> tuple[Ending, Distribution]:
        """Return how something ended that answered with nothing, or no."""
        if answer is False and self.operation in _FALSE_IS_REFUSED:
            return self._ending("refused")
        return self._ending("nothing") if self.backend is MODEL else self._ok

    def _ending(self, outcome: str) -> tuple[Ending, Distribution]:
        found = self._endings.get(outcome)
        if found is None:
            labels = self.operation, self.backend, outcome
            found = self._endings.setdefault(outcome, (Ending(*labels), durations_of(*labels)))
        return found


class ObservedLegacy(Observed):
    """A call to a legacy store, which may answer with anything, an object without a truth value too."""

    __slots__ = ()

    def ended(self, started: float, spans: list[SpanEnd] | None, answer: object) -> None:
        """See :meth:`Observed.ended`."""
        super().ended(started, spans, answer is not False)


def outcome_of(error: BaseException | None) -> str:
    """Return the word for how something ended that raised ``error``."""
    return next((word for kinds, word in _OUTCOMES if isinstance(error, kinds)), "error")
