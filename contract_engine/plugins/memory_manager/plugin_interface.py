"""Conversations kept as JSON in Redis for a day, by a manager that an unreachable Redis cannot break.

One Redis string per conversation, ``riker:memory:{conversation_id}``: UTF-8 JSON that any program can read. No call
raises because of Redis: it says False or None, logs why, and the next call tries again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from importlib import resources
from typing import Any, NamedTuple, Self

from redis import exceptions as redis_exc

from contract_engine.memory._effects import Command, RedisCall, Script
from contract_engine.memory._runtime.redis_transport import RedisTransport
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import (
    ConfigurationError,
    InvalidInputError,
    MemoryServiceError,
    RedisUnavailableError,
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
# Not in ASCII: two halves of a surrogate pair, escaped one after the other, would be read as one character. Made once,
# because json.dumps makes another one for each call.
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SOURCE = (resources.files(__package__) / "extend.lua").read_text("utf-8")
_EXTEND = Script("extend", _SOURCE, hashlib.sha1(_SOURCE.encode(), usedforsecurity=False).hexdigest())


class _Reply(NamedTuple):
    """What Redis answered; ``failure`` is None where it did. ``is_repeated``: it may have been asked before."""

    value: Any
    failure: MemoryServiceError | None
    is_repeated: bool


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
        """``redis_url``: as for the memory service, those of a Cluster and of Sentinels too.

        ``max_bytes``: of one conversation's JSON.
        """
        self._ttl_seconds = _whole("ttl_seconds", ttl_seconds, most=MAX_HOURS * 3600)
        self._attempts = _whole("attempts", attempts, most=10)
        self._max_bytes = _whole("max_bytes", max_bytes, most=512 * 1024 * 1024)
        if type(timeout_seconds) not in (int, float) or not 0 < timeout_seconds <= 60:
            raise ConfigurationError(
                "timeout_seconds", f"expected seconds above 0, at most 60, got {timeout_seconds!r}"
            )
        self._timeout_seconds = timeout_seconds
        pool_size = _whole("max_connections", max_connections, most=10_000)
        self._redis = _transport(redis_url, timeout_seconds, pool_size)
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
        reply = self._ask("store", conversation_id, Command(("SETEX", key, self._ttl_seconds, body)))
        return reply.failure is None

    def retrieve_memory(self, conversation_id: str) -> dict[str, Any] | None:
        """Return what was stored; None where there is nothing, where Redis is away, and where it is no JSON object."""
        key = _key(conversation_id)
        reply = self._ask("retrieve", conversation_id, Command(("GET", key)))
        if reply.value is None:
            return None
        try:
            # What is no bytes is the error about a key of another type.
            found = json.loads(reply.value) if isinstance(reply.value, bytes) else None
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
        reply = self._ask("extend", conversation_id, Command((1, key, milliseconds), _EXTEND))
        return bool(reply.value == 1)

    def clear_memory(self, conversation_id: str) -> bool:
        """Delete a conversation; True if it was there and is gone, False where there is none or Redis is away.

        Where the connection broke on the way nobody knows whether it was there: then True says that it is gone.
        """
        key = _key(conversation_id)
        reply = self._ask("clear", conversation_id, Command(("DEL", key)))
        # Sent again because the answer was lost: then the first one may have deleted it.
        return reply.failure is None and (reply.value == 1 or reply.is_repeated)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, operation: str, conversation_id: str, command: Command) -> _Reply:
        """Send one command, again where the connection broke: each of the four may be repeated."""
        is_repeated = False

        def again() -> tuple[Command, ...]:
            nonlocal is_repeated
            is_repeated = True
            return (command,)

        deadline = time.monotonic() + self._timeout_seconds
        for attempt in range(1, self._attempts + 1):
            try:
                (value,) = self._redis.call(RedisCall((command,), again))
            except MemoryServiceError as exc:
                failure = exc
                # After a timeout nothing is left of the time, and a server that refuses us does so again.
                is_worth_it = isinstance(exc.__cause__, redis_exc.ConnectionError) and isinstance(
                    exc, RedisUnavailableError
                )
            else:
                logger.debug("%s of conversation %r answered", operation, conversation_id)
                return _Reply(value, None, is_repeated)
            pause = FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1)
            if not is_worth_it or attempt == self._attempts or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            is_repeated = True
        level = logging.ERROR if isinstance(failure, StoreMisconfiguredError) else logging.WARNING
        logger.log(level, "%s of conversation %r failed: %s", operation, conversation_id, failure)
        return _Reply(None, failure, is_repeated)

    def _count_corrupt(self, conversation_id: str) -> None:
        with self._lock:
            self._corrupt_records += 1
        logger.warning("conversation %r is not a JSON object in Redis; treated as absent", conversation_id)


def _transport(url: object, timeout_seconds: float, max_connections: int) -> RedisTransport:
    if not isinstance(url, str):
        raise ConfigurationError("redis_url", f"expected a text, got {type(url).__name__}")
    breaker = CircuitBreaker(name="memory-plugin")
    breaker.disable()  # a Redis that is back is used by the very next call
    try:
        return RedisTransport(url, timeout=timeout_seconds, pool_size=max_connections, breaker=breaker)
    except ConfigurationError as exc:
        # Not "from": what the driver says of a URL quotes parts of it, and that may be the password.
        raise ConfigurationError(exc.field, exc.problem) from None


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
    return _encoder.encode(memory_data).encode("utf-8", "surrogatepass")


def _whole(field: str, value: object, *, most: int, error: type[InvalidInputError] = ConfigurationError) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise error(field, f"expected a whole number from 1 to {most:,}, got {value!r}")
    return value
