"""A store in Redis, and the only place here that knows what its errors mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from redis import exceptions as redis_exc

from contract_engine.memory._runtime.failures import redis_failure
from contract_engine.memory.errors import (
    ConfigurationError,
    CorruptDataError,
    MemoryServiceError,
    PoolExhaustedError,
    RedisUnavailableError,
)
from contract_engine.working_memory.patterns import matcher, widened
from contract_engine.working_memory.records import Ttl
from contract_engine.working_memory.redis_pool import NO_CONNECTION
from contract_engine.working_memory.stores import SCAN_BATCH, Batch, Entry, HasTtl, TimeToLive, seconds_to_live

BATCH_ENTRIES = 10_000
"""How many records one transaction puts: a few milliseconds in which Redis does nothing else."""


class RedisAwayError(RedisUnavailableError, redis_exc.ConnectionError):
    """Redis did not answer, or answered that it cannot serve; programs that catch redis-py's error catch this one."""

    __repr__ = MemoryServiceError.__repr__  # that of redis-py needs what only its own constructor sets


class HasRedis(HasTtl, Protocol):
    """Who has the client: a manager, of which a subclass may have set it as it likes."""

    redis_client: Any


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script."""

    source: str
    sha: str


def _load(name: str) -> Script:
    source = (resources.files("contract_engine.working_memory") / "lua" / f"{name}.lua").read_text("utf-8")
    # SHA-1 is not a choice made here: it is how Redis names a script.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


EXCHANGE = _load("exchange")
EXPIRE = _load("expire")


class RedisStore:
    """A store in Redis through ``owner.redis_client``; one command or script for each operation."""

    def __init__(self, owner: HasRedis) -> None:
        self._owner = owner

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Answer what is kept under the names: GET of one, for many MGET and how many of these keys there are."""
        if len(names) == 1:
            return [_body(self._do("get", names[0]))]
        return bodies(*self._transact(get_commands(names)))

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep all of them: SETEX of one, a transaction for many."""
        if len(entries) == 1:
            self._do(*put_command(entries[0], self._owner))
            return
        for commands in put_commands(entries, self._owner):
            self._transact(commands)

    def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """Put ``new`` in place of ``old`` if that is what is there."""
        return bool(self._run(EXCHANGE, exchange_words(name, old, new, _kept_milliseconds(ttl_seconds, self._owner))))

    def remove(self, names: Sequence[str]) -> int:
        """Remove what is kept under the names."""
        return int(self._do("delete", *names))

    def scan(self, pattern: str, cursor: int | None) -> Batch:
        """Answer some of the names."""
        return scanned(self._do("scan", cursor or 0, widened(pattern), SCAN_BATCH), pattern)

    def facts(self) -> dict[str, Any]:
        """Answer what Redis says of its memory, and how many keys it has."""
        return stated(self._do("info", "memory"), self._do("dbsize"))

    def _do(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._owner.redis_client, method)(*arguments)
        except FAILURES as exc:
            raise failure(exc) from exc

    def _transact(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._owner.redis_client.pipeline(transaction=True)
        for words in commands:
            pipeline.execute_command(*words)
        try:
            answers: list[Any] = pipeline.execute()
        except FAILURES as exc:
            raise failure(exc) from exc
        return answers

    def _run(self, script: Script, words: tuple[Any, ...]) -> Any:
        client = self._owner.redis_client
        try:
            try:
                return client.evalsha(script.sha, *words)
            except redis_exc.NoScriptError:
                return client.eval(script.source, *words)
        except FAILURES as exc:
            raise failure(exc) from exc


class AsyncRedisStore:
    """:class:`RedisStore` on an event loop."""

    def __init__(self, owner: HasRedis) -> None:
        self._owner = owner

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """:meth:`RedisStore.get`."""
        if len(names) == 1:
            return [_body(await self._do("get", names[0]))]
        return bodies(*await self._transact(get_commands(names)))

    async def put(self, entries: Sequence[Entry]) -> None:
        """:meth:`RedisStore.put`."""
        if len(entries) == 1:
            await self._do(*put_command(entries[0], self._owner))
            return
        for commands in put_commands(entries, self._owner):
            await self._transact(commands)

    async def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """:meth:`RedisStore.exchange`."""
        ttl_ms = _kept_milliseconds(ttl_seconds, self._owner)
        return bool(await self._run(EXCHANGE, exchange_words(name, old, new, ttl_ms)))

    async def remove(self, names: Sequence[str]) -> int:
        """:meth:`RedisStore.remove`."""
        return int(await self._do("delete", *names))

    async def scan(self, pattern: str, cursor: int | None) -> Batch:
        """:meth:`RedisStore.scan`."""
        return scanned(await self._do("scan", cursor or 0, widened(pattern), SCAN_BATCH), pattern)

    async def facts(self) -> dict[str, Any]:
        """:meth:`RedisStore.facts`."""
        return stated(await self._do("info", "memory"), await self._do("dbsize"))

    async def _do(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._owner.redis_client, method)(*arguments)
        except FAILURES as exc:
            raise failure(exc) from exc

    async def _transact(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._owner.redis_client.pipeline(transaction=True)
        for words in commands:
            pipeline.execute_command(*words)
        try:
            answers: list[Any] = await pipeline.execute()
        except FAILURES as exc:
            raise failure(exc) from exc
        return answers

    async def _run(self, script: Script, words: tuple[Any, ...]) -> Any:
        client = self._owner.redis_client
        try:
            try:
                return await client.evalsha(script.sha, *words)
            except redis_exc.NoScriptError:
                return await client.eval(script.source, *words)
        except FAILURES as exc:
            raise failure(exc) from exc


FAILURES = (redis_exc.RedisError, UnicodeDecodeError)
"""What a client raises; the second one where it makes texts of what it reads."""


def failure(exc: redis_exc.RedisError | UnicodeDecodeError) -> MemoryServiceError:
    """Return our error for one of redis-py."""
    if isinstance(exc, UnicodeDecodeError):
        problem = "decodes what it reads, and records that wrappers have marked are bytes; give decode_responses=False"
        return ConfigurationError("redis_client", problem)
    if isinstance(exc, redis_exc.ConnectionError) and str(exc) == NO_CONNECTION:
        return PoolExhaustedError("no free Redis connection")
    error, _ = redis_failure(exc)
    return RedisAwayError(error.reason) if isinstance(error, RedisUnavailableError) else error


def milliseconds(ttl: TimeToLive, owner: HasTtl) -> int:
    """Return a time to live as scripts take it, 0 for ever."""
    seconds = seconds_to_live(ttl, owner)
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _kept_milliseconds(ttl: TimeToLive, owner: HasTtl) -> int:
    """:func:`milliseconds`, and -1 for what is left of the time a record has."""
    return -1 if ttl is Ttl.AS_BEFORE else milliseconds(ttl, owner)


def put_command(entry: Entry, owner: HasRedis) -> tuple[Any, ...]:
    """Return the method of a client, and its arguments, that keeps one entry."""
    name, body, ttl = entry
    seconds = seconds_to_live(ttl, owner)
    if seconds is None:
        return "set", name, body
    if not isinstance(seconds, int):
        return "set", name, body, None, milliseconds(ttl, owner)
    # redis-py 8 warns of its method for SETEX, and so takes long. What stands in for a client in a test has no class
    # that can execute commands, and is asked by the name of the command.
    if hasattr(type(owner.redis_client), "execute_command"):
        return "execute_command", "SETEX", name, seconds, body
    return "setex", name, seconds, body


def put_commands(entries: Sequence[Entry], owner: HasTtl) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the commands of each transaction that keeps many entries.

    MSET and a script that says how long they live: a script that also took the bodies would cost Redis twice as much,
    since Lua makes strings of its own of them. The script is sent as it is: one that Redis does not know would fail
    within the transaction, and leave what is to expire there for ever.
    """
    for start in range(0, len(entries), BATCH_ENTRIES):
        latest = {entry[0]: entry for entry in entries[start : start + BATCH_ENTRIES]}
        words = [word for name, body, _ in latest.values() for word in (name, body)]
        commands: list[tuple[Any, ...]] = [("MSET", *words)]
        given = [entry[2] for entry in latest.values()]
        ttls = [milliseconds(ttl, owner) for ttl in (given[:1] if given.count(given[0]) == len(given) else given)]
        if any(ttls):
            commands.append(("EVAL", EXPIRE.source, len(latest), *latest, *ttls))
        yield commands


