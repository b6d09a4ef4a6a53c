"""Which server a call goes to, and what becomes of it when that server sends it elsewhere or is gone.

Written once, as generators that ask for attempts and are told their outcomes; a transport, blocking or asyncio, makes
them. A command that was refused had no effect, so it may go elsewhere. After a lost connection nobody knows, and the
rule of ``RedisCall.again`` holds. A call has one deadline, which all of its steps share.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from redis import exceptions as redis_exc

from contract_engine.memory._effects import Command, RedisCall
from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory._runtime.redis_steps import Address, Attempt, Outcome, Steps
from contract_engine.memory._runtime.redis_topology import Deployment
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import CircuitOpenError, CorruptDataError, MemoryServiceError, RedisUnavailableError

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How often at most others are asked where a server has gone, while calls to it fail."""

_READS = frozenset({"GET", "LRANGE", "LINDEX", "LLEN", "TTL", "EXISTS", "PING", "INFO", "SCAN"})
_REFUSALS = (
    redis_exc.AskError,  # and MOVED
    redis_exc.TryAgainError,
    redis_exc.ClusterDownError,  # and MASTERDOWN
    redis_exc.ReadOnlyError,
)


class Unserved(Exception):  # noqa: N818  # ends a conversation; never leaves this module
    """A call found nobody; ``counts``: the breaker in front of all servers is to know."""

    def __init__(self, error: MemoryServiceError, *, counts: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.counts = counts


class Talk:
    """One call: what is still to be said of it, and the replies so far."""

    def __init__(self, call: RedisCall) -> None:
        self._call = call
        self._begin(call.commands)

    def _begin(self, commands: tuple[Command, ...]) -> None:
        self._all = commands
        self.replies: list[Any] = [None] * len(commands)
        self._todo = list(range(len(commands)))
        self._later: list[int] = []

    @property
    def is_done(self) -> bool:
        return not self._todo

    @property
    def commands(self) -> tuple[Command, ...]:
        """What to send now, together and in order."""
        return tuple([self._all[index] for index in self._todo]) if len(self._todo) < len(self._all) else self._all

    def take(self, replies: list[Any], run: int) -> redis_exc.ResponseError | None:
        """Take the replies of a server to what was sent; answers the first refusal, if any: the refused go elsewhere.

        What stands behind a refused write waits for it, even where it was answered: it was read too early. A write that
        was answered is never sent again.
        """
        for index, reply in zip(self._todo, replies, strict=True):
            self.replies[index] = reply
        if self._todo[0] == 0:
            self._call.run = run  # the first command is about the buffer; other keys of the session may be elsewhere
        refused = [index for index in self._todo if _is_refusal(self.replies[index])]
        if not refused:
            self._todo, self._later = self._later, []
            return None
        write = next((index for index in refused if not self._is_read(index)), len(self._all))
        behind = [index for index in self._todo if index > write and (index in refused or self._is_read(index))]
        self._later = behind + self._later
        self._todo = [index for index in refused if index <= write]
        refusal: redis_exc.ResponseError = self.replies[refused[0]]
        return refusal

    def survives(self, outcome: Outcome) -> bool:
        """Whether the call may go on after a lost connection: nothing had been sent, or it may be said again."""
        if not outcome.was_sent:
            return True
        if self._call.again is None or isinstance(outcome.error, redis_exc.TimeoutError):
            return False
        self._begin(self._call.again())
        return True

    def _is_read(self, index: int) -> bool:
        command = self._all[index]
        return command.script is None and command.words[0] in _READS


def _is_refusal(reply: Any) -> bool:
    if not isinstance(reply, redis_exc.ResponseError):
        return False
    # Redis 6.2 wraps what a script ran into.
    return isinstance(reply, _REFUSALS) or "-READONLY " in str(reply)[:300]


def failure_of(exc: redis_exc.RedisError) -> tuple[MemoryServiceError, bool]:
    """Return our error, and whether it tells of a server that cannot serve."""
    if not _is_refusal(exc):
        return redis_failure(exc)
    # One that was not followed, for want of time or of anybody else to go to.
    is_redirection = isinstance(exc, redis_exc.AskError | redis_exc.TryAgainError)
    return RedisUnavailableError(f"{type(exc).__name__}: {exc}"[:200]), not is_redirection


class Answer(NamedTuple):
    """The replies of whoever answered first; ``error`` is what the last one said where nobody did."""

    replies: list[Any]
    address: Address | None
    error: redis_exc.RedisError | None


class Routing(ABC):
    """What the routes to a Cluster and to a primary behind Sentinels share. Threads may share one without a lock."""

    def __init__(self, target: Deployment, *, timeout: float, breaker: CircuitBreaker) -> None:
        self._seeds = target.seeds
        self._timeout = timeout
        self._breaker = breaker
        # Who did not answer when asked last: the others are asked first.
        self._silent: set[Address] = set()

    def call(self, effect: RedisCall) -> Steps[list[Any]]:
        """Answer the replies of a call; every error is one of ours."""
        return self._guarded(self._answers(effect))

    def scan(self, pattern: str) -> Steps[list[bytes]]:
        """Answer the keys that match a glob, from every primary; one call per thousand keys."""
        found: list[bytes] = []
        cursor = 0
        while True:
            (reply,) = yield from self.call(scan_step(cursor, pattern))
            cursor = int(reply[0])
            found += reply[1]
            if cursor == 0:
                return found

    @abstractmethod
    def _conversation(self, effect: RedisCall, deadline: float) -> Steps[list[Any]]:
        """Answer the replies, errors among them that are no refusals; raise :class:`Unserved`."""

    @abstractmethod
    def _counts(self, cause: Exception) -> bool:
        """Whether the breaker in front of all servers counts an outage, and not only one of a node behind it."""

    @abstractmethod
    def _is_replaced(self) -> Steps[bool]:
        """Whether the server that the open breaker has judged is not the one calls would go to now."""

    def _guarded(self, steps: Steps[T]) -> Steps[T]:
        """Perform steps if the breaker in front of all servers lets them."""
        try:
            permit = self._breaker.acquire()
        except CircuitOpenError:
            if not (yield from self._is_replaced()):
                raise
            self._breaker.reset()
            permit = self._breaker.acquire()
        is_told = False
        try:
            answer = yield from steps
            self._breaker.success(permit)
            is_told = True
            return answer
        except Unserved as exc:
            if exc.counts:
                self._breaker.failure(permit, exc.error)
                is_told = True
            raise exc.error from exc.__cause__
        finally:
            if not is_told:  # it says nothing about the servers
                self._breaker.cancel(permit)

    def _answers(self, effect: RedisCall) -> Steps[list[Any]]:
        replies = yield from self._conversation(effect, time.monotonic() + self._timeout)
        for index, reply in enumerate(replies):
            if isinstance(reply, redis_exc.RedisError):
                error, _ = failure_of(reply)
                if not isinstance(error, CorruptDataError):  # ours to heal
                    raise self._unserved(reply)
                replies[index] = error
        return replies

    def _unserved(self, cause: MemoryServiceError | redis_exc.RedisError) -> Unserved:
        error, is_outage = failure_of(cause) if isinstance(cause, redis_exc.RedisError) else (cause, True)
        unserved = Unserved(error, counts=is_outage and self._counts(cause))
        unserved.__cause__ = cause if cause is not error else None
        return unserved

    def _ask(self, addresses: Iterable[Address], commands: tuple[Command, ...], deadline: float) -> Steps[Answer]:
        """Put questions to one server after the other until one answers; each but the last may use half of the time."""
        left = sorted(dict.fromkeys(addresses), key=self._silent.__contains__)
        error: redis_exc.RedisError = redis_exc.TimeoutError("nobody answers")
        while left and (remaining := deadline - time.monotonic()) > 0:
            address = left.pop(0)
            until = deadline - remaining / 2 if left else deadline
            outcome: Outcome = yield Attempt(address, commands, until)
            if outcome.was_idle and isinstance(outcome.error, redis_exc.ConnectionError):
                outcome = yield Attempt(address, commands, until, is_fresh=True)
            failures = [reply for reply in outcome.replies if isinstance(reply, redis_exc.RedisError)]
            if outcome.error is None and not failures:
                self._silent.discard(address)
                return Answer(outcome.replies, address, None)
            self._silent.add(address)
            error = outcome.error or failures[0]
        return Answer([], None, error)


def scan_step(cursor: int, pattern: str) -> RedisCall:
    """Return the call for one piece of a scan."""
    commands = (Command(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)),)
    return RedisCall(commands, lambda: commands)
