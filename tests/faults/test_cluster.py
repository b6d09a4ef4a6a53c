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
from memory_contract import (
    ASYNC,
    DURABLE,
    EPHEMERAL,
    SYNC,
    Backend,
    assert_context,
    logged,
    redis_values,
    say,
    talk,
)
from redis_topologies import LOOPBACK, PASSWORD, Cluster, Server, cluster, waited_for
from steady_writers import LIMITS, SteadyWriters

from contract_engine.memory import CircuitState, MemoryManager, RedisUnavailableError, StoreMisconfiguredError
from contract_engine.memory._effects import Command, RedisCall, scan
from contract_engine.memory._runtime.redis_routing import Talk
from contract_engine.memory._runtime.redis_steps import Address, Outcome
from contract_engine.memory._runtime.redis_topology import deployment, slot_of
from contract_engine.memory._scripts import RELEASE
from contract_engine.memory.errors import ConfigurationError

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


def is_served(manager: MemoryManager, session_id: str) -> bool:
    context = manager.get_context(session_id)
    return (context["source"], context["degraded"]) == ("redis", False)


def assert_nothing_lost(backend: Backend, manager: MemoryManager, writers: SteadyWriters) -> None:
    """Every message acknowledged is there, once and in order, for a reader of its own."""
    for session_id, receipts in writers.receipts.items():
        assert [receipt.seq for receipt in receipts] == list(range(1, len(receipts) + 1))
        assert_context(manager.get_context(session_id), talk(len(receipts)))
        if backend.database_url:
            said = talk(len(receipts))
            assert logged(backend.database_url, backend.tenant, session_id) == list(enumerate(said, 1))


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
    answer: Any = manager._runtime.run(scan(f"contract:{{{backend.tenant}/*"))
    if backend.colour == ASYNC:
        assert backend.loop is not None
        answer = backend.loop.run_until_complete(answer)
    assert {backend.keys(session_id).buffer.encode() for session_id in sessions} == set(answer)


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
    assert_nothing_lost(backend, manager, writers)
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
    assert manager.health()["redis"] is True

    dead.start()
    assert waited_for(nodes.is_ok)
    for name in harmed:
        if backend.is_durable:
            assert waited_for(lambda name=name: is_served(manager, name))  # type: ignore[misc]
            assert_context(manager.get_context(name), talk(9))
        else:  # it kept nothing on disk
            assert waited_for(lambda name=name: manager.add_message(name, say(1)))  # type: ignore[misc]
    assert f"breaker redis {LOOPBACK}:{dead.port}: half_open -> closed" in caplog.text


def test_a_primary_that_hangs_costs_its_deadline(durable: Backend, nodes: Cluster) -> None:
    manager = durable.open(**(SETTINGS | {"breaker_recovery_seconds": 60}))
    sessions = sessions_by_node(durable, nodes, each=1)
    hung = nodes.primaries[0]
    (harmed,) = sessions.pop(hung.port)
    others = [name for group in sessions.values() for name in group]
    for name in (harmed, *others):
        manager.append(name, say(1))
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        for number in range(2, 8):
            started = time.monotonic()
            assert manager.append(harmed, say(number)).degraded is True
            assert time.monotonic() - started < 4 * SETTINGS["redis_timeout_seconds"]
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
        assert manager.health()["redis"] is False
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
    assert_nothing_lost(backend, reader, writers)
    for name in sessions:
        assert waited_for(lambda name=name: is_served(reader, name))  # type: ignore[misc]
    assert any(receipt.degraded for receipt in writers.receipts[sessions[0]]), "nobody noticed the failover"
    assert_nothing_lost(backend, reader, writers)


def replica_of(made: Cluster, primary: Server) -> Server:
    """Return who follows a primary in step."""
    for server in made.servers:
        if server.is_alive:
            facts = server.info("replication")
            if (facts.get("master_port"), facts.get("master_link_status")) == (primary.port, "up"):
                return server
    raise redis.ConnectionError("nobody follows it yet")


# -- what may be sent again


def call(*commands: Command, again: bool = True) -> Talk:
    return Talk(RedisCall(commands, (lambda: commands) if again else None))


