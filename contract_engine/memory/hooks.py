"""What goes on in this package, told to whoever asked: metrics, traces, and functions of your own.

A hook is given frozen details of what has happened; none carries content, a session or a tenant. Hooks are of the whole
process. Where there is none, all of this costs one look at an attribute. A hook runs in the middle of somebody's call:
it must be quick, must not wait, and may be called by many threads at once. What it raises is logged once and breaks
nothing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from contract_engine.memory.errors import InvalidInputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANAGER, REDIS, POSTGRES, MODEL, SUMMARIZER = "manager", "redis", "postgres", "model", "summarizer"
LEGACY = "legacy"
"""Backends: a whole operation, or one step of it."""

OK = "ok"


class Ending(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What ended, and how.

    ``backend``: ``manager`` for a whole operation, background work included; ``redis``, a round trip; ``postgres``, a
    statement or transaction; ``model``, one write of a language model; ``summarizer``, the built-in one; ``legacy``, a
    call to the store that is being left. ``outcome``: ``ok``; ``refused``, a call that answered False because nothing
    was acknowledged; ``nothing``, a model that wrote nothing to use; or why it failed: ``rejected`` by a breaker,
    ``unavailable``, ``deadline``, ``pool_exhausted``, ``misconfigured``, ``invalid`` input, ``contention``,
    ``cancelled``, ``error``.
    """

    operation: str
    backend: str
    outcome: str


class OperationEnded(msgspec.Struct, frozen=True, gc=False):
    """An operation has ended, or one step of it; see :class:`Ending`."""

    ending: Ending
    seconds: float

    @property
    def operation(self) -> str:
        """The method of a manager or store (the legacy one too), the script or command, the statement."""
        return self.ending.operation

    @property
    def backend(self) -> str:
        """Which layer it was."""
        return self.ending.backend

    @property
    def outcome(self) -> str:
        """How it ended."""
        return self.ending.outcome


class FoldEnded(msgspec.Struct, frozen=True, gc=False):
    """Messages have become summary. ``tokens_before``: of these messages and of the summary before.

    ``is_merge``: there was a summary, and the new one goes on from it.
    """

    messages: int
    tokens_before: int
    tokens_after: int
    is_merge: bool

    @property
    def tokens_saved(self) -> int:
        """How many tokens every context is smaller from now on."""
        return max(0, self.tokens_before - self.tokens_after)


class SummaryWritten(msgspec.Struct, frozen=True, gc=False):
    """A summary version was committed. ``method``: extractive, model, rebuilt, or supplied by a caller."""

    method: str


class Fallback(msgspec.Struct, frozen=True, gc=False):
    """A call went another way than the usual one.

    ``reason``: ``breaker_open`` and ``redis_unavailable``: the log alone was asked, or told; ``postgres_unavailable``:
    a message was acknowledged by Redis alone; ``buffer_missing``: Redis had no copy that could be believed, and it was
    rebuilt from the log; ``unlogged``: a read was answered by a copy that is ahead of the log.
    """

    reason: str


class BufferRead(msgspec.Struct, frozen=True, gc=False):
    """A context was made of so many messages; ``ttl_seconds`` is None where nobody knows it."""

    messages: int
    tokens: int
    ttl_seconds: int | None


class MessagesUnlogged(msgspec.Struct, frozen=True, gc=False):
    """Messages were acknowledged by Redis alone, and wait to be logged."""

    count: int


class MessagesDrained(msgspec.Struct, frozen=True, gc=False):
    """Messages that waited in Redis were logged."""

    count: int


class DualWriteMismatch(msgspec.Struct, frozen=True, gc=False):
    """The two sides of a dual write were compared, and differ. ``kind`` is one of a few words, never an id."""

    kind: str
    count: int = 1


Detail = (
    OperationEnded
    | FoldEnded
    | SummaryWritten
    | Fallback
    | BufferRead
    | MessagesUnlogged
    | MessagesDrained
    | DualWriteMismatch
)
Hook = Callable[[Detail], None]
SpanEnd = Callable[[str, BaseException | None], None]
"""Ends a span; is given the outcome, and the error if there was one."""


class Spans(Protocol):
    """One who wants to know of the beginning too: what is begun within an operation belongs to it."""

    def begin(self, operation: str, backend: str) -> SpanEnd:
        """Begin a span in the calling thread or task, and return what ends it there."""
        ...


