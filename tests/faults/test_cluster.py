"""A Cluster of real nodes: the contract of the managers, slots that move, nodes that die, hang and are followed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend, assert_context, redis_values, say, talk
from redis_topologies import LOOPBACK, PASSWORD, Cluster, Server, cluster, waited_for
from steady_writers import LIMITS, SteadyWriters, is_served

from contract_engine.memory import CircuitState, RedisUnavailableError, StoreMisconfiguredError
from contract_engine.memory._effects import Command, scan
from contract_engine.memory._runtime.redis_topology import slot_of

pytest_plugins = ("memory_fixtures",)

SETTINGS: dict[str, Any] = {
    "redis_timeout_seconds": 0.5,
    "breaker_failure_threshold": 3,
    "breaker_recovery_seconds": 0.3,
    **LIMITS,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Three primaries without replicas; whoever harms one brings it back."""
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def redis_url(nodes: Cluster) -> str:
    return nodes.url


@pytest.fixture
def raw(nodes: Cluster) -> Iterator[Any]:
    with redis.RedisCluster(host=LOOPBACK, port=nodes.primaries[0].port, password=PASSWORD) as client:
        yield client


@pytest.fixture(params=[SYNC, ASYNC])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[DURABLE, EPHEMERAL])
def either(
    request: pytest.FixtureRequest, nodes: Cluster, database_url: str, tenant: str, colour: str
) -> Iterator[Backend]:
    """Each of the four combinations, for tests whose writers have managers of their own."""
    with closing(Backend(colour, request.param, nodes.url, database_url, tenant)) as backend:
        if request.param == EPHEMERAL:
            backend.database_url = None
        yield backend


def slot(backend: Backend, session_id: str) -> int:
    found = slot_of([Command(("GET", backend.keys(session_id).buffer))])
    assert found is not None
    return found


def sessions_by_node(backend: Backend, nodes: Cluster, each: int = 2) -> dict[int, list[str]]:
    """Return sessions of every primary, by its port."""
    found: dict[int, list[str]] = {server.port: [] for server in nodes.primaries}
    number = 0
    while any(len(names) < each for names in found.values()):
        number += 1
        names = found.setdefault(nodes.owner(slot(backend, f"s{number}")).port, [])
        if len(names) < each:
            names.append(f"s{number}")
    return found


# -- where calls go


def test_every_call_goes_straight_to_the_node_of_its_session(backend: Backend, nodes: Cluster) -> None:
    manager = backend.open()
    manager.get_context("s")
    before = nodes.redirections()
    sessions = [f"s{number}" for number in range(40)]
    for session_id in sessions:
        manager.append(session_id, say(1))
        assert_context(manager.add_and_get_context(session_id, say(2)), talk(2))
        assert is_served(manager, session_id)
    assert nodes.redirections() == before
    tenant = f"contract:{{{backend.tenant}/*"
    keys = [len(redis_values(server.client, tenant)) for server in nodes.primaries]
    assert all(keys), f"not every node was used: {keys}"
    assert sum(keys) == len(sessions)


def test_a_scan_finds_the_keys_of_every_node(backend: Backend, nodes: Cluster) -> None:
    manager = backend.open()
    sessions = [f"s{number}" for number in range(30)]
    for session_id in sessions:
        manager.append(session_id, say(1))
    found = backend.run(manager, scan(f"contract:{{{backend.tenant}/*"))
    assert {backend.keys(session_id).buffer.encode() for session_id in sessions} == set(found)


def test_a_wrong_password_is_a_wrong_setting(ephemeral: Backend, nodes: Cluster) -> None:
    manager = ephemeral.open(redis_url=nodes.url.replace(PASSWORD, "another"))
    with pytest.raises(StoreMisconfiguredError, match="check user, password") as caught:
        manager.append("s", say(1))
    assert "another" not in str(caught.value)
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED


# -- slots that move


def test_slots_move_under_writers(either: Backend, nodes: Cluster) -> None:
    backend = either
    sessions = sessions_by_node(backend, nodes)
    names = [name for group in sessions.values() for name in group]
    manager = backend.open(**SETTINGS)
    config = backend.config(redis_timeout_seconds=0.5, breaker_failure_threshold=3)
    before, keys = nodes.redirections(), 0
    with SteadyWriters(backend.colour, config, names) as writers:
        writers.progress()
        for _ in range(2):  # there and back, and once more
            for group in sessions.values():
                source = nodes.owner(slot(backend, group[0]))
                for name in group:
                    keys += move_under_writers(nodes, backend, name, source)
                writers.progress(2)
    after = nodes.redirections()
    seen = {kind: after[kind] - before[kind] for kind in after}
    print(
        f"{backend.colour} {backend.mode}: {keys} keys moved, {seen}, {sum(writers.counts().values())} messages, "
        f"{writers.refused} refused"
    )
    assert keys >= 2 * len(names)
    assert seen["MOVED"] > 0
    assert seen["ASK"] > 0
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED
    writers.assert_nothing_lost(backend, manager)
    for name in names:
        assert waited_for(lambda name=name: is_served(manager, name))  # type: ignore[misc]


