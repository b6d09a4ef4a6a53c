"""Statements and transactions on PostgreSQL, each with a deadline kept on this side.

``statement_timeout`` is the server's own clock and does not help against a server that is stopped; so the connections
here give up by themselves. SQLAlchemy's pool holds them; a statement of the hot path is then run on the psycopg
connection directly, in autocommit, because SQLAlchemy's execution adds as much time as the statement takes.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from psycopg import waiting
from sqlalchemy.util import greenlet_spawn

from contract_engine.memory._effects import Query
from contract_engine.memory._runtime.failures import database_failure, database_failure_counts
from contract_engine.memory.circuit_breaker import CircuitBreaker, Permit
from contract_engine.memory.errors import (
    CircuitOpenError,
    DatabaseCircuitOpenError,
    DeadlineExceededError,
    MemoryServiceError,
    StoreMisconfiguredError,
)

T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]

_USED = "contract_engine.used"

SHORTEST_SECONDS = 0.1
"""What a statement has at least, however long its caller has waited for a connection."""

WAKE_SECONDS = 0.1
"""How often a wait looks at its deadline."""


def _within(wanted: Any, steps: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """Pass psycopg's conversation through, from its first wait until the deadline; it is woken ten times a second.

    What has arrived is taken first, so an answer that is there in time counts even if nobody looked in time.
    """
    deadline = time.monotonic() + seconds
    try:
        while True:
            ready = yield wanted
            wanted = steps.send(ready)
            if time.monotonic() >= deadline:
                raise _NoAnswerError(seconds)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


class _NoAnswerError(psycopg.OperationalError):
    """A missed deadline as SQLAlchemy knows it: the connection is lost, and not asked to roll anything back."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")


class _DeadlineConnection(psycopg.Connection[Any]):
    """A connection whose every wait ends; after a missed deadline it is closed, since its reply may still come."""

    seconds = math.inf

    def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        try:
            return waiting.wait(_within(next(gen), gen, self.seconds), self.pgconn.socket, interval=interval)
        except StopIteration as stop:  # it did not have to wait
            return stop.value
        except (_NoAnswerError, KeyboardInterrupt):
            self.pgconn.finish()
            raise


class _AsyncDeadlineConnection(psycopg.AsyncConnection[Any]):
    """The same on an event loop, where a cancelled call closes its connection too, without asking the server."""

    seconds = math.inf

    async def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        try:
            return await waiting.wait_async(
                _within(next(gen), gen, self.seconds), self.pgconn.socket, interval=interval
            )
        except StopIteration as stop:
            # Nothing to wait for, as when SQLAlchemy has just taken the connection from its pool and sets its isolation
            # level. psycopg would let the loop have a turn now and then; cancelled there, the pool would lose it.
            return stop.value
        except (_NoAnswerError, asyncio.CancelledError, KeyboardInterrupt):
            self.pgconn.finish()
            raise


def _connect_arguments(url: str, timeout: float) -> dict[str, Any]:
    _, arguments = sa.make_url(url).get_dialect()().create_connect_args(sa.make_url(url))
    # libpq counts whole seconds here, and takes one for two.
    return {"connect_timeout": math.ceil(timeout), "application_name": "contract-memory", **arguments}


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except psycopg.ProgrammingError as exc:
        raise StoreMisconfiguredError("postgres", "unknown connection option", hint="check the database URL") from exc
    except BaseException as exc:
        # The half-made connection hangs in the frames of the error, with its socket, until somebody collects garbage.
        traceback.clear_frames(exc.__traceback__)
        raise


def _pool_options(timeout: float, pool_size: int) -> dict[str, Any]:
    return {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeout, "isolation_level": "AUTOCOMMIT"}


