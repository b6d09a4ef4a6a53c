"""Conversations kept as JSON in Redis for a day, by a manager that an unreachable Redis cannot break.

One Redis string per conversation, ``riker:memory:{conversation_id}``: UTF-8 JSON that any program can read. No call
raises because of Redis: it says False or None, logs why, and the next call tries again.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple, Self

import redis
from redis import exceptions as redis_exc
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory.errors import (
    ConfigurationError,
    CorruptDataError,
    InvalidInputError,
    MemoryServiceError,
    StoreMisconfiguredError,
)
from contract_engine.memory.serializer import encode_value

logger = logging.getLogger(__name__)

KEY_PREFIX = "riker:memory:"
DAY_SECONDS = 24 * 60 * 60
MAX_ID_BYTES = 1024
MAX_HOURS = 10 * 365 * 24
"""Ten years; Redis itself refuses times that overflow its clock."""

FIRST_PAUSE_SECONDS = 0.01
_EXTEND = resources.files(__package__).joinpath("extend.lua").read_text("utf-8")


class _Reply(NamedTuple):
    """What Redis answered; ``failure`` is None where it did. ``attempts``: how often it was asked."""

    value: Any
    failure: MemoryServiceError | None
    attempts: int


class MemoryManager:
    """Keep what conversations need in Redis; any number of threads may share one, and a forked child may go on with it.

    Making one opens no connection. While Redis is away every call costs at most a few times ``timeout_seconds`` (one
    for connecting, one for the answer, a refused connection is tried ``attempts`` times within it) and says False or
    None; nothing is remembered of it, so a Redis that is back is used by the next call. Why a call failed is logged,
    without credentials and without what was stored. Wrong arguments are never put down to Redis: they raise
    :class:`~contract_engine.memory.errors.InvalidInputError`, which names the field, before anything is written.
    """

    def __init__(
        self,
        redis_url: str = "redis://localhost:6379",
        *,
        ttl_seconds: int = DAY_SECONDS,
        timeout_seconds: float = 0.5,
        attempts: int = 3,
        max_connections: int = 20,
        max_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        """``max_bytes``: of one conversation's JSON. Options in the query of the URL go before these."""
        self._ttl_seconds = _whole("ttl_seconds", ttl_seconds, most=MAX_HOURS * 3600)
        self._attempts = _whole("attempts", attempts, most=10)
        self._max_bytes = _whole("max_bytes", max_bytes, most=512 * 1024 * 1024)
        if type(timeout_seconds) not in (int, float) or not 0 < timeout_seconds <= 60:
            raise ConfigurationError(
                "timeout_seconds", f"expected seconds above 0, at most 60, got {timeout_seconds!r}"
            )
        self._timeout_seconds = timeout_seconds
        self._redis = redis.Redis(
            connection_pool=_pool(redis_url, timeout_seconds, _whole("max_connections", max_connections, most=10_000))
        )
        self._lock = threading.Lock()
        self._corrupt_records = 0

    @property
    def corrupt_records(self) -> int:
        """How often something else than a stored conversation was found under a key and treated as absent."""
        return self._corrupt_records

    def store_memory(self, conversation_id: str, memory_data: dict[str, Any]) -> bool:
        """Keep a conversation for 24 hours (``ttl_seconds``) in place of what was there; True once Redis has it.

        ``memory_data`` must come back equal from JSON: no NaN, bytes, sets, tuples or keys that are not text, nothing
        nested deeper than 200. False where Redis is away or full: what was there before may then still be there.
        """
        key = _key(conversation_id)
        body = _encoded(memory_data, self._max_bytes)
        reply = self._ask("store", conversation_id, lambda: self._redis.set(key, body, ex=self._ttl_seconds))
        return reply.failure is None

    def retrieve_memory(self, conversation_id: str) -> dict[str, Any] | None:
        """Return what was stored; None where there is nothing, where Redis is away, and where it is no JSON object."""
        key = _key(conversation_id)
        reply = self._ask("retrieve", conversation_id, lambda: self._redis.get(key))
        if isinstance(reply.failure, CorruptDataError):
            self._count_corrupt(conversation_id)
        if reply.value is None:
            return None
        try:
            found = json.loads(reply.value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        self._count_corrupt(conversation_id)
        return None

    def extend_memory_ttl(self, conversation_id: str, hours: int = 24) -> bool:
        """Have a conversation live for at least ``hours`` from now; True if it is there and does.

        Counted from now, so that a call that is repeated (once per turn, or because an answer was lost) does not add up
        to a conversation that never ends; and never shortened: one that lives longer already keeps its time. Redis does
        it in one script, so it cannot end in between. False where there is no conversation and where Redis is away.
        """
        key = _key(conversation_id)
        milliseconds = _whole("hours", hours, most=MAX_HOURS, error=InvalidInputError) * 3_600_000
        reply = self._ask("extend", conversation_id, lambda: self._redis.eval(_EXTEND, 1, key, milliseconds))
        return bool(reply.value == 1)

    def clear_memory(self, conversation_id: str) -> bool:
        """Delete a conversation; True if it was there and is gone, False where there is none or Redis is away."""
        key = _key(conversation_id)
        reply = self._ask("clear", conversation_id, lambda: self._redis.delete(key))
        # Sent again because the answer was lost: then nothing is left to delete, and the first one may have done it.
        return reply.failure is None and (reply.value == 1 or reply.attempts > 1)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._redis.connection_pool.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, operation: str, conversation_id: str, call: Callable[[], Any]) -> _Reply:
        """Send one command, again where the connection broke: each of the four may be repeated."""
        deadline = time.monotonic() + self._timeout_seconds
        for attempt in range(1, self._attempts + 1):
            try:
                value = call()
            except redis_exc.RedisError as exc:
                failure, is_outage = redis_failure(exc)
                # After a timeout nothing is left of the time; a server that refuses us does so again.
                is_worth_it = is_outage and isinstance(exc, redis_exc.ConnectionError)
            else:
                logger.debug("%s of conversation %r done", operation, conversation_id)
                return _Reply(value, None, attempt)
            pause = FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1)
            if not is_worth_it or attempt == self._attempts or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
        level = logging.ERROR if isinstance(failure, StoreMisconfiguredError) else logging.WARNING
        logger.log(level, "%s of conversation %r failed: %s", operation, conversation_id, failure)
        return _Reply(None, failure, attempt)

    def _count_corrupt(self, conversation_id: str) -> None:
        with self._lock:
            self._corrupt_records += 1
        logger.warning("conversation %r is not a JSON object in Redis; treated as absent", conversation_id)


