"""A primary that Sentinels watch: found through them, and found again after a failover."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend, assert_context, logged, run_between, say, talk
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_topologies import DOWN_AFTER_MS, PASSWORD, SERVICE, Server, Watched, waited_for, watched_primary
from steady_writers import LIMITS, SteadyWriters, is_served

# The scenarios of the contract that every way to Redis has to pass.
from test_memory_manager import (  # noqa: F401
    test_a_batch_keeps_its_order,
    test_a_fold_due_runs_in_the_background,
    test_a_repeated_append_has_one_effect,
    test_a_turn_returns_the_context_with_its_message,
    test_health,
    test_limits_of_a_session,
)

from contract_engine.memory import (
    CircuitOpenError,
    CircuitState,
    MemoryManager,
    MessageConflictError,
    Receipt,
    RedisUnavailableError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from contract_engine.memory._effects import scan

pytest_plugins = ("memory_fixtures",)

SETTINGS: dict[str, Any] = {
    "redis_timeout_seconds": 0.5,
    "breaker_failure_threshold": 3,
    "breaker_recovery_seconds": 60,
    **LIMITS,
}
"""A breaker that waits for a minute: whatever comes back sooner does so because the Sentinels were asked."""


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A primary with a replica and three Sentinels; whoever harms one brings it back."""
    with watched_primary() as made:
        yield made


@pytest.fixture(scope="module")
def redis_url(watched: Watched) -> str:
    return watched.url


@pytest.fixture(params=[SYNC, ASYNC])
def log(request: pytest.FixtureRequest, watched: Watched, database_url: str, tenant: str) -> Iterator[Backend]:
    """Both colours with a log, once the Sentinels are ready for a failover."""
    assert waited_for(lambda: watched.is_settled() and watched.is_ready())
    with closing(Backend(request.param, DURABLE, watched.url, database_url, tenant)) as backend:
        yield backend


def test_the_primary_is_what_is_written_to(backend: Backend, watched: Watched) -> None:
    manager = backend.open()
    manager.append("s", say(1))
    key = backend.keys("s").buffer
    assert watched.primary.client.exists(key) == 1
    assert backend.run(manager, scan(f"contract:{{{backend.tenant}/*")) == [key.encode()]


@pytest.mark.parametrize("how", ["killed", "on command"])
def test_a_failover_under_writers(log: Backend, watched: Watched, how: str) -> None:
    reader = log.open(**SETTINGS)
    sessions = [f"s{number}" for number in range(6)]
    config = log.config(redis_timeout_seconds=0.5, breaker_failure_threshold=3, breaker_recovery_seconds=60)
    with SteadyWriters(log.colour, config, sessions) as writers:
        writers.progress()
        before = watched.primary
        crossing = {name: receipts[-5:] for name, receipts in writers.receipts.items()}
        without_answer(log)
        # Not each single read: a fold that meets an append gives the copy up.
        assert waited_for(lambda: is_served(reader, "s0"))
        if how == "killed":
            before.kill()
        else:
            assert watched.sentinels[0].say("SENTINEL", "FAILOVER", SERVICE) == b"OK"
        send_again(reader, crossing)
        writers.progress()
        assert waited_for(lambda: watched.primary is not before)
        if how == "on command":
            # Until the Sentinels demote it, the old primary answers those who have not heard of the new one.
            assert waited_for(lambda: before.info("replication")["role"] == "slave")
        writers.served_by_redis()
    after = watched.primary
    assert after is not before
    assert before.is_alive is (how == "on command")
    print(f"{log.colour}, {how}: {sum(writers.counts().values())} messages")
    writers.assert_nothing_lost(log, reader)
    for name in sessions:
        assert waited_for(lambda name=name: is_served(reader, name))  # type: ignore[misc]
        assert after.client.exists(log.keys(name).buffer) == 1
    assert reader.circuit_breaker.get_state() == CircuitState.CLOSED
    if how == "killed":
        before.start()
    assert waited_for(watched.is_settled), "the old primary follows the new one"
    for sent in (crossing, {name: receipts[-5:] for name, receipts in writers.receipts.items()}):
        send_again(reader, sent)
    assert all(len(writers.receipts[name]) > receipts[-1].seq + 5 for name, receipts in crossing.items())
    writers.assert_nothing_lost(log, reader)
    for _ in range(2):
        for number in range(1, 5):
            receipt = reader.append("unanswered", say(number), message_id=f"m{number}")
            assert (receipt.seq, receipt.durable) == (number, True)
    assert log.database_url is not None
    assert logged(log.database_url, log.tenant, "unanswered") == list(enumerate(talk(4), 1))
    assert_context(reader.get_context("unanswered"), talk(4))


