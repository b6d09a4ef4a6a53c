"""Round trips to Redis on kept connections, through the circuit breaker.

redis-py's connections are used directly: its pool checkout and command machinery cost about a third of a round trip.
Between uses a connection lies on a stack, the most recently used on top. It goes back only after a whole
conversation; after any error, and after cancellation, it is closed, so that no reply can reach another caller.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import hiredis
import redis
import redis.asyncio
from redis import exceptions as redis_exc
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine.memory._effects import Command, RedisCall
from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory.circuit_breaker import CircuitBreaker, Permit
from contract_engine.memory.errors import ConfigurationError, CorruptDataError, MemoryServiceError, PoolExhaustedError

IDLE_CHECK_SECONDS = 1.0
"""A connection idle for longer is looked at before use: servers and firewalls close idle ones in silence."""


def _connection_factory(pool: Any, url: str, *, timeout: float, read_timeout: float | None, retry: object) -> Any:
    """Return what makes connections for ``url``; one is made, and not opened, to see that the URL is right."""
    options: dict[str, Any] = {
        "socket_timeout": read_timeout,
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
        # redis-py counts every connection its pool has ever made; how many are open at once is counted here.
        "max_connections": 2**31 - 1,
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


def _words(command: Command, *, by_source: bool = False) -> tuple[Any, ...]:
    script = command.script
    if script is None:
        return command.words
    return ("EVAL", script.source, *command.words) if by_source else ("EVALSHA", script.sha, *command.words)


def _packed(commands: list[tuple[Any, ...]]) -> list[bytes]:
    """Return the commands in the protocol's form, in one piece: one system call sends them."""
    return [b"".join([hiredis.pack_command(command) for command in commands])]


def _first_unknown_script(replies: list[Any]) -> int | None:
    for index, reply in enumerate(replies):
        if isinstance(reply, redis_exc.NoScriptError):
            return index
    return None