def _pool(url: object, timeout_seconds: float, max_connections: int) -> redis.BlockingConnectionPool:
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
        # The driver's own default is ten attempts inside each of ours: four seconds on a dead port.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if not isinstance(url, str):
        raise ConfigurationError("redis_url", f"expected a text, got {type(url).__name__}")
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": timeout_seconds, "socket_keepalive": True}
    try:
        pool = redis.BlockingConnectionPool.from_url(url, **options)
        pool.make_connection()  # type: ignore[no-untyped-call]  # not opened: it shows whether redis-py takes the options of the URL
        pool.reset()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        # Not "from": what the driver says of a URL quotes parts of it, and that may be the password.
        problem = "not a redis://, rediss:// or unix:// URL with options that redis-py knows"
        raise ConfigurationError("redis_url", problem) from None
    return pool


def _key(conversation_id: object) -> bytes:
    if not isinstance(conversation_id, str):
        raise InvalidInputError("conversation_id", f"expected a text, got {type(conversation_id).__name__}")
    if not conversation_id.strip():
        raise InvalidInputError("conversation_id", "must not be empty")
    try:
        encoded = conversation_id.encode()
    except UnicodeEncodeError:
        raise InvalidInputError("conversation_id", "holds a lone surrogate") from None
    if len(encoded) > MAX_ID_BYTES:
        raise InvalidInputError("conversation_id", f"{len(encoded):,} bytes, at most {MAX_ID_BYTES:,}")
    return KEY_PREFIX.encode() + encoded


def _encoded(memory_data: object, max_bytes: int) -> bytes:
    """Return the JSON of a dict that comes back equal; :class:`InvalidInputError` for anything else."""
    if not isinstance(memory_data, dict):
        raise InvalidInputError("memory_data", f"expected a dict, got {type(memory_data).__name__}")
    encode_value(memory_data, field="memory_data", max_bytes=max_bytes)
    # Not in ASCII: two halves of a surrogate pair, escaped one after the other, would be read as one character.
    return json.dumps(memory_data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _whole(field: str, value: object, *, most: int, error: type[InvalidInputError] = ConfigurationError) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise error(field, f"expected a whole number from 1 to {most:,}, got {value!r}")
    return value
