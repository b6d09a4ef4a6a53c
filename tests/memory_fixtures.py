"""The fixtures of the contract tests: a module that names this one in ``pytest_plugins`` gets them.

Each test that asks for ``backend`` or ``manager`` runs once per combination of colour and mode.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest
import redis
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend
from servers import redis_client

from contract_engine.memory import MemoryManager

SEED_VARIABLE = "BAD_DATA_SEED"


def _backend(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    colour, mode = request.param
    database_url = cast("str", request.getfixturevalue("database_url")) if mode == DURABLE else None
    with closing(Backend(colour, mode, redis_url, database_url, tenant)) as found:
        yield found


def _parameters(*modes: str) -> list[Any]:
    return [pytest.param((colour, mode), id=f"{colour}-{mode}") for mode in modes for colour in (SYNC, ASYNC)]


@pytest.fixture(params=_parameters(DURABLE, EPHEMERAL))
def backend(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Each of the four combinations in turn."""
    yield from _backend(request, redis_url, tenant)


@pytest.fixture
def manager(backend: Backend) -> MemoryManager:
    """A manager of the combination at hand."""
    return backend.open()


@pytest.fixture(params=_parameters(DURABLE))
def durable(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Both colours, with a log."""
    yield from _backend(request, redis_url, tenant)


@pytest.fixture(params=_parameters(EPHEMERAL))
def ephemeral(request: pytest.FixtureRequest, redis_url: str, tenant: str) -> Iterator[Backend]:
    """Both colours, without a log."""
    yield from _backend(request, redis_url, tenant)


@pytest.fixture
def blocking(redis_url: str, database_url: str, tenant: str) -> Iterator[Backend]:
    """Blocking managers with a log: those that threads may share, and whose effects a test can come between."""
    with closing(Backend(SYNC, DURABLE, redis_url, database_url, tenant)) as found:
        yield found


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as anybody else reaches it: what tests look at and damage."""
    with redis_client(redis_url) as client:
        yield client


@pytest.fixture
def dice() -> random.Random:
    """Chance that can be had again: the seed is printed, and read from BAD_DATA_SEED."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    print(f"{SEED_VARIABLE}={seed}")
    return random.Random(seed)
