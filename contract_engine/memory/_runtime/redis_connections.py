"""Kept connections to one Redis server.

redis-py's pool is not used: its checkout costs too much of a round trip. Between uses a connection lies on a stack, the
most recently used on top. It goes back only after a whole conversation; after any error, and after cancellation, it is
closed, so that no reply can reach another caller.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from queue import Empty
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis import exceptions as redis_exc
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine.memory._effects import Command
from contract_engine.memory._runtime.places import Places
from contract_engine.memory._runtime.redis_conversation import (
    Opened,
    introduce,
    introduce_async,
    talk,
    talk_async,
)
from contract_engine.memory._runtime.redis_steps import Attempt, Outcome
from contract_engine.memory.errors import ConfigurationError, PoolExhaustedError

T = TypeVar("T")

IDLE_CHECK_SECONDS = 1.0
"""A connection idle for longer is looked at before use: servers and firewalls close idle ones in silence."""

LEAST_SECONDS = 0.001
"""What a step may take whose deadline is now: a socket takes 0 for not to wait at all."""


def _connection_factory(pool: Any, url: str, *, timeout: float, read_timeout: float | None, retry: object) -> Any:
    """Return what makes connections for ``url``; one is made, and not opened, to see that the URL is right."""
    options: dict[str, Any] = {
        # redis-py counts what it has made and never what is gone; how many are open at once is seen to here.
        "max_connections": 2**31 - 1,
        "socket_timeout": read_timeout,
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
        "retry": retry,
    }
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": timeout, "socket_keepalive": True}
    try:
        factory = pool.from_url(url, **options)
        factory.make_connection()
    except (ValueError, TypeError) as exc:
        problem = "not a redis://, rediss:// or unix:// URL with options that redis-py knows"
        raise ConfigurationError("redis_url", problem) from exc
    return factory


Place = tuple[Opened, float] | None
"""What is in a place for a connection: the idle one and when it was last used, or none yet."""


class Connections:
    """Blocking connections to one server; safe to share between threads, opened by the first call.

    ``must_be_primary``: a connection to a replica is refused.
    """

    def __init__(self, url: str, *, timeout: float, pool_size: int, must_be_primary: bool = False) -> None:
        retry = Retry(NoBackoff(), 0)
        self._factory = _connection_factory(
            redis.ConnectionPool, url, timeout=timeout, read_timeout=timeout, retry=retry
        )
        self._timeout = timeout
        self._pool_size = pool_size
        self._must_be_primary = must_be_primary
        self._forget()
        _stacks.add(self)

    def _forget(self) -> None:
        # As many places as connections may be open; in each an idle one, and when it was last used.
        self._places = Places[tuple[Opened, float]](self._pool_size)

    def attempt(self, step: Attempt) -> Outcome:
        """Send the commands of a step once; only a lack of connections is raised."""
        place = self._take_place()
        opened = kept = None
        was_idle = was_sent = False
        try:
            opened = self._idle(place)
            if opened is not None and step.is_fresh:
                opened.connection.disconnect()
                self.close()
                opened = None
            was_idle = was_sent = opened is not None
            seconds = max(step.deadline - time.monotonic(), LEAST_SECONDS)
            if opened is None:
                opened = self._open(seconds)
                was_sent = True
            else:
                # redis-py has no word for it: the deadline is the call's, and each of its steps leaves less of it.
                opened.connection._sock.settimeout(seconds)
            replies, kept = self._exchange(opened, step.commands, is_asking=step.is_asking)
        except redis_exc.RedisError as exc:
            return Outcome([], exc, was_idle=was_idle, was_sent=was_sent)
        finally:
            self._places.put_nowait(kept)
        return Outcome(replies, None, was_idle=was_idle, was_sent=True, run=opened.run)

    def _open(self, seconds: float | None = None) -> Opened:
        """Open a connection; ``seconds`` is what is left for it, None for the usual time."""
        connection = self._factory.make_connection()
        if seconds is not None:
            connection.socket_timeout = connection.socket_connect_timeout = seconds
        opened = None
        try:
            connection.connect()
            opened = introduce(connection, must_be_primary=self._must_be_primary)
        finally:
            if opened is None:
                connection.disconnect()
        return opened

    def _take_place(self) -> Place:
        try:
            return self._places.get(timeout=self._timeout)
        except Empty as exc:
            raise PoolExhaustedError("no free Redis connection") from exc

    @staticmethod
    def _exchange(opened: Opened, commands: tuple[Command, ...], *, is_asking: bool = False) -> tuple[list[Any], Place]:
        replies = None
        try:
            replies = talk(opened, commands, is_asking=is_asking)
        finally:
            if replies is None:
                opened.connection.disconnect()
        return replies, (opened, time.monotonic())

    @staticmethod
    def _idle(place: Place) -> Opened | None:
        """Return the idle connection of a place, if it is still good."""
        if place is None:
            return None
        opened, last_used = place
        if time.monotonic() - last_used < IDLE_CHECK_SECONDS:
            return opened
        try:
            is_quiet = not opened.connection.can_read(0)
        except redis_exc.ConnectionError:
            is_quiet = False
        if is_quiet:
            return opened
        opened.connection.disconnect()
        return None

    def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        with suppress(Empty):
            for _ in range(self._pool_size):
                place = self._places.get(timeout=0)
                if place is not None:
                    place[0].connection.disconnect()
                self._places.put_nowait(None)


class AsyncConnections:
    """Connections on an event loop; they belong to the loop that uses them, opened by the first call."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, must_be_primary: bool = False) -> None:
        retry = AsyncRetry(NoBackoff(), 0)
        # One deadline around the conversation instead of one in each step: those cost a task and a timer every time.
        self._factory = _connection_factory(
            redis.asyncio.ConnectionPool, url, timeout=timeout, read_timeout=None, retry=retry
        )
        self._timeout = timeout
        self._must_be_primary = must_be_primary
        self._slots = asyncio.Semaphore(pool_size)
        self._free: deque[tuple[Opened, float]] = deque()
        self._is_retired = False

    async def attempt(self, step: Attempt) -> Outcome:
        """Send the commands of a step once; only a lack of connections is raised."""
        await self._take_slot()
        was_idle = was_sent = False
        try:
            opened = await self._idle(is_fresh=step.is_fresh)
            was_idle = was_sent = opened is not None
            if opened is None:
                opened = await self._open(step.deadline)
                was_sent = True
            replies = await self._exchange(opened, step.commands, step.deadline, is_asking=step.is_asking)
        except redis_exc.RedisError as exc:
            return Outcome([], exc, was_idle=was_idle, was_sent=was_sent)
        finally:
            self._slots.release()
        return Outcome(replies, None, was_idle=was_idle, was_sent=True, run=opened.run)

    async def _take_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # does not wait
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise PoolExhaustedError("no free Redis connection") from exc

    async def _open(self, deadline: float) -> Opened:
        connection = self._factory.make_connection()
        return await _finished(connection, self._introduce(connection), deadline)

    async def _introduce(self, connection: Any) -> Opened:
        await connection.connect()
        return await introduce_async(connection, must_be_primary=self._must_be_primary)

    async def _exchange(
        self, opened: Opened, commands: tuple[Command, ...], deadline: float, *, is_asking: bool = False
    ) -> list[Any]:
        steps = talk_async(opened, commands, is_asking=is_asking)
        replies = await _finished(opened.connection, steps, deadline)
        if self._is_retired:
            await opened.connection.disconnect(nowait=True)
        else:
            self._free.append((opened, time.monotonic()))
        return replies

    async def _idle(self, *, is_fresh: bool = False) -> Opened | None:
        """Take an idle connection that is still good; with ``is_fresh`` all of them are given up."""
        if is_fresh:
            await self.close()
        while self._free:
            opened, last_used = self._free.pop()
            if time.monotonic() - last_used < IDLE_CHECK_SECONDS:
                return opened
            connection = opened.connection
            try:
                # redis-py 7 has only the older of the two names, redis-py 8 warns of it.
                is_dirty = getattr(connection, "can_read", None) or connection.can_read_destructive
                is_quiet = not await is_dirty()
            except redis_exc.ConnectionError:
                is_quiet = False
            if is_quiet:
                return opened
            await connection.disconnect(nowait=True)
        return None

    async def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        while self._free:
            opened, _ = self._free.pop()
            await opened.connection.disconnect(nowait=True)

    async def retire(self) -> None:
        """Close the idle connections, and those in use as soon as they come back."""
        self._is_retired = True
        await self.close()


async def _finished(connection: Any, steps: Coroutine[Any, Any, T], deadline: float) -> T:
    """Await steps of a conversation until the deadline; a connection on which they did not end well is closed."""
    is_well = False
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), LEAST_SECONDS)):
            answer = await steps
        is_well = True
    except TimeoutError as exc:
        raise redis_exc.TimeoutError("no answer within the deadline") from exc
    finally:
        if not is_well:
            await connection.disconnect(nowait=True)
    return answer


_stacks: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on talking on these sockets: a child only drops its references.
    for stack in list(_stacks):
        stack._forget()  # same module


os.register_at_fork(after_in_child=_after_fork)
