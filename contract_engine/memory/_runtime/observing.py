"""Who is told of operations and their steps, and under which names. Used only where there is a hook."""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from types import CodeType
from typing import Any

from contract_engine.memory._effects import Query, RedisCall, Scan, Summarize, Transaction, WriteFacts
from contract_engine.memory.errors import (
    CircuitOpenError,
    ContentionError,
    DatabaseCircuitOpenError,
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    PoolExhaustedError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from contract_engine.memory.hooks import (
    MANAGER,
    MODEL,
    OK,
    POSTGRES,
    REDIS,
    SUMMARIZER,
    Ending,
    OperationEnded,
    SpanEnd,
    observers,
    tell_all,
)

# The first that fits; subclasses stand before their parents.
_OUTCOMES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    ((CircuitOpenError, DatabaseCircuitOpenError), "rejected"),
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

    __slots__ = ("_endings", "backend", "ok", "operation")

    def __init__(self, operation: str, backend: str) -> None:
        self.operation = operation
        self.backend = backend
        self.ok = Ending(operation, backend, OK)
        self._endings = {OK: self.ok}

    def ended(self, started: float, answer: object, ends: list[SpanEnd] | None) -> None:
        """Tell that it ended well, with this answer."""
        seconds = perf_counter() - started
        ending = self.ok
        if not answer:
            ending = self._ending_of(answer)
        if ends is not None:
            observers.end(ends, ending, None)
        tell_all(observers.hooks, OperationEnded(ending, seconds), observers.failed)

    def failed(self, started: float, ends: list[SpanEnd] | None) -> None:
        """Tell that it raised; to be called while the error is on its way."""
        seconds = perf_counter() - started
        error = sys.exception()
        ending = self._ending(outcome_of(error))
        if ends is not None:
            observers.end(ends, ending, error)
        observers.tell(OperationEnded(ending, seconds))

    def _ending_of(self, answer: object) -> Ending:
        """Return how something ended that answered with nothing, or no."""
        if answer is False and self.operation in _FALSE_IS_REFUSED:
            return self._ending("refused")
        return self._ending("nothing") if answer is None and self.backend is MODEL else self.ok

    def _ending(self, outcome: str) -> Ending:
        return self._endings.get(outcome) or self._endings.setdefault(
            outcome, Ending(self.operation, self.backend, outcome)
        )


def observed_flow(flow: Any) -> Observed:
    """Return what a flow is called: its function, without the underscore of a private one."""
    return _flows.get(flow.gi_code) or _flows.setdefault(flow.gi_code, Observed(flow.__name__.lstrip("_"), MANAGER))


def observed_effect(effect: Any) -> Observed | None:
    """Return what an effect is called; None where it is no step worth telling of."""
    kind = type(effect)
    if kind is RedisCall:
        first = effect.commands[0]
        name = first.words[0] if first.script is None else first.script.name
        return _calls.get(name) or _calls.setdefault(name, Observed(name.lower(), REDIS))
    if kind is Query:
        name = effect.statement.name
        return _statements.get(name) or _statements.setdefault(name, Observed(name, POSTGRES))
    if kind is Transaction:
        return _transaction(effect.body)
    return _STEPS.get(kind)


def outcome_of(error: BaseException | None) -> str:
    """Return the word for how something ended that raised ``error``."""
    return next((word for kinds, word in _OUTCOMES if isinstance(error, kinds)), "error")


_flows: dict[CodeType, Observed] = {}
_calls: dict[str, Observed] = {}
_statements: dict[str, Observed] = {}
_bodies: dict[CodeType, Observed] = {}
_STEPS: dict[type, Observed] = {
    Scan: Observed("scan", REDIS),
    Summarize: Observed("summarize", SUMMARIZER),
    WriteFacts: Observed("write_facts", MODEL),
}


def _transaction(body: Any) -> Observed:
    """Return the function that a transaction's body is, or that it was written in, where it has no name of its own."""
    code = body.__code__
    found = _bodies.get(code)
    if found is None:
        whole = body.__qualname__.split(".<locals>", maxsplit=1)[0]
        found = _bodies[code] = Observed(whole.rsplit(".", 1)[-1].lstrip("_"), POSTGRES)
    return found
