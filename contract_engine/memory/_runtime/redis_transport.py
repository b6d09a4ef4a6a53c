"""Round trips to Redis, through the circuit breaker: to one server, or wherever a URL for several of them leads.

One server is the common case, and the one whose every microsecond counts: it is spoken to directly. Behind the URL of
a Cluster or of Sentinels, routing says where each step of a call goes, and the transport makes the attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from redis import exceptions as redis_exc

from contract_engine.memory._effects import RedisCall
from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory._runtime.redis_cluster import ClusterRouting
from contract_engine.memory._runtime.redis_connections import AsyncConnections, Connections, Place
from contract_engine.memory._runtime.redis_routing import Routing, scan_step
from contract_engine.memory._runtime.redis_sentinel import SentinelRouting
from contract_engine.memory._runtime.redis_steps import Address, Attempt, Steps, Wait
from contract_engine.memory._runtime.redis_topology import Deployment, deployment
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import CorruptDataError

T = TypeVar("T")


class RedisTransport:
    """Blocking round trips to what a URL names; safe to share between threads, opened by the first call.

    ``pool_size`` connections at most to each server. Of several servers each has a breaker behind ``breaker``.
    """

    call: Callable[[RedisCall], list[Any]]
    """Send the commands and return their replies; every error is one of ours."""

    scan: Callable[[str], list[bytes]]
    """Return the keys that match a glob, from every primary; one round trip per thousand keys of each."""

    close: Callable[[], None]
    """Close the idle connections; the next call opens new ones."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        target = deployment(url)
        made: _Direct | _Routed
        if target is None:
            made = _Direct(url, timeout=timeout, pool_size=pool_size, breaker=breaker)
        else:
            made = _Routed(target, timeout=timeout, pool_size=pool_size, breaker=breaker)
        # Not a method that passes calls on: on the way to one server that would be the most expensive line.
        self.call, self.scan, self.close = made.call, made.scan, made.close


class AsyncRedisTransport:
    """:class:`RedisTransport` on an event loop; belongs to the loop that uses it."""

    call: Callable[[RedisCall], Coroutine[Any, Any, list[Any]]]
    scan: Callable[[str], Coroutine[Any, Any, list[bytes]]]
    close: Callable[[], Coroutine[Any, Any, None]]

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        target = deployment(url)
        made: _AsyncDirect | _AsyncRouted
        if target is None:
            made = _AsyncDirect(url, timeout=timeout, pool_size=pool_size, breaker=breaker)
        else:
            made = _AsyncRouted(target, timeout=timeout, pool_size=pool_size, breaker=breaker)
        self.call, self.scan, self.close = made.call, made.scan, made.close


class _Protected:
    """One call within a ``with`` statement: the breaker lets it pass, and is told of its outcome.

    The driver's errors leave it as ours.
    """

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._permit = self._breaker.acquire()

    def __exit__(self, _type: object, exc: BaseException | None, _tb: object) -> None:
        if exc is None:
            self._breaker.success(self._permit)
        elif not isinstance(exc, redis_exc.RedisError):
            self._breaker.cancel(self._permit)
        else:
            error, counted = redis_failure(exc)
            if counted:
                self._breaker.failure(self._permit, exc)
            else:  # it says nothing about the server
                self._breaker.cancel(self._permit)
            raise error from exc


def _served(replies: list[Any]) -> list[Any]:
    """Raise the first error among the replies; those that are ours to heal are handed on."""
    for index, reply in enumerate(replies):
        if isinstance(reply, redis_exc.RedisError):
            error, _ = redis_failure(reply)
            if not isinstance(error, CorruptDataError):
                raise reply
            replies[index] = error
    return replies


