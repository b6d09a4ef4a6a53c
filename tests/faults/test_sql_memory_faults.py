"""Working memory in a PostgreSQL that is killed, stopped, or ends its connections; and in a file of many processes."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from server_faults import ServerFaults, waited_for
from servers import PrivateServers
from working_memory_contract import (
    ASYNC,
    PATIENCE_SECONDS,
    POSTGRES,
    STACKS,
    SYNC,
    MemoryBackend,
    ask,
    say,
    texts_of,
)

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import DatabaseUnavailableError
from contract_engine.working_memory import SQLiteMemoryManager


@pytest.fixture
def harmed(
    request: pytest.FixtureRequest, private_servers: PrivateServers, tenant: str, tmp_path: Path
) -> Iterator[tuple[MemoryBackend, ServerFaults]]:
    """Managers on a PostgreSQL that this test may harm."""
    servers: EmbeddedServers = private_servers(redis=False, migrate=False)
    found = MemoryBackend(POSTGRES, request.param, STACKS["bare"], tenant, "", servers.database_url, tmp_path)
    with closing(found):
        yield found, ServerFaults(database=servers)


both_colours = pytest.mark.parametrize("harmed", [SYNC, ASYNC], indirect=True)


@both_colours
def test_a_dead_postgres_is_an_outage_and_comes_back(
    harmed: tuple[MemoryBackend, ServerFaults], caplog: pytest.LogCaptureFixture
) -> None:
    backend, faults = harmed
    manager = backend.open()
    manager.store(say("c1", "text"))
    assert faults.kill_database()
    for call in (manager.store, manager.retrieve, manager.update, manager.delete):
        with pytest.raises(DatabaseUnavailableError) as caught:
            call(say("c1", "secret text"))
        assert isinstance(caught.value, ConnectionError)
        assert "secret text" not in str(caught.value)
    with caplog.at_level(logging.DEBUG):
        assert manager.retrieve_safe(ask("c1")) == []
    assert "DatabaseUnavailableError" in caplog.text
    password = backend.database_url.split("@")[0].rpartition(":")[2]
    assert password not in caplog.text
    faults.restart_database()
    assert texts_of(manager.retrieve(ask("c1"))) in (["text"], [])  # fsync is off
    manager.store(say("c1", "back"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["back"]


@both_colours
def test_a_stopped_postgres_costs_the_deadline(harmed: tuple[MemoryBackend, ServerFaults]) -> None:
    backend, faults = harmed
    manager = backend.open(timeout_seconds=0.5)
    manager.store(say("c1", "text"))
    assert faults.stop_database() >= 1
    seconds: list[float] = []
    for _ in range(4):
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError):
            manager.store(say("c1", "x"))
        seconds.append(time.monotonic() - started)
    # The quickest of them: the machine may stand still for any other, and a connection is given up after two seconds.
    assert 0.5 * 0.5 < min(seconds) < 4 * 0.5, seconds
    faults.go_on()
    assert waited_for(lambda: bool(manager.retrieve_safe(ask("c1"))), PATIENCE_SECONDS)


@both_colours
def test_a_connection_that_was_ended_is_opened_again(harmed: tuple[MemoryBackend, ServerFaults]) -> None:
    backend, faults = harmed
    manager = backend.open()
    manager.store(say("c1", "text"))
    assert faults.terminate_backends() >= 1
    assert texts_of(manager.retrieve(ask("c1"))) == ["text"]


WRITING = """
import sys
from contract_engine.working_memory import RichMemory, SQLiteMemoryManager
path, name = sys.argv[1:]
with SQLiteMemoryManager(path, timeout_seconds=60) as manager:
    for number in range(40):
        manager.store_rich("c", RichMemory(f"{name} {number}"))
        manager.store_rich(name, RichMemory(str(number)))
"""


def test_processes_that_write_one_file_lose_nothing(tmp_path: Path) -> None:
    path, names = tmp_path / "memory.db", ("one", "two", "three")
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITING, str(path), name]) for name in names]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    with SQLiteMemoryManager(path) as manager:
        found = [memory.working_memory for memory in manager.retrieve(ask("c", limit=None))]
        assert len(found) == 120
        for name in names:
            assert [text for text in found if text.startswith(f"{name} ")] == [f"{name} {n}" for n in range(40)]
            assert len(manager.retrieve(ask(name, limit=None))) == 40
