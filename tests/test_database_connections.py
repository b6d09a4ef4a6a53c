"""Connections to PostgreSQL that give up by themselves: what was going on there ends with them, and in silence."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator

import psycopg
import pytest

from contract_engine.memory._runtime.database_connections import AsyncDeadlineConnection, DeadlineConnection

MANY = "SELECT pg_sleep(%s)"


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What Python had to say on standard error of objects being collected; nothing may be left at the end."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    yield told
    gc.collect()
    assert told == []


def terminate(database_url: str, pid: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,)).fetchone() == (True,)


@pytest.mark.usefixtures("unraisable")
def test_a_pipeline_on_a_lost_connection_leaves_nothing_behind(database_url: str) -> None:
    connection = DeadlineConnection.connect(database_url)
    terminate(database_url, connection.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        connection.cursor().executemany(MANY, [(0,), (0,)])
    assert connection.closed


@pytest.mark.usefixtures("unraisable")
async def test_a_pipeline_on_a_lost_connection_leaves_nothing_behind_on_a_loop(database_url: str) -> None:
    connection = await AsyncDeadlineConnection.connect(database_url)
    await asyncio.to_thread(terminate, database_url, connection.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        await connection.cursor().executemany(MANY, [(0,), (0,)])
    assert connection.closed


@pytest.mark.usefixtures("unraisable")
def test_a_pipeline_that_misses_its_deadline_is_given_up(database_url: str) -> None:
    connection = DeadlineConnection.connect(database_url)
    connection.seconds = 0.2
    with pytest.raises(psycopg.OperationalError, match="no answer within"):
        connection.cursor().executemany(MANY, [(5,), (5,)])
    assert connection.closed


@pytest.mark.usefixtures("unraisable")
async def test_a_pipeline_that_is_cancelled_is_given_up(database_url: str) -> None:
    connection = await AsyncDeadlineConnection.connect(database_url)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await connection.cursor().executemany(MANY, [(5,), (5,)])
    assert connection.closed