def send_again(manager: MemoryManager, sent: Mapping[str, Sequence[Receipt]]) -> None:
    """Send five messages of each session under their ids again, one to five times each, and once with other content."""
    for session_id, receipts in sent.items():
        assert len(receipts) == 5
        for times, receipt in enumerate(receipts, 1):
            for _ in range(times):
                again = manager.append(session_id, say(receipt.seq), message_id=receipt.message_id)
                assert (again.seq, again.durable) == (receipt.seq, True)
            with pytest.raises(MessageConflictError):
                manager.append(session_id, say(receipt.seq, words=7), message_id=receipt.message_id)


def without_answer(log: Backend) -> None:
    """Send four messages to session ``unanswered``: two are logged and their answers lost, two are refused."""
    with closing(Backend(SYNC, DURABLE, log.redis_url, log.database_url, log.tenant)) as backend:
        for number, effects in ((1, 1), (2, 2)):  # before Redis is told, and after it
            manager = backend.open(**SETTINGS)
            flow = manager._flows.append("unanswered", say(number), f"m{number}")
            with pytest.raises(KeyboardInterrupt):
                run_between(manager, flow, after=effects, action=die)
        manager = backend.open(**SETTINGS)
        manager.circuit_breaker.force_open()
        manager.database_breaker.force_open()
        for number in (3, 4):
            with pytest.raises(StoreUnavailableError):
                manager.append("unanswered", say(number), message_id=f"m{number}")
    assert log.database_url is not None
    assert logged(log.database_url, log.tenant, "unanswered") == list(enumerate(talk(2), 1))


def die() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_without_a_log_a_failover_may_cost_what_no_replica_had(watched: Watched, tenant: str, colour: str) -> None:
    """Nobody waits for a replica: what it never got is gone with the primary, its numbers are given again, and so may
    its ids be. What it did get is there, once."""
    assert waited_for(lambda: watched.is_settled() and watched.is_ready())
    before = watched.primary
    replica = next(server for server in watched.nodes if server is not before)
    with closing(Backend(colour, EPHEMERAL, watched.url, None, tenant)) as backend:
        manager = backend.open(**SETTINGS)
        for number in range(1, 6):
            manager.append("s", say(number), message_id=f"m{number}")
        assert before.say("WAIT", 1, 5000) == 1
        replica.say("CONFIG", "SET", "masterauth", "another")
        before.say("CLIENT", "KILL", "TYPE", "replica")
        assert waited_for(lambda: replica.info("replication")["master_link_status"] == "down")
        for number in (6, 7):
            receipt = manager.append("s", say(number), message_id=f"m{number}")
            assert (receipt.seq, receipt.durable, receipt.degraded) == (number, False, False)
        assert_context(manager.get_context("s"), talk(7))
        before.kill()
        assert waited_for(lambda: watched.primary is replica)
        assert waited_for(lambda: is_read(manager))
        assert_context(manager.get_context("s"), talk(5))
        assert manager.append("s", say(5), message_id="m5").seq == 5, "it had that one"
        assert manager.append("s", say(7), message_id="m7").seq == 6, "a number that was given before"
        assert manager.append("s", say(6), message_id="m6").seq == 7
        assert_context(manager.get_context("s"), [*talk(5), say(7), say(6)])
    replica.say("CONFIG", "SET", "masterauth", PASSWORD)
    replica.say("CONFIG", "REWRITE")  # Sentinel has had the other one written down
    before.start()
    assert waited_for(watched.is_settled)


def is_read(manager: MemoryManager) -> bool:
    with suppress(StoreUnavailableError):
        return bool(manager.get_context("s")["last_seq"])
    return False


def test_an_open_breaker_does_not_hide_a_failover(log: Backend, watched: Watched) -> None:
    manager = log.open(**SETTINGS)
    manager.append("s", say(1))
    before = watched.primary
    before.kill()
    number = 1
    while manager.circuit_breaker.get_state() == CircuitState.CLOSED and watched.primary is before:
        number += 1
        manager.append("s", say(number))
    assert manager.circuit_breaker.get_state() == CircuitState.OPEN
    assert waited_for(lambda: is_served(manager, "s"))
    assert watched.primary is not before
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED
    assert_context(manager.get_context("s"), talk(number))
    manager.circuit_breaker.force_open()
    assert manager.append("s", say(number + 1)).degraded is True, "an operator's word holds"
    assert manager.circuit_breaker.get_state() == CircuitState.FORCED_OPEN
    manager.circuit_breaker.reset()
    before.start()
    assert waited_for(watched.is_settled)


