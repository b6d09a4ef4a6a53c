"""Servers harmed under load from tasks of one event loop; ``test_server_faults`` shows the same of threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from memory_contract import ASYNC, DURABLE, Backend, say
from network_path import BOTH_COLOURS
from server_faults import REDIS_SECONDS, SETTINGS, Outage, waited_for
from servers import PrivateServers
from steady_writers import SteadyWriters, is_served
from vain_waits import Tally, assert_one_deadline

from contract_engine.embedded import EmbeddedServers

SESSIONS = [f"s{number}" for number in range(6)]
STOPPED_SECONDS = 10.0
AWAY_SECONDS = 5.0
FOLDING: dict[str, Any] = {"max_buffer_messages": 8}
PATIENT: dict[str, Any] = {"redis_timeout_seconds": 5.0}
"""Where Redis is not stopped: on a busy machine it may be late."""


@pytest.fixture
def outage(private_servers: PrivateServers, tenant: str) -> Iterator[Outage]:
    """A pair of servers to harm, and managers of an event loop."""
    servers = private_servers()
    backend = Backend(ASYNC, DURABLE, servers.redis_url, servers.database_url, tenant)
    with closing(Outage(servers, backend)) as made:
        yield made


def writers_on(outage: Outage, **settings: Any) -> SteadyWriters:
    backend = outage.backend
    return SteadyWriters(backend.colour, backend.config(**(SETTINGS | settings)), SESSIONS, limits=FOLDING)


def assert_kept(outage: Outage, writers: SteadyWriters) -> None:
    """Every acknowledged message is there once, in order, and Redis serves it again."""
    reader = outage.open(**FOLDING, redis_timeout_seconds=5.0, database_timeout_seconds=20.0)
    for session, receipts in writers.receipts.items():
        reader.drain(session)
        number = len(receipts) + 1
        # Whoever could not tell Redis of the last message may be gone: the next one does.
        receipts.append(reader.append(session, say(number), message_id=f"m{number}"))
    writers.assert_nothing_lost(outage.backend, reader)
    assert all(waited_for(lambda session=session: is_served(reader, session)) for session in SESSIONS)  # type: ignore[misc]  # bound as a default


@pytest.mark.parametrize("persistent", [True, False], ids=["append-only file", "nothing kept"])
def test_redis_killed(database_url: str, tenant: str, *, persistent: bool) -> None:
    with (
        EmbeddedServers(postgres=False, persist_redis=persistent) as servers,
        closing(Outage(servers, Backend(ASYNC, DURABLE, servers.redis_url, database_url, tenant))) as outage,
    ):
        with writers_on(outage, **PATIENT) as writers:
            for killed in (1, 2):
                writers.progress()
                outage.kill_redis()
                assert waited_for(lambda killed=killed: writers.changes.opened >= killed), "nobody has noticed"  # type: ignore[misc]  # bound as a default
                writers.progress(20)
                outage.restart_redis()
                writers.served_by_redis()
            writers.progress()
        assert writers.refused == 0, "the log was there all the time"
        assert sum(receipt.degraded for receipts in writers.receipts.values() for receipt in receipts) >= 20
        assert_kept(outage, writers)


def test_redis_stopped_for_ten_seconds(outage: Outage) -> None:
    """By counts: no call waits twice, all of them as often as the breaker takes failures, then one for each probe."""
    with writers_on(outage, database_timeout_seconds=20.0) as writers:
        writers.progress(10)
        before = Tally.so_far(writers.waits, writers.changes)
        outage.stop_redis()
        stopped = time.monotonic()
        assert waited_for(lambda: writers.changes.opened > before.opened), "nobody has noticed"
        writers.progress(10)
        time.sleep(max(0.0, stopped + STOPPED_SECONDS - time.monotonic()))  # the outage itself
        during = Tally.so_far(writers.waits, writers.changes).since(before)
        outage.go_on()
        writers.served_by_redis()
    print(during, f"{len(writers.attempts)} calls")
    # Each session may be folded in the background, and one more tells Redis of what it has missed.
    during.assert_bounded(threshold=SETTINGS["breaker_failure_threshold"], callers=2 * len(SESSIONS) + 1)
    assert_one_deadline(writers.waits, writers.attempts, REDIS_SECONDS)
    assert writers.refused == 0
    assert_kept(outage, writers)


def test_without_postgres_for_a_while(outage: Outage) -> None:
    with writers_on(outage, **PATIENT) as writers:
        writers.progress()
        outage.kill_database()
        died, before = time.monotonic(), writers.counts()
        writers.progress(30)
        time.sleep(max(0.0, died + AWAY_SECONDS - time.monotonic()))  # the outage itself
        during = writers.counts()
        outage.restart_database()
        writers.progress(10)
        assert waited_for(lambda: all(receipts[-1].durable for receipts in writers.receipts.values()))
    waiting = {
        session: sum(not receipt.durable for receipt in writers.receipts[session][count : during[session]])
        for session, count in before.items()
    }
    assert min(waiting.values()) >= 20, "the log was not away"
    assert writers.refused == 0
    assert_kept(outage, writers)


def test_more_connections_wanted_than_postgres_allows(outage: Outage) -> None:
    """What it refuses is an outage of it: such messages wait in Redis, and are logged when there is room."""
    with psycopg.connect(outage.servers.database_url, autocommit=True) as owner:
        owner.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 2")
        for what in ("TABLES", "SEQUENCES"):
            owner.execute(f"GRANT ALL ON ALL {what} IN SCHEMA public TO few".encode())
        address = outage.servers.database_url.partition("@")[2]
        outage.backend.database_url = f"postgresql://few:few@{address}"
        with writers_on(outage, **PATIENT, database_timeout_seconds=5.0) as writers:
            assert waited_for(
                lambda: any(not one.durable for receipts in writers.receipts.values() for one in list(receipts))
            ), "nobody was refused"
            writers.progress(10)
            owner.execute("ALTER ROLE few CONNECTION LIMIT -1")
            writers.progress(10)
            assert waited_for(lambda: all(receipts[-1].durable for receipts in writers.receipts.values()))
    assert writers.refused == 0
    assert_kept(outage, writers)


@BOTH_COLOURS
def test_more_connections_wanted_than_redis_allows(outage: Outage, colour: str) -> None:
    """What it refuses is an outage of it: the log goes on, and Redis is told when there is room."""
    outage.backend.colour = colour

    def refusals() -> int:
        stats: Any = control.info("stats")
        return int(stats["rejected_connections"])

    def degraded() -> int:
        return sum(receipt.degraded for receipts in writers.receipts.values() for receipt in list(receipts))

    with outage.redis() as control, writers_on(outage, **PATIENT) as writers:
        writers.progress()
        control.config_set("maxclients", 1 + 2)
        try:
            refused, before = refusals(), degraded()
            assert control.client_kill_filter(_type="normal", skipme=True) > 2
            assert waited_for(lambda: refusals() > refused + 5), "nobody was refused"
            writers.progress(10)
            assert degraded() > before + 5
        finally:
            control.config_set("maxclients", 1000)
        writers.served_by_redis()
        writers.progress()
    assert writers.refused == 0
    assert_kept(outage, writers)


def test_every_client_killed_ten_times_a_second(outage: Outage) -> None:
    kills = killed = 0
    with writers_on(outage, **PATIENT) as writers, outage.redis() as client:
        writers.progress()
        before = writers.counts()
        while kills < 20:
            time.sleep(0.1)  # the rate of the fault
            killed += int(client.client_kill_filter(_type="normal", skipme=True))
            kills += 1
        after = writers.counts()
        writers.served_by_redis()
    assert killed >= kills // 2, "there was somebody to kill"
    assert min(after[session] - before[session] for session in SESSIONS) >= 10
    assert writers.refused == 0
    assert_kept(outage, writers)