class _Direct(Connections):
    """Blocking round trips to one server."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        super().__init__(url, timeout=timeout, pool_size=pool_size)
        self._breaker = breaker

    def call(self, effect: RedisCall) -> list[Any]:
        """Send the commands and return their replies; every error is one of ours."""
        with _Protected(self._breaker):
            kept = None
            place = self._take_place()
            try:
                replies, kept = self._converse(effect, place)
            finally:
                self._places.put_nowait(kept)
            return _served(replies)

    def scan(self, pattern: str) -> list[bytes]:
        """Return the keys that match a glob; one call per thousand keys of the server."""
        found: list[bytes] = []
        cursor = 0
        while True:
            (reply,) = self.call(scan_step(cursor, pattern))
            cursor = int(reply[0])
            found += reply[1]
            if cursor == 0:
                return found

    def _converse(self, effect: RedisCall, place: Place) -> tuple[list[Any], Place]:
        idle = self._idle(place)
        opened = idle or self._open()
        try:
            effect.run = opened.run
            return self._exchange(opened, effect.commands)
        except redis_exc.ConnectionError:
            # The server may have restarted while the connection lay idle: then all the others are dead too.
            if idle is None or effect.again is None:
                raise
            self.close()
            opened = self._open()
            effect.run = opened.run
            return self._exchange(opened, effect.again())


class _AsyncDirect(AsyncConnections):
    """Round trips to one server on an event loop."""

    def __init__(self, url: str, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        super().__init__(url, timeout=timeout, pool_size=pool_size)
        self._breaker = breaker

    async def call(self, effect: RedisCall) -> list[Any]:
        """Send the commands and return their replies; every error is one of ours."""
        with _Protected(self._breaker):
            await self._take_slot()
            try:
                replies = await self._converse(effect)
            finally:
                self._slots.release()
            return _served(replies)

    async def scan(self, pattern: str) -> list[bytes]:
        """Return the keys that match a glob; one call per thousand keys of the server."""
        found: list[bytes] = []
        cursor = 0
        while True:
            (reply,) = await self.call(scan_step(cursor, pattern))
            cursor = int(reply[0])
            found += reply[1]
            if cursor == 0:
                return found

    async def _converse(self, effect: RedisCall) -> list[Any]:
        idle = await self._idle()
        deadline = time.monotonic() + self._timeout
        opened = idle or await self._open(deadline)
        try:
            effect.run = opened.run
            return await self._exchange(opened, effect.commands, deadline)
        except redis_exc.ConnectionError:
            if idle is None or effect.again is None:
                raise
            await self.close()
            deadline = time.monotonic() + self._timeout
            opened = await self._open(deadline)
            effect.run = opened.run
            return await self._exchange(opened, effect.again(), deadline)


def _routing(target: Deployment, *, timeout: float, breaker: CircuitBreaker) -> Routing:
    kind = ClusterRouting if target.kind == "cluster" else SentinelRouting
    return kind(target, timeout=timeout, breaker=breaker)


class _Routed:
    """Blocking round trips to one of several servers, as routing says."""

    def __init__(self, target: Deployment, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        self._routing = _routing(target, timeout=timeout, breaker=breaker)
        self._target = target
        self._timeout = timeout
        self._pool_size = pool_size
        self._stacks: dict[Address, Connections] = {}
        self._connections(target.seeds[0])  # opens nothing, and says at once what is wrong with the URL

    def call(self, effect: RedisCall) -> list[Any]:
        return self._run(self._routing.call(effect))

    def scan(self, pattern: str) -> list[bytes]:
        return self._run(self._routing.scan(pattern))

    def close(self) -> None:
        for connections in list(self._stacks.values()):
            connections.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                answer: object = None
                if isinstance(step, Attempt):
                    answer = self._connections(step.address).attempt(step)
                elif isinstance(step, Wait):
                    time.sleep(step.seconds)
                elif retired := self._stacks.pop(step.address, None):
                    retired.close()
                step = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()  # gives back the permits of a call that was interrupted

    def _connections(self, address: Address) -> Connections:
        found = self._stacks.get(address)
        if found is None:
            made = Connections(
                self._target.url_of(address),
                timeout=self._timeout,
                pool_size=self._pool_size,
                must_be_primary=self._target.kind == "sentinel" and not address.is_sentinel,
            )
            found = self._stacks.setdefault(address, made)
        return found


class _AsyncRouted:
    """Round trips to one of several servers on an event loop, as routing says."""

    def __init__(self, target: Deployment, *, timeout: float, pool_size: int, breaker: CircuitBreaker) -> None:
        self._routing = _routing(target, timeout=timeout, breaker=breaker)
        self._target = target
        self._timeout = timeout
        self._pool_size = pool_size
        self._stacks: dict[Address, AsyncConnections] = {}
        self._connections(target.seeds[0])

    async def call(self, effect: RedisCall) -> list[Any]:
        return await self._run(self._routing.call(effect))

    async def scan(self, pattern: str) -> list[bytes]:
        return await self._run(self._routing.scan(pattern))

    async def close(self) -> None:
        for connections in list(self._stacks.values()):
            await connections.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                answer: object = None
                if isinstance(step, Attempt):
                    answer = await self._connections(step.address).attempt(step)
                elif isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                elif retired := self._stacks.pop(step.address, None):
                    await retired.retire()
                step = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def _connections(self, address: Address) -> AsyncConnections:
        found = self._stacks.get(address)
        if found is None:
            found = self._stacks[address] = AsyncConnections(
                self._target.url_of(address),
                timeout=self._timeout,
                pool_size=self._pool_size,
                must_be_primary=self._target.kind == "sentinel" and not address.is_sentinel,
            )
        return found
