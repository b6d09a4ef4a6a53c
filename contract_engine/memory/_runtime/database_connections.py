"""Connections to PostgreSQL that give up by themselves.

``statement_timeout`` is the server's own clock and does not help against a server that is stopped; so the wait for
every answer has an end on this side. A connection whose answer did not come is closed, since it may still come.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import waiting

from contract_engine.memory.errors import StoreMisconfiguredError

T = TypeVar("T")

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
                raise NoAnswerError(seconds)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


class NoAnswerError(psycopg.OperationalError):
    """A missed deadline as SQLAlchemy knows it: the connection is lost, and not asked to roll anything back."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")


def _give_up(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], steps: Generator[Any, Any, Any]
) -> None:
    """Close a connection whose reply may still come, and end the conversation: a pipeline would try to flush later."""
    connection.pgconn.finish()
    with suppress(psycopg.Error):
        steps.close()


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection whose every wait ends; after a missed deadline it is closed, since its reply may still come."""

    seconds = math.inf

    def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        socket = self.pgconn.socket  # first of all: a lost connection has none, and nothing may be begun on it
        try:
            return waiting.wait(_within(next(gen), gen, self.seconds), socket, interval=interval)
        except StopIteration as stop:  # it did not have to wait
            return stop.value
        except (NoAnswerError, KeyboardInterrupt):
            _give_up(self, gen)
            raise


class AsyncDeadlineConnection(psycopg.AsyncConnection[Any]):
    """The same on an event loop, where a cancelled call closes its connection too, without asking the server."""

    seconds = math.inf

    async def wait(self, gen: Any, interval: float = WAKE_SECONDS, timeout: float | None = None) -> Any:
        socket = self.pgconn.socket
        try:
            return await waiting.wait_async(_within(next(gen), gen, self.seconds), socket, interval=interval)
        except StopIteration as stop:
            # Nothing to wait for, as when SQLAlchemy has just taken the connection from its pool and sets its isolation
            # level. psycopg would let the loop have a turn now and then; cancelled there, the pool would lose it.
            return stop.value
        except (NoAnswerError, asyncio.CancelledError, KeyboardInterrupt):
            _give_up(self, gen)
            raise


def connector(url: str, *, timeout: float, check: Callable[[], None]) -> Callable[[], DeadlineConnection]:
    """Return what opens connections for SQLAlchemy's pool; ``check`` may refuse before there is anything to open."""
    arguments = _connect_arguments(url, timeout)

    def connect() -> DeadlineConnection:
        check()
        with _Connecting():
            connection = DeadlineConnection.connect(**arguments)
        connection.seconds = timeout
        return connection

    return connect


def async_connector(
    url: str, *, timeout: float, check: Callable[[], None]
) -> Callable[[], Awaitable[AsyncDeadlineConnection]]:
    """:func:`connector` for an event loop."""
    arguments = _connect_arguments(url, timeout)

    async def connect() -> AsyncDeadlineConnection:
        check()
        with _Connecting():
            connection = await AsyncDeadlineConnection.connect(**arguments)
        connection.seconds = timeout
        return connection

    return connect


def _connect_arguments(url: str, timeout: float) -> dict[str, Any]:
    _, arguments = sa.make_url(url).get_dialect()().create_connect_args(sa.make_url(url))
    # libpq counts whole seconds here, and takes one for two.
    return {"connect_timeout": math.ceil(timeout), "application_name": "contract-memory", **arguments}


class _Connecting:
    """What becomes of an error, or a cancellation, while a connection is opened."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, exc: BaseException | None, _tb: object) -> None:
        if isinstance(exc, psycopg.ProgrammingError):
            problem, hint = "unknown connection option", "check the database URL"
            raise StoreMisconfiguredError("postgres", problem, hint=hint) from exc
        if exc is not None:
            # The half-made connection hangs in the frames of the error, with its socket, until garbage is collected.
            traceback.clear_frames(exc.__traceback__)
