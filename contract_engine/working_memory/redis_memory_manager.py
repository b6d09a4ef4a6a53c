"""Working memory in Redis: shared by all processes, and kept when they end."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine.memory.errors import ConfigurationError
from contract_engine.working_memory.intake import MAX_BYTES
from contract_engine.working_memory.manager import (
    DEFAULT_PREFIX,
    DEFAULT_TTL_SECONDS,
    AsyncWorkingMemoryManager,
    Shell,
    WorkingMemoryManager,
)
from contract_engine.working_memory.redis_pool import AsyncQueueingConnectionPool, QueueingConnectionPool
from contract_engine.working_memory.redis_store import AsyncRedisStore, RedisStore
from contract_engine.working_memory.settings import check_count, check_timeout

DEFAULT_URL = "redis://localhost:6379/1"
TIMEOUT_SECONDS = 0.5
POOL_SIZE = 20


OBJECTS = ("retry", "retry_on_error", "credential_provider")
"""Options of redis-py that are no texts, though it takes them from a URL."""


def default_url() -> str:
    """Return ``REDIS_URL``, else database 1 of this machine."""
    return os.environ.get("REDIS_URL") or DEFAULT_URL


def _options(url: str, timeout_seconds: object, pool_size: object, retry: object) -> dict[str, Any]:
    seconds = check_timeout("timeout_seconds", timeout_seconds)
    options: dict[str, Any] = {
        "max_connections": check_count("pool_size", pool_size, least=1, most=10_000),
        "socket_timeout": seconds,
        "protocol": 2,
        "decode_responses": False,
        "retry": retry,
    }
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": seconds, "socket_keepalive": True}
    return options


def _client(module: Any, pool: Any, url: object, *, timeout_seconds: float, pool_size: int, retry: object) -> Any:
    """Return a client that opens nothing until it is used, and lets a caller wait for a free connection."""
    if not isinstance(url, str):
        raise ConfigurationError("storage_url", f"expected a URL, got {type(url).__name__}")
    options = _options(url, timeout_seconds, pool_size, retry)
    try:
        client = module.from_url(url, **options)
        if isinstance(client, module.Redis):
            client.connection_pool.make_connection()  # opens nothing, and finds options that redis-py does not know
    except (ValueError, TypeError, AttributeError):  # neither their words nor their trace may carry a password on
        problem = "not a redis://, rediss:// or unix:// URL with options that redis-py knows"
        raise ConfigurationError("storage_url", problem) from None
    if isinstance(client, module.Redis):
        taken = [name for name in OBJECTS if client.connection_pool.connection_kwargs.get(name) != options.get(name)]
        if taken:
            raise ConfigurationError("storage_url", f"{taken[0]} cannot be told in a URL")
        found = client.connection_pool  # what redis-py makes of a URL raises at once when all connections are in use
        client.connection_pool = pool(
            max_connections=found.max_connections,
            timeout=timeout_seconds,
            connection_class=found.connection_class,
            **found.connection_kwargs,
        )
    return client


def _check_is_one_server(client: object) -> None:
    if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
        problem = (
            "a client of a Cluster, where a batch, a scan and a count would see a part only; give one of one server"
        )
        raise ConfigurationError("redis_client", problem)


class _Redis(Shell):
    """What both colours have. A subclass may set these by itself, and leave this constructor out."""

    redis_client: Any
    _owns_client = False

    def __init__(
        self,
        storage_url: str | None = None,
        ttl: float | None = DEFAULT_TTL_SECONDS,
        *,
        prefix: str = DEFAULT_PREFIX,
        max_bytes: int = MAX_BYTES,
        timeout_seconds: float = TIMEOUT_SECONDS,
        pool_size: int = POOL_SIZE,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._set(ttl=ttl, prefix=prefix, max_bytes=max_bytes, wall_clock=wall_clock)
        url = default_url() if storage_url is None else storage_url
        self.redis_client = self._connect(url, timeout_seconds=timeout_seconds, pool_size=pool_size)
        self._owns_client = True

    @abstractmethod
    def _connect(self, url: str, *, timeout_seconds: float, pool_size: int) -> Any:
        """Return a client of this colour; it opens no connection."""


class RedisWorkingMemoryManager(_Redis, WorkingMemoryManager):
    """Working memory in Redis.

    ``storage_url``: else ``REDIS_URL``, else database 1 of this machine. ``ttl``: the seconds a record lives after it
    was last written, None for ever. A call waits ``timeout_seconds`` for an answer, and for one of ``pool_size``
    connections. A connection that turns out to be dead is opened again once.

    When Redis is away a call raises :class:`RedisUnavailableError`, which is a ``redis.ConnectionError`` too; the next
    one tries anew. A write whose answer did not come may have taken effect. Safe to share between threads.

    A subclass may set ``redis_client``, ``prefix`` and ``ttl`` itself instead of calling this constructor. A client of
    a Redis Cluster is a :class:`ConfigurationError` at the first use: records of one batch lie on several of its nodes.
    """

    @cached_property
    def store_of_records(self) -> RedisStore:
        """Where the records are."""
        _check_is_one_server(self.redis_client)
        return RedisStore(self)

    def close(self) -> None:
        """Close the connections; a client that was handed in is left alone."""
        if self._owns_client:
            self.redis_client.close()

    def _connect(self, url: str, *, timeout_seconds: float, pool_size: int) -> Any:
        # Once, and not when an answer is late: the command may be at work.
        retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        pool = QueueingConnectionPool
        return _client(redis, pool, url, timeout_seconds=timeout_seconds, pool_size=pool_size, retry=retry)


class AsyncRedisWorkingMemoryManager(_Redis, AsyncWorkingMemoryManager):
    """:class:`RedisWorkingMemoryManager` for an event loop, to which its connections belong."""

    @cached_property
    def store_of_records(self) -> AsyncRedisStore:
        """Where the records are."""
        _check_is_one_server(self.redis_client)
        return AsyncRedisStore(self)

    async def aclose(self) -> None:
        """:meth:`RedisWorkingMemoryManager.close`."""
        if self._owns_client:
            await self.redis_client.aclose()

    def _connect(self, url: str, *, timeout_seconds: float, pool_size: int) -> Any:
        retry = AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        pool = AsyncQueueingConnectionPool
        return _client(redis.asyncio, pool, url, timeout_seconds=timeout_seconds, pool_size=pool_size, retry=retry)


RedisMemoryManager = RedisWorkingMemoryManager
AsyncRedisMemoryManager = AsyncRedisWorkingMemoryManager
