"""Connections to one Redis, for which callers wait in line."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from queue import Empty
from typing import Any

import redis
import redis.asyncio
from redis import exceptions as redis_exc

from contract_engine.memory._runtime.places import Places
from contract_engine.memory.errors import ConfigurationError

NO_CONNECTION = "No connection available."
"""What both pools say where no connection became free in time, as those of redis-py do."""


class QueueingConnectionPool(redis.BlockingConnectionPool):
    """A pool that lets a thread wait ``timeout`` seconds for a connection, first come, first served.

    The queue of redis-py's own one wakes who waits longest, but a thread that gave a connection back and at once wants
    one again has taken it by the time the other runs. Taking and giving back are written anew for their speed: there
    they cost a third of a round trip, most of it for counts that nobody reads.
    """

    pool: Places[Any]

    def __init__(self, *, timeout: float, **options: Any) -> None:
        super().__init__(timeout=timeout, queue_class=Places, **options)  # type: ignore[no-untyped-call]

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return a connection that is open, and on which nothing is left of a call that was broken off."""
        self._checkpid()
        try:
            connection = self.pool.get(timeout=self.timeout)
        except Empty as exc:
            raise redis_exc.ConnectionError(NO_CONNECTION) from exc
        is_open = False
        try:
            if connection is None:
                connection = self.make_connection()  # type: ignore[no-untyped-call]
            connection.connect()
            if not _is_quiet(connection):
                connection.disconnect()
                connection.connect()
            is_open = True
        finally:
            if not is_open:
                self.pool.put_nowait(connection)
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        self._checkpid()
        if self.owns_connection(connection):
            self.pool.put_nowait(connection)
        else:  # of the process that this one was forked from
            connection.disconnect()


def _is_quiet(connection: Any) -> bool:
    try:
        return not connection.can_read()
    except redis_exc.ConnectionError:
        return False


class AsyncQueueingConnectionPool(redis.asyncio.ConnectionPool):
    """A pool that lets a task wait ``timeout`` seconds for a connection, first come, first served.

    redis-py's own one wakes who waits longest, but a task that gave a connection back and at once wants one again has
    taken it by the time the other runs, who then goes to the end of the line: a few wait until their time is up.
    """

    def __init__(self, *, timeout: float, **options: Any) -> None:
        super().__init__(**options)
        self.timeout = timeout
        # A place for each connection that may be in use; one that comes back is handed to the first in line.
        self._places = asyncio.Semaphore(self.max_connections)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Return a connection that is open.

        Those of a loop that is closed are given up. While one is not, use from another is a
        :class:`ConfigurationError`.
        """
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._adopt(loop)
        if self._places.locked():
            await self._wait_for_place()
        else:
            await self._places.acquire()  # does not wait
        connection: Any = None
        is_open = False
        try:
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]
            await self.ensure_connection(connection)
            is_open = True
        finally:
            if connection is None:
                self._places.release()
            elif not is_open:
                await self.release(connection)
        return connection

    async def release(self, connection: Any) -> None:
        """Take a connection back."""
        was_in_use = connection in self._in_use_connections
        try:
            await super().release(connection)
        finally:
            if was_in_use:
                # Where this was cancelled it may be there still: given up, so that it does not count for ever.
                self._in_use_connections.discard(connection)
                self._places.release()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigurationError("event loop", "this manager is in use on another one; make one manager per loop")
        self._give_all_up()
        # A line belongs to a loop: nobody waits in that of a former one any more.
        self._places = asyncio.Semaphore(self.max_connections)
        self._loop = loop

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections."""
        if self._loop is not None and self._loop.is_closed():
            self._give_all_up()
        await super().disconnect(inuse_connections)

    def _give_all_up(self) -> None:
        for connection in (*self._available_connections, *self._in_use_connections):
            _give_up(connection)
        self._available_connections.clear()
        self._in_use_connections.clear()

    async def _wait_for_place(self) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                await self._places.acquire()
        except TimeoutError as exc:
            raise redis_exc.ConnectionError(NO_CONNECTION) from exc


def _give_up(connection: Any) -> None:
    """Close a connection whose loop is closed, which can neither wait for that nor be told of it."""
    writer, connection._writer, connection._reader = connection._writer, None, None
    if writer is None:
        return
    with suppress(RuntimeError):  # the loop is closed
        writer.transport.abort()
    # What the loop would have called: without it the socket stays open until the collector finds it, and complains.
    if (end := getattr(writer.transport, "_call_connection_lost", None)) is not None:
        end(None)
