"""Statements and transactions on PostgreSQL, each with a deadline kept on this side.

``statement_timeout`` is the server's own clock and does not help against a server that is stopped; so the connections
here give up by themselves. SQLAlchemy's pool holds them; a statement of the hot path is then run on the psycopg
connection directly, in autocommit, because SQLAlchemy's execution adds as much time as the statement takes.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.util import greenlet_spawn

from contract_engine.memory._effects import Query, Statement
from contract_engine.memory._runtime.database_connections import (
    AsyncDeadlineConnection,
    DeadlineConnection,
    NoAnswerError,
    async_connector,
    connector,
)
from contract_engine.memory._runtime.failures import database_failure, database_failure_counts
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import (
    CircuitOpenError,
    DatabaseCircuitOpenError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    MemoryServiceError,
)

T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]

_USED = "contract_engine.used"

SHORTEST_SECONDS = 0.1
"""What a statement has at least, however long its caller has waited for a connection."""


def _pool_options(timeout: float, pool_size: int) -> dict[str, Any]:
    return {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeout, "isolation_level": "AUTOCOMMIT"}


class _Protected:
    """One statement or transaction within a ``with`` statement: the breaker lets it pass, and is told of its outcome.

    Raises :class:`DatabaseCircuitOpenError` on entering; the driver's errors leave it as ours.
    """

    __slots__ = ("_breaker", "_is_optional", "_permit")

    def __init__(self, breaker: CircuitBreaker, *, is_optional: bool = False) -> None:
        self._breaker = breaker
        self._is_optional = is_optional

    def __enter__(self) -> None:
        try:
            self._permit = self._breaker.acquire()
        except CircuitOpenError as exc:
            raise DatabaseCircuitOpenError(exc.name, exc.retry_after) from None

    def __exit__(self, _type: object, exc: BaseException | None, _tb: object) -> None:
        if exc is None:
            self._breaker.success(self._permit)
            return
        error = _translated(exc)
        if isinstance(error, MemoryServiceError) and database_failure_counts(error):
            self._breaker.failure(self._permit, error)
        else:  # it says nothing about the server
            self._breaker.cancel(self._permit)
            if self._is_optional and isinstance(error, psycopg.Error):
                error = DatabaseUnavailableError(f"SQLSTATE {error.sqlstate}")
        if error is not exc:
            raise error from exc


class _Guarded:
    """What both colours share: which breaker stands in front of a statement, and that a call which has waited for a
    connection looks again whether to go on, and how long.
    """

    breaker: CircuitBreaker
    optional_breaker: CircuitBreaker
    """In front of statements of a part that everything else goes on without: its deadlines are nobody else's matter."""
    seconds: float

    def protected(self, statement: Statement) -> _Protected:
        """Return what stands around one statement: the breaker of its part."""
        is_optional = statement.is_optional
        return _Protected(self.optional_breaker if is_optional else self.breaker, is_optional=is_optional)

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


class Database(_Guarded):
    """Blocking access; safe to share between threads, opened by the first call."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        pool_size: int,
        breaker: CircuitBreaker,
        optional_breaker: CircuitBreaker | None = None,
    ) -> None:
        self.breaker = breaker
        self.optional_breaker = optional_breaker or breaker
        self.seconds = timeout
        connect = connector(url, timeout=timeout, check=self.check)
        self._engine = sa.create_engine(url, creator=connect, **_pool_options(timeout, pool_size))
        # Shares the pool; a connection is switched for the length of a transaction.
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")
        _engines.add(self._engine)

    def query(self, effect: Query) -> Rows:
        """Run one statement in autocommit and return its rows; repeated if its connection had died while idle."""
        with self.protected(effect.statement):
            return self._query_again(effect)

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
            raw: DeadlineConnection = pooled.driver_connection  # type: ignore[assignment]  # made above
            raw.seconds = self.left(started)
            try:
                rows = raw.execute(statement.sql, effect.parameters, prepare=statement.is_hot, binary=True).fetchall()
            except psycopg.OperationalError as exc:
                if raw.closed:
                    raise _LostConnectionError(was_idle=is_used and not isinstance(exc, NoAnswerError)) from exc
                raise
            finally:
                if raw.closed:
                    pooled.invalidate()
            return rows
        finally:
            pooled.close()

    def transaction(self, body: Callable[[sa.Connection], T]) -> T:
        """Run ``body`` in one transaction; repeated once if the connection died."""
        with _Protected(self.breaker):
            return self._transaction_again(body)

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


class AsyncDatabase(_Guarded):
    """Access on an event loop; belongs to the loop that uses it, opened by the first call."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        pool_size: int,
        breaker: CircuitBreaker,
        optional_breaker: CircuitBreaker | None = None,
    ) -> None:
        self.breaker = breaker
        self.optional_breaker = optional_breaker or breaker
        self.seconds = timeout
        # Imported here because it brings SQLAlchemy's whole ORM along, which blocking programs need not pay for.
        from sqlalchemy.ext.asyncio import create_async_engine

        connect = async_connector(url, timeout=timeout, check=self.check)
        self._engine = create_async_engine(url, async_creator=connect, **_pool_options(timeout, pool_size))
        self._transactional = self._engine.execution_options(isolation_level="READ COMMITTED")

    async def query(self, effect: Query) -> Rows:
        """Run one statement in autocommit and return its rows; repeated if its connection had died while idle."""
        with self.protected(effect.statement):
            return await self._query_again(effect)

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
            raw: AsyncDeadlineConnection = pooled.driver_connection  # type: ignore[assignment]  # made above
            raw.seconds = self.left(started)
            try:
                cursor = await raw.execute(statement.sql, effect.parameters, prepare=statement.is_hot, binary=True)
                rows = await cursor.fetchall()
            except psycopg.OperationalError as exc:
                if raw.closed:
                    raise _LostConnectionError(was_idle=is_used and not isinstance(exc, NoAnswerError)) from exc
                raise
            finally:
                if raw.closed:
                    await greenlet_spawn(pooled.invalidate)
            return rows
        finally:
            await greenlet_spawn(pooled.close)

    async def transaction(self, body: Callable[[sa.Connection], T]) -> T:
        """Run ``body`` in one transaction; repeated once if the connection died."""
        with _Protected(self.breaker):
            return await self._transaction_again(body)

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
    if isinstance(exc, NoAnswerError):
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