class _Guard:
    """What both colours share: the breaker around a statement or transaction."""

    breaker: CircuitBreaker
    seconds: float

    def admit(self) -> Permit:
        """Return a permit, or raise :class:`DatabaseCircuitOpenError`."""
        try:
            return self.breaker.acquire()
        except CircuitOpenError as exc:
            raise DatabaseCircuitOpenError(exc.name, exc.retry_after) from None

    def check(self) -> None:
        """Raise where the breaker has opened since the call was admitted."""
        if self.breaker.turns_away():
            raise DatabaseCircuitOpenError(self.breaker.name, self.breaker.retry_after)

    def left(self, started: float) -> float:
        """Return what of the deadline is left to a call that has waited for a connection since ``started``.

        Raises where the breaker has opened meanwhile: whoever held the connections has found out that nobody answers.
        """
        self.check()
        return max(self.seconds + started - time.monotonic(), SHORTEST_SECONDS)

    def report(self, permit: Permit, exc: BaseException) -> BaseException:
        """Report a failure, or give the permit back where it says nothing about the server; answers our error."""
        error = _translated(exc)
        if isinstance(error, MemoryServiceError) and database_failure_counts(error):
            self.breaker.failure(permit, error)
        else:
            self.breaker.cancel(permit)
        return error


class Database(_Guard):
    """Blocking access; safe to share between threads, opened by the first call."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        self.breaker = breaker
        self.seconds = timeout
        arguments = _connect_arguments(url, timeout)

        def connect() -> psycopg.Connection[Any]:
            self.check()
            with _connecting():
                connection = _DeadlineConnection.connect(**arguments)
            connection.seconds = timeout
            return connection

        self._engine = sa.create_engine(url, creator=connect, **_pool_options(timeout, pool_size))
        # Shares the pool; a connection is switched for the length of a transaction.
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")
        _engines.add(self._engine)

    def query(self, effect: Query) -> Rows:
        """Run one statement in autocommit and return its rows; repeated if its connection had died while idle."""
        permit = self.admit()
        try:
            rows = self._query_again(effect)
        except BaseException as exc:
            if (error := self.report(permit, exc)) is exc:
                raise
            raise error from exc
        self.breaker.success(permit)
        return rows

    def _query_again(self, effect: Query) -> Rows:
        while True:
            try:
                return self._query(effect)
            except _LostConnectionError as lost:
                if not (lost.was_idle and effect.is_repeatable):
                    raise

    def _query(self, effect: Query) -> Rows:
        started = time.monotonic()
        pooled = self._engine.raw_connection()
        try:
            statement = effect.statement
            is_used = _mark_used(pooled)
            raw: _DeadlineConnection = pooled.driver_connection  # type: ignore[assignment]  # made above
            raw.seconds = self.left(started)
            try:
                rows = raw.execute(statement.sql, effect.parameters, prepare=statement.is_hot, binary=True).fetchall()
            except psycopg.OperationalError as exc:
                if raw.closed:
                    raise _LostConnectionError(was_idle=is_used and not isinstance(exc, _NoAnswerError)) from exc
                raise
            finally:
                if raw.closed:
                    pooled.invalidate()
            return rows
        finally:
            pooled.close()

    def transaction(self, body: Callable[[sa.Connection], T]) -> T:
        """Run ``body`` in one transaction; repeated once if the connection died."""
        permit = self.admit()
        try:
            answer = self._transaction_again(body)
        except BaseException as exc:
            if (error := self.report(permit, exc)) is exc:
                raise
            raise error from exc
        self.breaker.success(permit)
        return answer

    def _transaction_again(self, body: Callable[[sa.Connection], T]) -> T:
        try:
            return self._transaction(body)
        except sa_exc.DBAPIError as exc:
            if not exc.connection_invalidated or _missed_deadline(exc):
                raise
            return self._transaction(body)

    def _transaction(self, body: Callable[[sa.Connection], T]) -> T:
        started = time.monotonic()
        with self._transactional.begin() as connection:
            _prepare(connection, self.left(started))
            return body(connection)

    def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        self._engine.dispose()


class AsyncDatabase(_Guard):
    """Access on an event loop; belongs to the loop that uses it, opened by the first call."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        self.breaker = breaker
        self.seconds = timeout
        arguments = _connect_arguments(url, timeout)

        async def connect() -> psycopg.AsyncConnection[Any]:
            self.check()
            with _connecting():
                connection = await _AsyncDeadlineConnection.connect(**arguments)
            connection.seconds = timeout
            return connection

        # Imported here because it brings SQLAlchemy's whole ORM along, which blocking programs need not pay for.
        from sqlalchemy.ext.asyncio import create_async_engine

        self._engine = create_async_engine(url, async_creator=connect, **_pool_options(timeout, pool_size))
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")

    async def query(self, effect: Query) -> Rows:
        """Run one statement in autocommit and return its rows; repeated if its connection had died while idle."""
        permit = self.admit()
        try:
            rows = await self._query_again(effect)
        except BaseException as exc:
            if (error := self.report(permit, exc)) is exc:
                raise
            raise error from exc
        self.breaker.success(permit)
        return rows

    async def _query_again(self, effect: Query) -> Rows:
        while True:
            try:
                return await self._query(effect)
            except _LostConnectionError as lost:
                if not (lost.was_idle and effect.is_repeatable):
                    raise

    async def _query(self, effect: Query) -> Rows:
        started = time.monotonic()
        pooled = await self._engine.raw_connection()
        try:
            statement = effect.statement
            is_used = _mark_used(pooled)
            raw: _AsyncDeadlineConnection = pooled.driver_connection  # type: ignore[assignment]  # made above
            raw.seconds = self.left(started)
            try:
                cursor = await raw.execute(statement.sql, effect.parameters, prepare=statement.is_hot, binary=True)
                rows = await cursor.fetchall()
            except psycopg.OperationalError as exc:
                if raw.closed:
                    raise _LostConnectionError(was_idle=is_used and not isinstance(exc, _NoAnswerError)) from exc
                raise
            finally:
                if raw.closed:
                    await greenlet_spawn(pooled.invalidate)
            return rows
        finally:
            await greenlet_spawn(pooled.close)

    async def transaction(self, body: Callable[[sa.Connection], T]) -> T:
        """Run ``body`` in one transaction; repeated once if the connection died."""
        permit = self.admit()
        try:
            answer = await self._transaction_again(body)
        except BaseException as exc:
            if (error := self.report(permit, exc)) is exc:
                raise
            raise error from exc
        self.breaker.success(permit)
        return answer

    async def _transaction_again(self, body: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._transaction(body)
        except sa_exc.DBAPIError as exc:
            if not exc.connection_invalidated or _missed_deadline(exc):
                raise
            return await self._transaction(body)

    async def _transaction(self, body: Callable[[sa.Connection], T]) -> T:
        started = time.monotonic()
        async with self._transactional.begin() as connection:
            await connection.run_sync(_prepare, self.left(started))
            return await connection.run_sync(body)

    async def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        await self._engine.dispose()


class _LostConnectionError(Exception):
    """A connection died under a statement; ``was_idle`` if it had been used before, so that it may have died long ago.

    When a server restarts, all idle connections die. Each is dropped as it is met, and at last there is a new one.
    """

    def __init__(self, *, was_idle: bool) -> None:
        super().__init__("connection lost")
        self.was_idle = was_idle


def _mark_used(pooled: sa.pool.PoolProxiedConnection) -> bool:
    """Mark the connection as used and return whether it was before."""
    is_used = _USED in pooled.info
    pooled.info[_USED] = True
    return is_used


def _prepare(connection: sa.Connection, seconds: float) -> None:
    """Mark the connection of a transaction as used, and set the deadline of each of its statements."""
    connection.info[_USED] = True
    driver: Any = connection.connection.driver_connection
    driver.seconds = seconds


def _missed_deadline(exc: BaseException | None) -> DeadlineExceededError | None:
    """Return the missed deadline that this error followed from."""
    if isinstance(exc, _NoAnswerError):
        return DeadlineExceededError(str(exc))
    if exc is None or isinstance(exc, DeadlineExceededError):
        return exc
    return _missed_deadline(exc.__cause__) or _missed_deadline(exc.__context__)


def _translated(exc: BaseException) -> BaseException:
    """Return our error for one of the driver's; others, and cancellation, stay what they are."""
    if isinstance(exc, psycopg.Error | sa_exc.SQLAlchemyError | _LostConnectionError):
        if (missed := _missed_deadline(exc)) is not None:
            return missed
        cause = exc.__cause__ if isinstance(exc, _LostConnectionError) else exc
        assert isinstance(cause, Exception), "a lost connection is always raised from the driver's error"
        return database_failure(cause) or cause
    return exc


_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on talking on these sockets: a child only drops its references.
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)
