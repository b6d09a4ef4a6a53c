"""Redis flushed while it is read and written: nothing is lost that is in the log, and the copies return from there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from many_writers import Background
from memory_contract import ASYNC, DURABLE, SYNC, Backend, assert_caps, assert_context, talk
from server_faults import Outage, waited_for
from servers import PrivateServers
from steady_writers import SteadyWriters, is_served

from contract_engine.memory import CircuitState, MemoryManager

pytest_plugins = ("memory_fixtures",)

SESSIONS = ("s", "t", "u")
PATIENT: dict[str, Any] = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 20.0}
FOLDING = {"max_buffer_messages": 8}
FLUSHES = 5


@pytest.fixture(params=[SYNC, ASYNC])
def outage(
    request: pytest.FixtureRequest, private_servers: PrivateServers, database_url: str, tenant: str
) -> Iterator[Outage]:
    """Both colours on a Redis of their own, beside the PostgreSQL that all tests share."""
    servers = private_servers(postgres=False)
    backend = Backend(request.param, DURABLE, servers.redis_url, database_url, tenant)
    with closing(Outage(servers, backend, PATIENT)) as found:
        yield found


@pytest.fixture
def onlooker(outage: Outage) -> Iterator[MemoryManager]:
    """A manager of another process, which threads may share."""
    backend = outage.backend
    with closing(Backend(SYNC, DURABLE, backend.redis_url, backend.database_url, backend.tenant)) as beside:
        yield beside.open(**PATIENT, max_buffer_messages=8)


def flush(client: Any) -> int:
    """Flush Redis and answer how many keys it had; nobody comes between that and the proof that none is left."""
    with client.pipeline(transaction=True) as steps:
        for command in ("DBSIZE", "FLUSHALL", "DBSIZE"):
            steps.execute_command(command)
        before, _, after = steps.execute()
    assert after == 0, "it was not flushed"
    return int(before)


def test_flushed_under_readers_and_writers(outage: Outage, onlooker: MemoryManager) -> None:
    """Each read is whole and has what was acknowledged before it began; Redis serves all of it again in the end."""
    backend = outage.backend
    sources: list[tuple[str, str, bool]] = []
    with SteadyWriters(backend.colour, backend.config(**PATIENT), SESSIONS, limits=FOLDING) as writers:

        def read(number: int) -> None:
            session = SESSIONS[number]
            newest = writers.counts()[session]
            context = onlooker.get_context(session)
            assert context["last_seq"] >= newest, "acknowledged before the read began"
            assert_context(context, talk(context["last_seq"]))
            sources.append((session, context["source"], context["degraded"]))
            time.sleep(0.002)

        writers.progress()
        with outage.redis() as client, Background(len(SESSIONS), read):
            for _ in range(FLUSHES):
                assert flush(client) > 0, "there was nothing to lose"
                del sources[:]
                writers.progress()
                # While they write: more than one, since a read may have had its answer before the flush.
                assert waited_for(lambda: all(sources.count((name, "redis", False)) > 2 for name in SESSIONS)), sources
            writers.served_by_redis()
    print(
        f"{outage.backend.colour}: {sum(writers.counts().values())} messages, {len(sources)} reads: {Counter(sources)}"
    )
    assert writers.refused == 0
    reader = outage.open(**FOLDING)
    writers.assert_nothing_lost(backend, reader)
    assert all(waited_for(lambda session=session: is_served(reader, session)) for session in SESSIONS)  # type: ignore[misc]  # bound as a default
    for manager in (reader, onlooker):
        assert manager.circuit_breaker.get_state() == CircuitState.CLOSED


def test_a_flushed_session_is_the_same_afterwards(outage: Outage) -> None:
    """Summary and buffer come back from the log by the first read, and stay in Redis for the second and for others."""
    manager, other = outage.open(**FOLDING), outage.open(**FOLDING)
    manager.add_messages("s", talk(20))
    manager.wait_for_folds()
    assert waited_for(lambda: is_served(manager, "s"))
    before = manager.get_context("s")
    assert before["watermark"] > 0
    with outage.redis() as client:
        for _ in range(2):
            assert flush(client) > 0
            assert client.exists(*outage.backend.keys("s")) == 0
            first, second = manager.get_context("s"), manager.get_context("s")
            assert (first["source"], first["degraded"]) == ("postgres", False)
            assert (second["source"], second["degraded"]) == ("redis", False)
            for context in (first, second, other.get_context("s")):
                assert_context(context, talk(20))
                for name in ("buffer_messages", "current_summary", "watermark", "summary_version", "total_tokens"):
                    assert context[name] == before[name], name
            assert client.exists(outage.backend.keys("s").buffer) == 1
        flush(client)
    receipt = other.append("s", talk(1, start=21)[0])
    assert (receipt.seq, receipt.durable, receipt.degraded) == (21, True, False)
    context = manager.get_context("s")
    assert_context(context, talk(21))
    assert_caps(context)
