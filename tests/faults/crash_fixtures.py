"""The stage that the fault matrix is played on, for the modules that name this one in ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash_hangs import Hangs
from crash_sessions import Stage
from crash_trials import stage_of
from memory_contract import DURABLE, EPHEMERAL
from server_faults import ServerFaults

from contract_engine.embedded import EmbeddedServers


@pytest.fixture(scope="module", params=[DURABLE, EPHEMERAL])
def stage(request: pytest.FixtureRequest, redis_url: str, database_url: str) -> Iterator[Stage]:
    """One for all tests of a mode: it keeps a template of each state."""
    with stage_of(request.param, redis_url, database_url, f"{request.module.__name__}-{request.param}") as found:
        yield found


@pytest.fixture(scope="module")
def hangs(request: pytest.FixtureRequest) -> Iterator[Hangs]:
    """A pair of servers that only these tests use; with a log, unless the test gives the mode."""
    with (
        EmbeddedServers(durable=False) as servers,
        stage_of(getattr(request, "param", DURABLE), servers.redis_url, servers.database_url, "hung") as stage,
    ):
        yield Hangs(ServerFaults(redis_server=servers, database=servers), stage)
