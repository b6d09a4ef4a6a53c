"""Fixtures for the tests of moving out of an older store, for modules that name this one in ``pytest_plugins``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from legacy_tables import Older


@pytest.fixture
def older(database_url: str, redis_url: str, tenant: str) -> Iterator[Older]:
    """An empty table of the original, and a tenant of the log."""
    with ExitStack() as stack:
        yield Older(database_url, redis_url, tenant, stack)


@pytest.fixture
def another_older(database_url: str, redis_url: str) -> Iterator[Callable[[], Older]]:
    """As many of them as are asked for."""
    with ExitStack() as stack:
        yield lambda: Older(database_url, redis_url, f"t{uuid.uuid4().hex[:12]}", stack)
