"""The fixtures of the contract tests: a module that names this one in ``pytest_plugins`` gets them.

Each test that asks for ``backend`` or ``manager`` runs once per combination of colour and mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend

from contract_engine.memory import MemoryManager


def _backend(request: pytest.FixtureRequest, redis_url: str, tenant: str, *, colour: str, mode: str) -> Backend:
    database_url = cast("str", request.getfixturevalue("database_url")) if mode == DURABLE else None
    return Backend(colour, mode, redis_url, database_url, tenant)


def _parameters(*modes: str) -> list[Any]:
    return [pytest.param((colour, mode), id=f"{colour}-{mode}") for mode in modes for colour in (SYNC, ASYNC)]


@pytest.fixture(params=_parameters(DURABLE, EPHEMERAL))
def backend(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Each of the four combinations in turn."""
    colour, mode = request.param
    found = _backend(request, redis_url, tenant, colour=colour, mode=mode)
    yield found
    found.close()


@pytest.fixture
def manager(backend: Backend) -> MemoryManager:
    """A manager of the combination at hand."""
    return backend.open()


@pytest.fixture(params=_parameters(DURABLE))
def durable(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Both colours, with a log."""
    colour, mode = request.param
    found = _backend(request, redis_url, tenant, colour=colour, mode=mode)
    yield found
    found.close()


@pytest.fixture(params=_parameters(EPHEMERAL))
def ephemeral(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Both colours, without a log."""
    colour, mode = request.param
    found = _backend(request, redis_url, tenant, colour=colour, mode=mode)
    yield found
    found.close()


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as anybody else reaches it: what tests look at and damage."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
