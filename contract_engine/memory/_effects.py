"""What an operation may ask of the world, as values.

An operation is a *flow*: a generator that yields effects and is sent their answers. The logic stands there once; a
runtime, blocking or asyncio, performs the effects. Errors of an effect are raised inside the flow, at its ``yield``,
already translated to the classes of :mod:`contract_engine.memory.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import msgspec
import sqlalchemy as sa

from contract_engine.memory._observed import Observed
from contract_engine.memory.circuit_guard import CallGuard
from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.hooks import POSTGRES, REDIS
from contract_engine.memory.summarizers import Facts, FactsRequest, Rejected, SummaryRequest

T = TypeVar("T")


class Script:
    """One Lua file; ``sha`` is how Redis knows it."""

    __slots__ = ("name", "observed", "sha", "source")

    def __init__(self, name: str, source: str, sha: str) -> None:
        self.name = name
        self.source = source
        self.sha = sha
        self.observed = Observed(name, REDIS)


class Command(msgspec.Struct):
    """One command of a round trip: plain words, or the keys and arguments of a script.

    ``takes_run``: the run of the server (see :class:`RedisCall`) is to be added as the last argument.
    """

    words: tuple[Any, ...]
    script: Script | None = None
    takes_run: bool = False


class RedisCall(msgspec.Struct):
    """Commands sent together, answered in order: one round trip.

    A kept connection can turn out to have died while idle, in which case nobody knows whether the commands arrived.
    ``again`` makes what to send on a fresh one then: the same, where sending it twice has the effect of once, or other
    commands. Without it the error is raised.

    ``run`` is set by whoever performs the call: a number that names the server process which answered, from its start
    to its end (Redis calls it ``run_id``); 0 where the server does not tell.

    All keys are of one session, so that one server has them; those of an ``is_spread`` call are of several, and a
    Cluster is asked once for each slot.
    """

    commands: tuple[Command, ...]
    again: Callable[[], tuple[Command, ...]] | None
    run: int = 0
    is_spread: bool = False


class Statement:
    """One SQL statement, composed and compiled at its first use; run in autocommit, so the answer means committed.

    ``is_hot``: prepared on each connection. Only writes whose plan cannot go wrong are: a plan made while its table was
    nearly empty is kept long after the table has grown. ``is_optional``: of a part that everything else goes on
    without; what would be a fault of this package elsewhere is a :class:`DatabaseUnavailableError` of that part alone,
    which has a breaker of its own.
    """

    def __init__(
        self, name: str, compose: Callable[[], sa.ClauseElement], *, is_hot: bool = False, is_optional: bool = False
    ) -> None:
        self.name = name
        self.is_hot = is_hot
        self.is_optional = is_optional
        self.observed = Observed(name, POSTGRES)
        self._compose = compose

    @cached_property
    def sql(self) -> str:
        """The text for psycopg; its bind names are the names of the parameters."""
        # Imported here because the dialects of PostgreSQL take a tenth of a second that ephemeral mode need not pay.
        from sqlalchemy.dialects.postgresql.psycopg import dialect

        return str(self._compose().compile(dialect=dialect()))  # type: ignore[no-untyped-call]  # so in SQLAlchemy


class Query(msgspec.Struct):
    """Run a statement on a pooled psycopg connection, past SQLAlchemy: this is the hot path. Answers the rows.

    ``is_repeatable``: sending it twice has the effect of once, so it may be sent again when the connection died under
    it: reads, and writes that are idempotent by message id. A compare-and-set is not: the second loses to the first.
    """

    statement: Statement
    parameters: Mapping[str, Any]
    is_repeatable: bool


class Transaction(msgspec.Struct):
    """Run ``body`` in one transaction and answer what it returns; it sees nothing but a SQLAlchemy connection."""

    body: Callable[[sa.Connection], Any]


class Summarize(msgspec.Struct):
    """Run the built-in summarizer: processor time, which the asyncio runtime spends outside the event loop."""

    request: SummaryRequest


class WriteFacts(msgspec.Struct):
    """Have the language model write facts, which takes seconds: only ever in the background."""

    request: FactsRequest


class Compute(msgspec.Struct):
    """Spend processor time on ``work``, which the asyncio runtime does outside the event loop. Answers what it does."""

    work: Callable[[], Any]


class LegacyCall(msgspec.Struct):
    """Call the store that is being left, which is the program's own; what it raises becomes
    :class:`LegacyUnavailableError`, and is told to ``breaker``.

    The asyncio runtime awaits what is a coroutine, and has everything else done outside the event loop. ``operation``
    is the method's name.
    """

    operation: str
    work: Callable[[], Any]
    breaker: CallGuard


class Pause(msgspec.Struct):
    """Wait: somebody else is doing what is needed."""

    seconds: float


class Scan(msgspec.Struct):
    """Look for keys in all of Redis, on every primary; answers them as bytes, in no order, each at least once."""

    pattern: str


class Spawn(msgspec.Struct):
    """Run another flow in the background. Its errors are logged with ``name`` and end there.

    ``is_slow``: it waits for a language model, and must not keep folds waiting.
    """

    flow: Callable[[], Flow[None]]
    name: str
    is_slow: bool = False


Effect = RedisCall | Scan | Query | Transaction | Summarize | WriteFacts | Compute | Spawn | Pause | LegacyCall
Flow = Generator[Effect, Any, T]


def redis_call(*commands: Command) -> Flow[list[Any]]:
    """Send commands that may be repeated in one round trip and answer their replies, in order."""
    return cast("list[Any]", (yield RedisCall(commands, lambda: commands)))


def redis_call_spread(*commands: Command) -> Flow[list[Any]]:
    """:func:`redis_call` about several sessions."""
    return cast("list[Any]", (yield RedisCall(commands, lambda: commands, is_spread=True)))


def redis_call_and_run(*commands: Command) -> Flow[tuple[list[Any], int]]:
    """:func:`redis_call`, and answer the run of the server too."""
    call = RedisCall(commands, lambda: commands)
    replies: list[Any] = yield call
    return replies, call.run


def redis_call_once(*commands: Command, again: Callable[[], tuple[Command, ...]] | None) -> Flow[list[Any]]:
    """Send commands that must not simply be repeated; ``again`` makes those that may be sent after an unclear end."""
    return cast("list[Any]", (yield RedisCall(commands, again)))


def query(statement: Statement, parameters: Mapping[str, Any]) -> Flow[Sequence[tuple[Any, ...]]]:
    """Run one statement that may be repeated and answer its rows."""
    return cast("Sequence[tuple[Any, ...]]", (yield Query(statement, parameters, True)))


def query_once(statement: Statement, parameters: Mapping[str, Any]) -> Flow[Sequence[tuple[Any, ...]]]:
    """Run one statement that must not be repeated and answer its rows."""
    return cast("Sequence[tuple[Any, ...]]", (yield Query(statement, parameters, False)))


def transaction(body: Callable[[sa.Connection], T]) -> Flow[T]:
    """Run ``body`` in one transaction and answer what it returns."""
    return cast("T", (yield Transaction(body)))


def summarize(request: SummaryRequest) -> Flow[str]:
    """Answer the summary text."""
    return cast("str", (yield Summarize(request)))


def write_facts(request: FactsRequest) -> Flow[Facts | Rejected | None]:
    """Answer what the language model wrote; None where it is away, or there is none."""
    answer: object = yield WriteFacts(request)
    if answer is None or isinstance(answer, Facts | Rejected):
        return answer
    raise ConfigurationError(
        "facts_writer", f"write() answered {type(answer).__name__}, expected Facts, Rejected or None"
    )


def compute(work: Callable[[], T]) -> Flow[T]:
    """Answer what ``work`` returns."""
    return cast("T", (yield Compute(work)))


def call_legacy(operation: str, work: Callable[[], Any], breaker: CallGuard) -> Flow[Any]:
    """Answer what the legacy store answers; raises :class:`LegacyUnavailableError`."""
    return (yield LegacyCall(operation, work, breaker))


def scan(pattern: str) -> Flow[list[bytes]]:
    """Answer the keys that match a glob."""
    return cast("list[bytes]", (yield Scan(pattern)))


def pause(seconds: float) -> Flow[None]:
    """Wait a moment."""
    yield Pause(seconds)


def spawn(flow: Callable[[], Flow[None]], name: str, *, is_slow: bool = False) -> Flow[None]:
    """Start a flow in the background and go on."""
    yield Spawn(flow, name, is_slow)
