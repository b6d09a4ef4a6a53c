"""What Redis alone has while PostgreSQL is away, when Redis is harmed too: killed, or full."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from memory_contract import DURABLE, Backend, assert_context, logged, say, talk
from network_path import BOTH_COLOURS
from server_faults import RECOVERY_SECONDS, ServerFaults, waited_for
from servers import PrivateServers
from steady_writers import LIMITS, SteadyWriters

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import CircuitState, MemoryManager, StoreUnavailableError

pytest_plugins = ("memory_fixtures",)

SESSIONS = ("s", "t", "u")
SETTINGS: dict[str, Any] = {
    "redis_timeout_seconds": 5.0,
    "database_timeout_seconds": 5.0,
    "breaker_failure_threshold": 3,
    "breaker_recovery_seconds": RECOVERY_SECONDS,
    "database_breaker_recovery_seconds": RECOVERY_SECONDS,
}


class Pair(ServerFaults):
    """A Redis that writes everything down and a PostgreSQL, of which either comes back without the other."""

    def __init__(self, redis_server: EmbeddedServers, database: EmbeddedServers, colour: str, tenant: str) -> None:
        super().__init__(redis_server=redis_server, database=database)
        self.backend = Backend(colour, DURABLE, redis_server.redis_url, database.database_url, tenant)

    def open(self, **settings: Any) -> MemoryManager:
        return self.backend.open(**(SETTINGS | LIMITS | settings))

    def waiting(self, session_id: str) -> list[Any]:
        """Return the messages that wait in Redis, past the package."""
        with self.redis() as client:
            return [json.loads(item)[4] for item in client.lrange(self.backend.keys(session_id).unlogged, 1, -1)]

    def logged(self, session_id: str) -> list[Any]:
        rows = logged(self.database.database_url, self.backend.tenant, session_id)
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        return [message for _, message in rows]


@pytest.fixture
def pair(private_servers: PrivateServers, colour: str, tenant: str) -> Iterator[Pair]:
    with EmbeddedServers(postgres=False, persist_redis=True) as redis_server:
        made = Pair(redis_server, private_servers(redis=False), colour, tenant)
        with closing(made.backend):
            made.write_before_answering()
            yield made


@BOTH_COLOURS
def test_redis_killed_while_messages_wait_in_it(pair: Pair, colour: str) -> None:
    """PostgreSQL dies under writers, then Redis does: whatever was acknowledged is in its file, and is logged once."""
    with SteadyWriters(colour, pair.backend.config(**SETTINGS), SESSIONS) as writers:
        writers.progress()
        pair.kill_database()
        writers.progress(30)
        died = pair.kill_redis()
        refused = writers.refused
        assert waited_for(lambda: writers.refused > refused + 3 * len(SESSIONS)), "both are away"
    receipts = writers.receipts
    durable = {name: sum(receipt.durable for receipt in of_one) for name, of_one in receipts.items()}
    assert all(len(receipts[name]) >= count + 20 for name, count in durable.items()), "too few wait in Redis"

    pair.restart_redis()
    server = pair.stats("server")
    assert server["process_id"] != died
    assert pair.stats("persistence")["aof_enabled"] == 1
    waiting = {name: pair.waiting(name) for name in SESSIONS}
    reader = pair.open()
    for name in SESSIONS:
        acknowledged, count = len(receipts[name]), durable[name] + len(waiting[name])
        # One more was on its way when Redis died: written down, and not answered.
        assert count in (acknowledged, acknowledged + 1)
        assert waiting[name] == talk(len(waiting[name]), start=durable[name] + 1)
        context = reader.get_context(name)
        assert context["buffer_messages"] == talk(count)
        assert (context["source"], context["degraded"]) == ("redis", True)
        again = reader.append(name, say(acknowledged), message_id=f"m{acknowledged}")
        assert (again.seq, again.durable) == (acknowledged, False)
    assert {name: pair.waiting(name) for name in SESSIONS} == waiting

    pair.restart_database()
    drainer = pair.open()
    assert drainer.unlogged_sessions() == sorted(SESSIONS)
    assert {name: drainer.drain(name) for name in SESSIONS} == {name: len(found) for name, found in waiting.items()}
    assert {name: drainer.drain(name) for name in SESSIONS} == dict.fromkeys(SESSIONS, 0)
    assert drainer.unlogged_sessions() == []
    assert waited_for(lambda: reader.health().is_well("postgres"))
    for name in SESSIONS:
        number = len(receipts[name]) + 1
        # Whoever was not answered sends it again, and it is there once.
        assert reader.append(name, say(number), message_id=f"m{number}").seq == number
        assert pair.logged(name) == talk(number)
        assert_context(reader.get_context(name), talk(number))


@BOTH_COLOURS
@pytest.mark.parametrize("first", ["room", "database"])
def test_a_full_redis_without_postgres_acknowledges_nothing(pair: Pair, first: str) -> None:
    """What was acknowledged before waits on; what comes is refused, of whatever session, and leaves no trace."""
    manager = pair.open()
    onlooker = pair.open(breaker_recovery_seconds=60.0, database_breaker_recovery_seconds=60.0)
    for name in ("s", "logged alone"):
        manager.add_messages(name, talk(3))
    pair.kill_database()
    for number in (4, 5):
        assert manager.append("s", say(number)).durable is False
    pair.fill_redis()
    with pair.redis() as client:
        stored = {key: client.dump(key) for key in client.keys("contract:*:unlogged")}
        assert len(stored) == 1
        for name in ("s", "logged alone", "new"):
            # Redis is asked each time: no breaker stands before it.
            asking = pair.open(breaker_failure_threshold=100)
            assert_nothing_acknowledged(asking, name)
            assert asking.circuit_breaker.snapshot().failed >= 5
        assert {key: client.dump(key) for key in client.keys("contract:*:unlogged")} == stored
        assert pair.waiting("s") == talk(2, start=4)
    # It still answers those who read, until its breaker opens.
    assert onlooker.is_available() is True
    context = onlooker.get_context("s")
    assert context["buffer_messages"] == talk(5)
    assert (context["source"], context["degraded"]) == ("redis", True)
    assert_nothing_acknowledged(onlooker, "s")
    assert onlooker.circuit_breaker.get_state() == CircuitState.OPEN
    assert onlooker.database_breaker.get_state() == CircuitState.OPEN
    assert onlooker.is_available() is False
    assert onlooker.health().status == "unhealthy"

    said = talk(5)
    if first == "room":
        pair.make_room()
        said.append(say(6))
        assert waited_for(lambda: manager.add_message("s", say(6)))
        assert pair.waiting("s") == said[3:]
        pair.restart_database()
    else:
        pair.restart_database()
        said.append(say(6))
        assert waited_for(lambda: manager.append("s", say(6), message_id="m6").durable)
        assert pair.logged("s") == said
        assert pair.waiting("s") == []
        pair.make_room()
    assert waited_for(lambda: manager.append("s", say(7), message_id="m7").durable)
    for name, messages in (("s", [*said, say(7)]), ("logged alone", talk(3)), ("new", [])):
        assert waited_for(lambda name=name: not manager.get_context(name)["degraded"])  # type: ignore[misc]  # bound as a default
        assert_context(manager.get_context(name), messages)
        assert pair.logged(name) == messages
    assert waited_for(lambda: manager.get_context("s")["source"] == "redis")
    assert manager.unlogged_sessions() == []


def assert_nothing_acknowledged(manager: MemoryManager, session_id: str) -> None:
    """Each way to append is refused, by a typed error or by False."""
    calls: tuple[Callable[[], object], ...] = (
        lambda: manager.append(session_id, say(90)),
        lambda: manager.append(session_id, say(91), message_id="m91"),
        lambda: manager.add_messages(session_id, talk(2, start=92)),
        lambda: manager.add_and_get_context(session_id, say(94)),
    )
    for call in calls:
        with pytest.raises(StoreUnavailableError):
            call()
    assert manager.add_message(session_id, say(95)) is False