WRITE = Command((1, "k", 1), RELEASE)
READ = Command(("GET", "k"))
MOVED = redis.exceptions.MovedError("1 h:1")
ASK = redis.exceptions.AskError("1 h:1")


def test_an_answered_write_is_not_sent_again() -> None:
    talk_ = call(READ, WRITE, READ)
    assert talk_.take([ASK, b"written", b"read"], 7) is ASK
    assert talk_.commands == (READ,)
    assert talk_.take([b"at last"], 7) is None
    assert talk_.is_done
    assert talk_.replies == [b"at last", b"written", b"read"]


def test_a_read_behind_a_refused_write_waits_for_it() -> None:
    talk_ = call(WRITE, READ, WRITE, READ)
    assert talk_.take([redis.exceptions.TryAgainError("later"), b"too early", b"written", MOVED], 7) is not None
    assert list(talk_.commands) == [WRITE]
    assert talk_.take([MOVED], 7) is MOVED
    assert talk_.take([1], 7) is None
    assert list(talk_.commands) == [READ, READ]
    assert talk_.take([b"a", b"b"], 7) is None
    assert talk_.is_done
    assert talk_.replies == [1, b"a", b"written", b"b"]


def test_what_a_replica_refuses_to_a_script_is_a_refusal() -> None:
    in_script = "Error running script (call to f_1): @user_script:1: -READONLY You can't write against a replica."
    for refusal in (redis.exceptions.ReadOnlyError("no"), redis.exceptions.ResponseError(in_script)):
        assert call(WRITE).take([refusal], 7) is refusal
    other = redis.exceptions.ResponseError("wrong number of arguments")
    assert call(WRITE).take([other], 7) is None


@pytest.mark.parametrize(
    ("was_sent", "again", "goes_on"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_after_a_lost_connection_the_rule_of_the_call_holds(*, was_sent: bool, again: bool, goes_on: bool) -> None:
    lost = Outcome([], redis.ConnectionError("gone"), was_idle=True, was_sent=was_sent)
    assert call(WRITE, again=again).survives(lost) is goes_on
    hung = Outcome([], redis.TimeoutError("silence"), was_idle=True, was_sent=True)
    assert call(WRITE, again=again).survives(hung) is False


# -- the address


def test_the_parts_of_an_address() -> None:
    found = deployment("rediss+cluster://user:p%40ss@one:7000,[::1]:7001,three/?ssl_cert_reqs=none")
    assert found is not None
    assert found.seeds == (Address("one", 7000), Address("::1", 7001), Address("three", 6379))
    assert found.url_of(found.seeds[1]) == "rediss://user:p%40ss@[::1]:7001/0?ssl_cert_reqs=none"
    watched = deployment("redis+sentinel://:secret@a:1,b/mine/3?sentinel_password=other&socket_keepalive=no")
    assert watched is not None
    assert watched.service == "mine"
    assert watched.seeds == (Address("a", 1, True), Address("b", 26379, True))
    assert watched.url_of(watched.seeds[0]) == "redis://:other@a:1?socket_keepalive=no"
    assert watched.url_of(Address("p", 6379)) == "redis://:secret@p:6379/3?socket_keepalive=no"
    for url in ("redis://h:1/0", "rediss://h", "unix:///tmp/x", "anything"):
        assert deployment(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+ring://:hunter2@h:1/",
        "unix+cluster://:hunter2@h:1/",
        "redis+cluster://:hunter2@h:1/3",
        "redis+cluster://:hunter2@h:port/",
        "redis+cluster://:hunter2@/",
        "redis+cluster://:hunter2@h:1,,h:2/",
        "redis+cluster://:hunter2@h:1/?unknown_option=1",
        "redis+sentinel://:hunter2@h:1/",
        "redis+sentinel://:hunter2@h:1/mine/x",
        "redis+sentinel://:hunter2@h:1/mine/0/more",
    ],
)
def test_a_wrong_address_is_refused_without_being_quoted(ephemeral: Backend, url: str) -> None:
    manager = ephemeral.open(redis_url=url)
    with pytest.raises(ConfigurationError) as caught:
        manager.get_context("s")
    assert caught.value.field == "redis_url"
    assert "hunter2" not in str(caught.value)