def move_under_writers(nodes: Cluster, backend: Backend, session_id: str, source: Server) -> int:
    """Move the slot of a session, and not before somebody was sent after it."""
    number = slot(backend, session_id)
    to = next(server for server in nodes.primaries if server is not nodes.owner(number))
    asked = nodes.redirections()["ASK"]
    moved = nodes.move_slot(number, to, meanwhile=lambda: waited_for(lambda: nodes.redirections()["ASK"] > asked))
    assert nodes.owner(number) is to
    return moved


def test_a_call_in_the_middle_of_a_migration(backend: Backend, nodes: Cluster) -> None:
    """Some keys of a session are here and some are there: reads find both, and a write waits for the rest."""
    manager = backend.open(redis_timeout_seconds=10.0)
    manager.add_messages("s", talk(40))
    manager.wait_for_folds(10)
    said = manager.get_context("s")
    assert said["watermark"] > 0
    keys, number = backend.keys("s"), slot(backend, "s")
    source = nodes.owner(number)
    to = next(server for server in nodes.primaries if server is not source)
    to.say("CLUSTER", "SETSLOT", number, "IMPORTING", nodes.node_id(source))
    source.say("CLUSTER", "SETSLOT", number, "MIGRATING", nodes.node_id(to))

    def migrate(key: str) -> None:
        source.say("MIGRATE", LOOPBACK, to.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", key)

    migrate(keys.summary)
    before = nodes.redirections()
    context = manager.get_context("s")
    for name in ("buffer_messages", "current_summary", "watermark", "last_seq", "source", "degraded"):
        assert context[name] == said[name], name
    assert nodes.redirections()["ASK"] > before["ASK"]

    def finish() -> None:
        """Bring the rest once the write has been put off."""
        assert waited_for(lambda: nodes.redirections()["TRYAGAIN"] > before["TRYAGAIN"])
        for key in source.say("CLUSTER", "GETKEYSINSLOT", number, 100):
            migrate(key.decode())
        for server in (to, source, *(other for other in nodes.primaries if other not in (to, source))):
            server.say("CLUSTER", "SETSLOT", number, "NODE", nodes.node_id(to))

    rest = threading.Thread(target=finish)
    rest.start()
    context = manager.add_and_get_context("s", say(41))
    rest.join()
    assert nodes.redirections()["TRYAGAIN"] > before["TRYAGAIN"]
    assert context["last_seq"] == 41
    assert context["buffer_messages"][-1] == say(41), "what was read before the write was not read again"
    assert context["buffer_messages"].count(say(41)) == 1
    assert is_served(manager, "s")


# -- nodes that die and hang


def test_one_primary_killed_harms_nobody_else(
    backend: Backend, nodes: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "contract_engine")
    manager = backend.open(**SETTINGS)
    sessions = sessions_by_node(backend, nodes)
    for name in (name for group in sessions.values() for name in group):
        manager.add_messages(name, talk(3))
    dead = nodes.primaries[1]
    harmed = sessions.pop(dead.port)
    others = [name for group in sessions.values() for name in group]
    dead.kill()
    for number in range(4, 10):
        for name in harmed:
            if backend.is_durable:
                receipt = manager.append(name, say(number))
                assert (receipt.seq, receipt.durable, receipt.degraded) == (number, True, True)
                context = manager.get_context(name)
                assert_context(context, talk(number))
                assert (context["source"], context["degraded"]) == ("postgres", True)
            else:
                with pytest.raises(RedisUnavailableError):
                    manager.append(name, say(number))
        for name in others:
            assert manager.append(name, say(number)).degraded is False
            assert_context(manager.get_context(name), talk(number))
            assert is_served(manager, name)
    assert not dead.is_alive
    assert f"breaker redis {LOOPBACK}:{dead.port}: closed -> open" in caplog.text
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED, "that is for the Cluster as a whole"
    assert manager.health().is_well("redis")

    dead.start()
    assert waited_for(nodes.is_ok)
    for name in harmed:
        if backend.is_durable:
            assert waited_for(lambda name=name: is_served(manager, name))  # type: ignore[misc]
            assert_context(manager.get_context(name), talk(9))
        else:  # it kept nothing on disk
            assert waited_for(lambda name=name: manager.add_message(name, say(1)))  # type: ignore[misc]
    assert f"breaker redis {LOOPBACK}:{dead.port}: half_open -> closed" in caplog.text


def test_what_a_dead_primary_cannot_be_told_another_is_told(durable: Backend, nodes: Cluster) -> None:
    """Both copies are out of date; that of the server which answers is given up all the same."""
    manager, other = durable.open(**SETTINGS), durable.open(**SETTINGS)
    dead, full, well = nodes.primaries
    named = {port: names[0] for port, names in sessions_by_node(durable, nodes, each=1).items()}
    for name in named.values():
        manager.append(name, say(1))
        assert is_served(other, name)
    dead.kill()
    try:
        full.say("CONFIG", "SET", "maxmemory", 1)
        for server in (dead, full):
            assert manager.append(named[server.port], say(2)).degraded is True
        full.say("CONFIG", "SET", "maxmemory", 0)
        manager.wait_for_folds()  # one that is telling of the first now may know nothing of the second
        assert manager.append(named[well.port], say(2)).degraded is False
        manager.wait_for_folds()
        assert_context(other.get_context(named[full.port]), talk(2))
    finally:
        full.say("CONFIG", "SET", "maxmemory", 0)
        dead.start()
    assert waited_for(nodes.is_ok)


def test_a_primary_that_hangs_costs_its_deadline(durable: Backend, nodes: Cluster) -> None:
    manager = durable.open(**(SETTINGS | {"breaker_recovery_seconds": 60}))
    sessions = sessions_by_node(durable, nodes, each=1)
    hung = nodes.primaries[0]
    (harmed,) = sessions.pop(hung.port)
    others = [name for group in sessions.values() for name in group]
    for name in (harmed, *others):
        manager.append(name, say(1))
    os.kill(hung.pid, signal.SIGSTOP)
    seconds: list[float] = []
    try:
        for number in range(2, 8):
            started = time.monotonic()
            assert manager.append(harmed, say(number)).degraded is True
            seconds.append(time.monotonic() - started)
            for name in others:
                manager.append(name, say(number))
                assert is_served(manager, name)
        with (
            pytest.raises(redis.TimeoutError),
            redis.Redis(port=hung.port, password=PASSWORD, socket_timeout=0.2) as it,
        ):
            it.ping()
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    # The quickest of those that waited: the machine may stand still for any other.
    assert min(seconds[: int(SETTINGS["breaker_failure_threshold"])]) < 4 * SETTINGS["redis_timeout_seconds"]
    assert waited_for(nodes.is_ok)
    assert manager.append(harmed, say(8)).degraded is True, "the breaker of its node waits for a minute"
    manager.circuit_breaker.reset()
    assert manager.append(harmed, say(9)).degraded is False, "an operator's word is for every node"
    assert_context(manager.get_context(harmed), talk(9))


def test_every_node_dead_opens_the_breaker_in_front(durable: Backend, database_url: str) -> None:
    with cluster() as made:
        manager = durable.open(redis_url=made.url, **SETTINGS)
        manager.append("s", say(1))
        for server in made.servers:
            server.kill()
        for number in range(2, 7):
            assert manager.append("s", say(number)).degraded is True
        assert manager.circuit_breaker.get_state() in (CircuitState.OPEN, CircuitState.HALF_OPEN)
        assert manager.health().is_well("redis") is False
        assert_context(manager.get_context("s"), talk(6))


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    """Three primaries with a replica each."""
    with cluster(replicas=1) as made:
        yield made


def test_failovers_under_writers(durable: Backend, replicated: Cluster) -> None:
    """One on command and one after a SIGKILL; breakers that wait for a minute do not hold anybody back."""
    backend = durable
    backend.redis_url = replicated.url
    reader = backend.open(**(SETTINGS | {"breaker_recovery_seconds": 60}))
    sessions = [name for group in sessions_by_node(backend, replicated).values() for name in group]
    number = slot(backend, sessions[0])
    config = backend.config(redis_timeout_seconds=0.5, breaker_failure_threshold=3, breaker_recovery_seconds=60)
    with SteadyWriters(backend.colour, config, sessions) as writers:
        writers.progress()
        first = replicated.owner(number)
        replica = replica_of(replicated, first)
        assert replica.say("CLUSTER", "FAILOVER") == b"OK"
        assert waited_for(lambda: replicated.owner(number) is replica)
        writers.progress()
        assert waited_for(lambda: replica_of(replicated, replica) is first), "it follows its successor"
        pid = replica.kill()
        writers.progress()
        survivor = next(server for server in replicated.servers if server.is_alive)
        assert waited_for(lambda: replicated.owner(number, asked=survivor) is first)
        writers.served_by_redis()
    assert not replica.is_alive
    print(f"{backend.colour}: {sum(writers.counts().values())} messages, killed {pid}")
    writers.assert_nothing_lost(backend, reader)
    for name in sessions:
        assert waited_for(lambda name=name: is_served(reader, name))  # type: ignore[misc]
    assert any(receipt.degraded for receipt in writers.receipts[sessions[0]]), "nobody noticed the failover"
    writers.assert_nothing_lost(backend, reader)


def replica_of(made: Cluster, primary: Server) -> Server:
    """Return who follows a primary in step."""
    for server in made.servers:
        if server.is_alive:
            facts = server.info("replication")
            if (facts.get("master_port"), facts.get("master_link_status")) == (primary.port, "up"):
                return server
    raise redis.ConnectionError("nobody follows it yet")