class Observers:
    """Those who are told, of the whole process."""

    def __init__(self) -> None:
        self.is_active = False
        """Whether anybody is to be told: nothing need be prepared otherwise."""
        self.has_spans = False
        """Whether anybody wants to know of beginnings."""
        self.records = False
        """Whether anybody wants to know how long everything took; nobody is told of that, it is noted."""
        self.hooks: tuple[Hook, ...] = ()
        self._recorders: tuple[Hook, ...] = ()
        self._spans: tuple[Spans, ...] = ()
        self._failed_before: set[str] = set()
        self.failed = self._log_failure
        self.after_fork()

    def after_fork(self) -> None:
        """Begin afresh in a child: the thread of the parent that held the lock does not exist there."""
        self._lock = threading.Lock()

    def add(self, hook: Hook) -> Callable[[], None]:
        """Tell this hook too from now on; returns what ends that."""
        if not callable(hook):
            raise InvalidInputError("hook", f"expected a function of one detail, got {type(hook).__name__}")
        with self._lock:
            self.hooks = (*self.hooks, hook)
            self._look_around()
        return lambda: self._remove(hook)

    def add_recorder(self, hook: Hook) -> Callable[[], None]:
        """Tell this hook of everything but what has ended, which is timed for it; returns what ends that.

        The times are found in :func:`contract_engine.memory.durations.all_durations`: to note one costs a fraction of
        telling somebody.
        """
        with self._lock:
            self._recorders = (*self._recorders, hook)
            self._look_around()
        return lambda: self._remove(hook)

    def add_spans(self, spans: Spans) -> Callable[[], None]:
        """Have spans begun and ended here too from now on; returns what ends that."""
        with self._lock:
            self._spans = (*self._spans, spans)
            self._look_around()
        return lambda: self._remove(spans)

    def _remove(self, one: Hook | Spans) -> None:
        with self._lock:
            self.hooks = tuple(hook for hook in self.hooks if hook is not one)
            self._recorders = tuple(hook for hook in self._recorders if hook is not one)
            self._spans = tuple(spans for spans in self._spans if spans is not one)
            self._look_around()
            self._failed_before.discard(_name_of(one))

    def _look_around(self) -> None:
        self.records, self.has_spans = bool(self._recorders), bool(self._spans)
        self.is_active = self.records or self.has_spans or bool(self.hooks)

    def tell(self, detail: Detail) -> None:
        """Give a detail to every hook; what has ended is told where it is timed."""
        tell_all((*self._recorders, *self.hooks), detail, self.failed)

    def begin(self, operation: str, backend: str) -> list[SpanEnd]:
        """Begin a span wherever one is wanted."""
        ends: list[SpanEnd] = []
        begins = [partial(_begin, spans, operation, backend) for spans in self._spans]
        tell_all(begins, ends, self.failed)
        return ends

    def end(self, ends: list[SpanEnd], ending: Ending, error: BaseException | None) -> None:
        """End what :meth:`begin` has begun, in the same thread or task, the last one first."""
        tell_all([partial(end, ending.outcome) for end in reversed(ends)], error, self.failed)

    def _log_failure(self, hook: object, exc: Exception) -> None:
        """Log what a hook raised, at its first time."""
        name = _name_of(hook)
        if name not in self._failed_before:
            self._failed_before.add(name)
            logger.error("hook %s failed; this is said once", name, exc_info=exc)

    def fell_back(self, reason: str) -> None:
        """Tell that another path had to serve than the usual one."""
        if self.is_active:
            self.tell(Fallback(reason))


def tell_all(hooks: Iterable[Callable[[T], object]], detail: T, failed: Callable[[object, Exception], object]) -> None:
    """Call each with ``detail``; ``failed`` is told of what one raises, and the others are called all the same."""
    for hook in hooks:
        try:
            hook(detail)
        except Exception as exc:  # noqa: BLE001  # foreign code in the middle of somebody's call: it may break neither
            failed(hook, exc)


def _name_of(hook: object) -> str:
    if isinstance(hook, partial):
        hook = hook.args[0] if hook.func is _begin else hook.func
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _begin(spans: Spans, operation: str, backend: str, ends: list[SpanEnd]) -> None:
    ends.append(spans.begin(operation, backend))


observers = Observers()
"""Those of this process."""

os.register_at_fork(after_in_child=observers.after_fork)