def _scan_step(cursor: int, pattern: str) -> RedisCall:
    commands = (Command(("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)),)
    return RedisCall(commands, lambda: commands)


_Place = tuple[Any, float] | None
"""Room for one connection: the idle one and when it was last used, or none yet."""


class _Guard:
    """What both transports share: the breaker around a conversation, and what its errors become."""

    breaker: CircuitBreaker

    def settle(self, permit: Permit, replies: list[Any]) -> list[Any]:
        """Report the outcome of a conversation; errors among the replies are raised or, if ours to heal, handed on."""
        for index, reply in enumerate(replies):
            if isinstance(reply, redis_exc.RedisError):
                error, counted = redis_failure(reply)
                if isinstance(error, CorruptDataError):
                    replies[index] = error
                    continue
                self.fail(permit, reply, counted=counted)
                raise error from reply
        self.breaker.success(permit)
        return replies

    def fail(self, permit: Permit, exc: BaseException, *, counted: bool) -> None:
        """Report a failure, or give the permit back where it says nothing about the server."""
        if counted:
            self.breaker.failure(permit, exc)
        else:
            self.breaker.cancel(permit)

    def translate(self, permit: Permit, exc: redis_exc.RedisError) -> MemoryServiceError:
        """Report a failed conversation and return our error for it."""
        error, counted = redis_failure(exc)
        self.fail(permit, exc, counted=counted)
        return error


class RedisTransport(_Guard):
    """Blocking round trips; safe to share between threads, opened by the first call."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        retry = Retry(NoBackoff(), 0)
        self._factory = _connection_factory(
            redis.ConnectionPool, url, timeout=timeout, read_timeout=timeout, retry=retry
        )
        self.breaker = breaker
        self._timeout = timeout
        self._pool_size = pool_size
        self._forget()
        _transports.add(self)

    def _forget(self) -> None:
        # As many places as connections may be open; a place holds an idle connection, or nothing yet. Taking one and
        # putting it back are single operations of a deque, so the usual case needs no lock.
        self._places: deque[_Place] = deque([None] * self._pool_size)
        self._place_came_back = threading.Condition()
        self._waiting = 0

    def call(self, effect: RedisCall) -> list[Any]:
        """Send the commands and return their replies; every error is one of ours."""
        permit = self.breaker.acquire()
        try:
            place = self._take_place()
            try:
                replies, place = self._converse(effect, place)
            except BaseException:
                place = None
                raise
            finally:
                self._put_back(place)
        except redis_exc.RedisError as exc:
            raise self.translate(permit, exc) from exc
        except BaseException:
            self.breaker.cancel(permit)
            raise
        return self.settle(permit, replies)

    def scan(self, pattern: str) -> list[bytes]:
        """Return the keys that match a glob; one call per thousand keys of the server."""
        found: list[bytes] = []
        cursor = 0
        while True:
            (reply,) = self.call(_scan_step(cursor, pattern))
            cursor = int(reply[0])
            found += reply[1]
            if cursor == 0:
                return found

    def _take_place(self) -> _Place:
        try:
            return self._places.pop()
        except IndexError:
            pass
        with self._place_came_back:
            self._waiting += 1
            try:
                deadline = time.monotonic() + self._timeout
                while True:
                    with suppress(IndexError):
                        return self._places.pop()
                    if not self._place_came_back.wait(deadline - time.monotonic()):
                        raise PoolExhaustedError("no free Redis connection")
            finally:
                self._waiting -= 1

    def _put_back(self, place: _Place) -> None:
        # Idle connections lie on the right, where they are taken first; places without one on the left.
        (self._places.appendleft if place is None else self._places.append)(place)
        if self._waiting:
            with self._place_came_back:
                self._place_came_back.notify()

    def _converse(self, effect: RedisCall, place: _Place) -> tuple[list[Any], _Place]:
        connection = self._connection_of(place)
        try:
            return self._exchange(connection or self._factory.make_connection(), effect.commands)
        except redis_exc.ConnectionError:
            # The server may have restarted while the connection lay idle: then all the others are dead too.
            if connection is None or effect.again is None:
                raise
            self.close()
            return self._exchange(self._factory.make_connection(), effect.again())

    @staticmethod
    def _exchange(connection: Any, commands: tuple[Command, ...]) -> tuple[list[Any], _Place]:
        try:
            replies = _send(connection, [_words(command) for command in commands])
            unknown = _first_unknown_script(replies)
            if unknown is not None:
                words = [_words(command, by_source=True) for command in commands[unknown:]]
                replies[unknown:] = _send(connection, words)
        except BaseException:
            connection.disconnect()
            raise
        return replies, (connection, time.monotonic())

    @staticmethod
    def _connection_of(place: _Place) -> Any:
        """Return the idle connection of a place, if it is still good."""
        if place is None:
            return None
        connection, last_used = place
        if time.monotonic() - last_used < IDLE_CHECK_SECONDS:
            return connection
        try:
            is_quiet = not connection.can_read(0)
        except redis_exc.ConnectionError:
            is_quiet = False
        if is_quiet:
            return connection
        connection.disconnect()
        return None

    def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        for _ in range(self._pool_size):
            try:
                place = self._places.pop()
            except IndexError:
                return
            if place is not None:
                place[0].disconnect()
            self._places.appendleft(None)


def _send(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    connection.send_packed_command(_packed(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except redis_exc.ResponseError as exc:
            replies.append(exc)
    return replies


class AsyncRedisTransport(_Guard):
    """Round trips on an event loop; belongs to the loop that uses it, opened by the first call."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        retry = AsyncRetry(NoBackoff(), 0)
        # One deadline around the conversation instead of one in each step: those cost a task and a timer every time.
        self._factory = _connection_factory(
            redis.asyncio.ConnectionPool, url, timeout=timeout, read_timeout=None, retry=retry
        )
        self.breaker = breaker
        self._timeout = timeout
        self._slots = asyncio.Semaphore(pool_size)
        self._free: deque[tuple[Any, float]] = deque()

    async def call(self, effect: RedisCall) -> list[Any]:
        """Send the commands and return their replies; every error is one of ours."""
        permit = self.breaker.acquire()
        try:
            await self._take_slot()
            try:
                replies = await self._converse(effect)
            finally:
                self._slots.release()
        except redis_exc.RedisError as exc:
            raise self.translate(permit, exc) from exc
        except BaseException:
            self.breaker.cancel(permit)
            raise
        return self.settle(permit, replies)

    async def scan(self, pattern: str) -> list[bytes]:
        """Return the keys that match a glob; one call per thousand keys of the server."""
        found: list[bytes] = []
        cursor = 0
        while True:
            (reply,) = await self.call(_scan_step(cursor, pattern))
            cursor = int(reply[0])
            found += reply[1]
            if cursor == 0:
                return found

    async def _take_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # does not wait
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise PoolExhaustedError("no free Redis connection") from exc

    async def _converse(self, effect: RedisCall) -> list[Any]:
        connection, is_reused = await self._take()
        try:
            return await self._exchange(connection, effect.commands)
        except redis_exc.ConnectionError:
            if not is_reused or effect.again is None:
                raise
            await self.close()
            connection = self._factory.make_connection()
            return await self._exchange(connection, effect.again())

    async def _exchange(self, connection: Any, commands: tuple[Command, ...]) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeout):
                replies = await self._send(connection, [_words(command) for command in commands])
                unknown = _first_unknown_script(replies)
                if unknown is not None:
                    words = [_words(command, by_source=True) for command in commands[unknown:]]
                    replies[unknown:] = await self._send(connection, words)
        except BaseException as exc:
            await connection.disconnect(nowait=True)
            if isinstance(exc, TimeoutError):
                raise redis_exc.TimeoutError("no answer within the deadline") from exc
            raise
        self._free.append((connection, time.monotonic()))
        return replies

    @staticmethod
    async def _send(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        await connection.send_packed_command(_packed(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except redis_exc.ResponseError as exc:
                replies.append(exc)
        return replies

    async def _take(self) -> tuple[Any, bool]:
        while self._free:
            connection, last_used = self._free.pop()
            if time.monotonic() - last_used < IDLE_CHECK_SECONDS:
                return connection, True
            try:
                # redis-py 7 has only the older of the two names, redis-py 8 warns of it.
                is_dirty = getattr(connection, "can_read", None) or connection.can_read_destructive
                is_quiet = not await is_dirty()
            except redis_exc.ConnectionError:
                is_quiet = False
            if is_quiet:
                return connection, True
            await connection.disconnect(nowait=True)
        return self._factory.make_connection(), False

    async def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        while self._free:
            connection, _ = self._free.pop()
            await connection.disconnect(nowait=True)


_transports: weakref.WeakSet[RedisTransport] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on talking on these sockets: a child only drops its references.
    for transport in list(_transports):
        transport._forget()  # same module


os.register_at_fork(after_in_child=_after_fork)