def exchange_words(name: str, old: bytes | None, new: bytes | None, ttl_ms: int) -> tuple[Any, ...]:
    """Return the arguments of the script that exchanges one record for another; none of them is ever empty."""
    return 1, name, old or b"", new or b"", ttl_ms


def get_commands(names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the commands that read many entries, in one transaction."""
    return [("MGET", *names), ("EXISTS", *names)]


def bodies(found: Sequence[bytes | str | None], count: int) -> list[bytes | None]:
    """Return what is kept under many names: to MGET a key of another type is one that is not there."""
    if sum(body is not None for body in found) != count:
        raise CorruptDataError("a key of ours holds another type")
    return [_body(body) for body in found]


def scanned(answer: tuple[int, list[bytes | str]], pattern: str) -> Batch:
    """Return a step of a scan for a :func:`widened` pattern; a name that is no text is none of ours."""
    cursor, found = answer
    matches = matcher(pattern)
    names = []
    for name in found:
        try:
            names.append(name if isinstance(name, str) else name.decode())
        except UnicodeDecodeError:
            continue
    return Batch([name for name in names if matches(name)], cursor or None)


def stated(memory: dict[str, Any], keys: int) -> dict[str, Any]:
    """Return what a manager says of Redis as a whole, other programs' keys included."""
    wanted = ("used_memory", "used_memory_human", "used_memory_peak", "used_memory_peak_human")
    return {name: memory.get(name) for name in wanted} | {"total_keys": keys}


def _body(found: bytes | str | None) -> bytes | None:
    """Return a body, also where a client of somebody else's decodes what it reads."""
    return found.encode() if isinstance(found, str) else found
