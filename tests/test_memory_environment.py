"""Which manager the environment asks for."""

from __future__ import annotations

from typing import Any

import pytest

from contract_engine.memory import ConfigurationError
from contract_engine.working_memory import (
    AsyncInMemoryManager,
    AsyncRedisWorkingMemoryManager,
    AsyncSQLMemoryManager,
    InMemoryManager,
    RedisWorkingMemoryManager,
    SQLMemoryManager,
    create_async_memory_manager,
    create_memory_manager,
)

URLS = {"REDIS_URL": "redis://r:1/2", "DATABASE_URL": "postgresql://p:1/x"}
DATABASE = {"DATABASE_URL": "sqlite:///x.db"}


@pytest.mark.parametrize(
    ("environ", "kinds"),
    [
        ({}, (InMemoryManager, AsyncInMemoryManager)),
        ({"ENVIRONMENT": "development"} | URLS, (InMemoryManager, AsyncInMemoryManager)),
        ({"ENVIRONMENT": "production"}, (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager)),
        ({"ENVIRONMENT": "production"} | URLS, (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager)),
        ({"ENVIRONMENT": "production"} | DATABASE, (SQLMemoryManager, AsyncSQLMemoryManager)),
        (URLS, (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager)),
        (DATABASE, (SQLMemoryManager, AsyncSQLMemoryManager)),
        (URLS | {"MEMORY_BACKEND": "sql"}, (SQLMemoryManager, AsyncSQLMemoryManager)),
        (URLS | {"MEMORY_BACKEND": "memory"}, (InMemoryManager, AsyncInMemoryManager)),
        (DATABASE | {"MEMORY_BACKEND": "redis"}, (RedisWorkingMemoryManager, AsyncRedisWorkingMemoryManager)),
    ],
)
def test_the_environment_chooses_the_manager(environ: dict[str, str], kinds: tuple[Any, Any]) -> None:
    assert type(create_memory_manager(environ)) is kinds[0]
    assert type(create_async_memory_manager(environ)) is kinds[1]


def test_settings_come_from_the_environment_and_from_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_memory_manager({}).ttl == 43_200
    assert create_memory_manager({"MEMORY_TTL": "60"}).ttl == 60
    assert create_memory_manager({"MEMORY_TTL": "none"}).ttl is None
    assert create_memory_manager({"MEMORY_TTL": "60"}, ttl=5, prefix="p").ttl == 5
    monkeypatch.setenv("MEMORY_BACKEND", "memory")
    monkeypatch.setenv("MEMORY_TTL", "7")
    assert create_memory_manager().ttl == create_async_memory_manager().ttl == 7


@pytest.mark.parametrize(
    "environ",
    [{"MEMORY_BACKEND": "mongo"}, {"MEMORY_BACKEND": "sql"}, {"MEMORY_TTL": "soon"}, {"MEMORY_TTL": "-1"}],
)
def test_what_makes_no_sense_is_refused(environ: dict[str, str]) -> None:
    for create in (create_memory_manager, create_async_memory_manager):
        with pytest.raises(ConfigurationError):
            create(environ)


def test_zero_seconds_are_refused() -> None:
    with pytest.raises(ValueError, match="ttl"):
        create_memory_manager({"MEMORY_TTL": "0"})