def test_a_sentinel_that_hangs_or_is_dead_is_passed_over(log: Backend, watched: Watched) -> None:
    hung, dead, _ = watched.sentinels
    dead.kill()
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        with pytest.raises(redis.TimeoutError):
            silent(hung)
        started = time.monotonic()
        for _ in range(3):
            manager = log.open(redis_timeout_seconds=4.0)
            assert manager.append("s", say(1), message_id="one").degraded is False
            assert is_served(manager, "s")
        assert time.monotonic() - started < 3 * 4.0 + 1, "each found the one that answers within its deadline"
    finally:
        os.kill(hung.pid, signal.SIGCONT)
        dead.start()


def silent(server: Server) -> None:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=server.port, socket_timeout=0.2, socket_connect_timeout=0.2, retry=once) as client:
        client.ping()


def test_no_sentinel_at_all_is_an_outage(log: Backend) -> None:
    with watched_primary(sentinels=1) as made:
        manager = log.open(redis_url=made.url, **SETTINGS)
        made.sentinels[0].kill()
        for number in range(1, 5):
            assert manager.append("s", say(number)).degraded is True
        assert manager.circuit_breaker.get_state() == CircuitState.OPEN
        assert manager.health().is_well("redis") is False
        alone = log.open(redis_url=made.url, database_url=None)
        with pytest.raises(RedisUnavailableError) as caught:
            alone.append("s", say(1))
        assert not isinstance(caught.value, CircuitOpenError)


def test_sentinels_that_hang_do_not_hold_up_an_open_breaker(log: Backend) -> None:
    with watched_primary(sentinels=1) as made:
        deadline = 2.0
        manager = log.open(redis_url=made.url, **(SETTINGS | {"redis_timeout_seconds": deadline}))
        manager.append("s", say(1))
        hung = [*made.nodes, *made.sentinels]
        for server in hung:
            os.kill(server.pid, signal.SIGSTOP)
        try:
            number = 1
            while manager.circuit_breaker.get_state() == CircuitState.CLOSED:
                number += 1
                assert manager.append("s", say(number)).degraded is True
            times = []
            opened = time.monotonic()
            while time.monotonic() - opened < 1.5 * deadline:
                started = time.monotonic()
                assert manager.append("s", say(number)).degraded is True
                times.append(time.monotonic() - started)
            with pytest.raises(redis.TimeoutError):
                silent(made.sentinels[0])
        finally:
            for server in hung:
                os.kill(server.pid, signal.SIGCONT)
        assert max(times) < deadline / 2


def test_wrong_settings_are_no_outage(log: Backend, watched: Watched) -> None:
    for url, problem in (
        (watched.url.replace(f"/{SERVICE}", "/another"), "no Sentinel watches a primary 'another'"),
        (watched.url.replace(PASSWORD, "wrong"), "check user, password"),
    ):
        manager = log.open(redis_url=url, database_url=None)
        with pytest.raises(StoreMisconfiguredError, match=problem):
            manager.append("s", say(1))
        assert manager.circuit_breaker.get_state() == CircuitState.CLOSED


def test_a_demoted_primary_is_not_believed(log: Backend, watched: Watched) -> None:
    """Whoever was made a replica past the Sentinels refuses writes; then they are asked, and the call goes on."""
    manager = log.open(**SETTINGS)
    manager.append("s", say(1))
    before = watched.primary
    other = next(server for server in watched.nodes if server is not before)
    for sentinel in watched.sentinels:
        sentinel.say("SENTINEL", "REMOVE", SERVICE)
    other.say("REPLICAOF", "NO", "ONE")
    before.say("REPLICAOF", "127.0.0.1", other.port)
    for sentinel in watched.sentinels:
        sentinel.say("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", other.port, 2)
        for name, value in (
            ("auth-pass", PASSWORD),
            ("down-after-milliseconds", DOWN_AFTER_MS),
            ("failover-timeout", 3000),
        ):
            sentinel.say("SENTINEL", "SET", SERVICE, name, value)
    assert waited_for(watched.is_settled)
    clients = before.info("stats")["total_error_replies"]
    receipt = manager.append("s", say(2))
    assert before.info("stats")["total_error_replies"] > clients, "the old primary was not asked"
    assert receipt.degraded is False
    assert watched.primary is other
    assert_context(manager.get_context("s"), talk(2))
    assert is_served(manager, "s")
