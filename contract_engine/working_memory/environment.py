"""The manager that the environment asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from contract_engine.memory.errors import ConfigurationError
from contract_engine.working_memory.in_memory_manager import AsyncInMemoryManager, InMemoryManager
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.redis_memory_manager import (
    DEFAULT_URL,
    AsyncRedisWorkingMemoryManager,
    RedisWorkingMemoryManager,
)
from contract_engine.working_memory.sql_memory_manager import AsyncSQLMemoryManager, SQLMemoryManager

MEMORY, REDIS, SQL = "memory", "redis", "sql"


_KINDS: dict[str, tuple[Callable[..., WorkingMemoryManager], Callable[..., AsyncWorkingMemoryManager]]] = {
    MEMORY: (InMemoryManager, AsyncInMemoryManager),
    REDIS: (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager),
    SQL: (SQLMemoryManager, AsyncSQLMemoryManager),
}


def create_memory_manager(environ: Mapping[str, str] | None = None, **settings: Any) -> WorkingMemoryManager:
    """Return the manager that the environment asks for; ``settings`` are those of its constructor.

    ``MEMORY_BACKEND`` says ``memory``, ``redis`` or ``sql``. Without it: in memory where ``ENVIRONMENT`` is
    ``development`` or there is neither ``ENVIRONMENT`` nor an address; else Redis where there is a ``REDIS_URL`` or no
    ``DATABASE_URL``; else the database. ``MEMORY_TTL``: the seconds a record lives, ``none`` for ever.
    """
    backend, address, given = _asked_for(environ)
    return _KINDS[backend][0](*address, **given | settings)


def create_async_memory_manager(environ: Mapping[str, str] | None = None, **settings: Any) -> AsyncWorkingMemoryManager:
    """:func:`create_memory_manager` for an event loop."""
    backend, address, given = _asked_for(environ)
    return _KINDS[backend][1](*address, **given | settings)


def _asked_for(environ: Mapping[str, str] | None) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Return the backend, its address if it has one, and the settings that the environment has."""
    env = os.environ if environ is None else environ
    backend = _backend(env)
    if backend == MEMORY:
        return backend, (), _ttl(env)
    return backend, (env.get("REDIS_URL") or DEFAULT_URL if backend == REDIS else _database_url(env),), _ttl(env)


def _backend(env: Mapping[str, str]) -> str:
    if wanted := env.get("MEMORY_BACKEND"):
        if wanted not in _KINDS:
            raise ConfigurationError("MEMORY_BACKEND", f"expected {MEMORY}, {REDIS} or {SQL}, got {wanted!r}")
        return wanted
    environment = env.get("ENVIRONMENT")
    redis_url, database_url = env.get("REDIS_URL"), env.get("DATABASE_URL")
    if environment == "development" or not (environment or redis_url or database_url):
        return MEMORY
    return REDIS if redis_url or not database_url else SQL


def _ttl(env: Mapping[str, str]) -> dict[str, Any]:
    raw = env.get("MEMORY_TTL")
    if not raw:
        return {}
    if raw.lower() == "none":
        return {"ttl": None}
    if not raw.isascii() or not raw.isdigit():
        raise ConfigurationError("MEMORY_TTL", f"expected a whole number of seconds or none, got {raw!r}")
    return {"ttl": int(raw)}


def _database_url(env: Mapping[str, str]) -> str:
    url = env.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("DATABASE_URL", "is needed where MEMORY_BACKEND is sql")
    return url
