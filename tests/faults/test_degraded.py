"""Servers that die, hang and come back: what still works, what says so, and how long it takes."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from memory_contract import ASYNC, DURABLE, EPHEMERAL, SYNC, Backend, assert_context, logged, run_threads, say, talk
from server_faults import DATABASE_SECONDS, RECOVERY_SECONDS, REDIS_SECONDS, Outage, waited_for
from server_faults import SETTINGS as QUICK
from servers import PrivateServers
from sqlalchemy.engine import make_url
from vain_waits import VainWaits

from contract_engine.memory import (
    CircuitOpenError,
    CircuitState,
    DatabaseUnavailableError,
    MemoryConfig,
    MemoryManager,
    RedisUnavailableError,
    StoreUnavailableError,
)
from contract_engine.memory.hooks import OperationEnded, observers

pytest_plugins = ("memory_fixtures",)

SETTINGS = QUICK | {"database_breaker_recovery_seconds": RECOVERY_SECONDS}


@pytest.fixture(params=[SYNC, ASYNC])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def redis_outage(private_servers: PrivateServers, database_url: str, colour: str, tenant: str) -> Iterator[Outage]:
    """A Redis to harm, beside the PostgreSQL that all tests share."""
    servers = private_servers(postgres=False)
    backend = Backend(colour, DURABLE, servers.redis_url, database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        yield outage


@pytest.fixture
def database_outage(private_servers: PrivateServers, redis_url: str, colour: str, tenant: str) -> Iterator[Outage]:
    """A PostgreSQL to harm, beside the Redis that all tests share."""
    servers = private_servers(redis=False)
    backend = Backend(colour, DURABLE, redis_url, servers.database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        yield outage


@pytest.fixture
def ephemeral_outage(private_servers: PrivateServers, colour: str, tenant: str) -> Iterator[Outage]:
    """A Redis to harm, with nothing behind it."""
    servers = private_servers(postgres=False)
    backend = Backend(colour, EPHEMERAL, servers.redis_url, None, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        yield outage


def took(call: Callable[[], object]) -> float:
    """Return how many seconds a call took, whether or not it raised what an outage makes it raise."""
    started = time.monotonic()
    with suppress(StoreUnavailableError):
        call()
    return time.monotonic() - started


# -- Redis away


def test_without_redis_everything_goes_on_from_the_log(redis_outage: Outage) -> None:
    manager = redis_outage.open(max_buffer_messages=6)
    said = talk(10)
    for message in said:
        manager.add_message("s", message)
        manager.wait_for_folds()  # one that meets an append may give up the copy in Redis
    manager.save_context("s", {"session_id": "s", "note": 1})
    before = manager.get_context("s")
    assert (before["source"], before["degraded"]) == ("redis", False)

    redis_outage.kill_redis()
    during = manager.get_context("s")
    assert (during["source"], during["degraded"]) == ("postgres", True)
    for key in ("buffer_messages", "current_summary", "watermark", "last_seq", "total_tokens", "summary_version"):
        assert during[key] == before[key]
    for number in range(11, 31):
        said.append(say(number))
        assert manager.add_message("s", say(number)) is True
        context = manager.get_context("s")
        assert_context(context, said)
        assert context["degraded"] is True
    receipt = manager.append("s", say(31), message_id="m")
    assert (receipt.seq, receipt.durable, receipt.degraded) == (31, True, True)
    assert manager.append("s", say(31), message_id="m").seq == 31
    said.append(say(31))
    said += talk(2, start=32)
    assert [receipt.seq for receipt in manager.add_messages("s", talk(2, start=32))] == [32, 33]
    said.append(say(34))
    turn = manager.add_and_get_context("s", say(34))
    assert_context(turn, said)
    assert turn["degraded"] is True
    assert manager.circuit_breaker.get_state() != CircuitState.CLOSED

    manager.set_session_config("s", {"max_buffer_messages": 4})
    context = manager.get_context("s")
    assert_context(context, said)
    assert context["message_count"] <= 4
    assert manager.get_session_config("s")["max_buffer_messages"] == 4
    assert manager.load_context("s").note == 1  # type: ignore[union-attr]  # it was saved
    assert manager.save_context("s", {"session_id": "s", "note": 2}) is True
    assert manager.summary_store.add_summary("s", "Said while Redis was away.") is True
    assert "while Redis was away" in (manager.summary_store.get_current_summary("s") or "")
    assert manager.summary_store.get_summary_stats("s")["redis_ttl"] is None
    stats = manager.get_memory_stats("s")
    assert stats["is_redis_available"] is False
    assert stats["redis_memory"] is None
    assert stats["degraded"] is True
    assert manager.buffer_store.get_messages("s") == manager.get_context("s")["buffer_messages"]
    assert manager.is_available() is True
    health = manager.health()
    assert (health.status, health.is_well("redis"), health.is_well("postgres")) == ("degraded", False, True)
    assert health.breakers["redis"] in ("open", "half_open")


def test_when_redis_is_back_the_buffers_heal(redis_outage: Outage) -> None:
    manager, other = redis_outage.open(), redis_outage.open()
    for session_id in ("s", "t"):
        manager.add_messages(session_id, talk(3))
        assert other.get_context(session_id)["source"] == "redis"
    redis_outage.kill_redis()
    for number in (4, 5):
        assert manager.append("s", say(number)).degraded is True
    redis_outage.servers.start()
    assert waited_for(lambda: not manager.append("u", say(1)).degraded), "the breaker lets a probe through"
    for session_id, count in (("s", 5), ("t", 3)):
        first = manager.get_context(session_id)
        assert_context(first, talk(count))
        assert (first["source"], first["degraded"]) == ("postgres", False), "Redis came back empty"
        for one in (manager, other):
            assert waited_for(lambda one=one, session_id=session_id: not one.get_context(session_id)["degraded"])  # type: ignore[misc]  # bound as defaults
            context = one.get_context(session_id)
            assert_context(context, talk(count))
            assert context["source"] == "redis"
    assert other.append("s", say(6)).seq == 6
    assert_context(manager.get_context("s"), talk(6))
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED
    assert manager.health().status == "healthy"


def test_a_redis_that_was_only_unreachable_holds_old_buffers(redis_outage: Outage) -> None:
    """It comes back with what it had: the messages written meanwhile are missing there, and must not be missed."""
    manager, other = redis_outage.open(), redis_outage.open()
    manager.add_messages("s", talk(3))
    manager.add_messages("t", talk(3))
    redis_outage.stop_redis()
    for session_id in ("s", "t"):
        assert manager.append(session_id, say(4)).degraded is True
    redis_outage.go_on()
    assert waited_for(lambda: not manager.append("u", say(1)).degraded)
    # Whoever wrote them never believes the old copy.
    assert_context(manager.get_context("s"), talk(4))
    # Others see them as soon as it has touched the session.
    assert_context(other.get_context("s"), talk(4))
    assert other.append("t", say(5)).seq == 5
    assert_context(other.get_context("t"), talk(5))
    assert_context(manager.get_context("t"), talk(5))


def test_clearing_needs_redis_and_says_so(redis_outage: Outage) -> None:
    manager, other = redis_outage.open(), redis_outage.open()
    manager.add_messages("s", talk(3))
    redis_outage.stop_redis()
    assert manager.clear_session_memory("s") is False
    redis_outage.go_on()
    # What this process knows to be erased it does not show, even before it is asked again.
    assert waited_for(lambda: manager.health().is_well("redis"))
    assert_context(manager.get_context("s"), [])
    assert manager.clear_session_memory("s") is True
    assert waited_for(lambda: other.health().is_well("redis"))
    assert_context(other.get_context("s"), [])


def test_a_hung_redis_costs_its_deadline_and_then_next_to_nothing(redis_outage: Outage) -> None:
    manager = redis_outage.open(breaker_recovery_seconds=60.0)
    manager.add_messages("s", talk(3))
    redis_outage.stop_redis()
    slow: list[float] = []
    while manager.circuit_breaker.get_state() != CircuitState.OPEN:
        slow.append(took(lambda: manager.append("s", say(4, words=len(slow)))))
        assert len(slow) < 10, "the breaker never opens"
    assert len(slow) >= 2
    # The last one may find the breaker opened by what goes on in the background.
    assert sorted(slow)[-2] > REDIS_SECONDS / 2, "the server was not hung"
    fast = [took(lambda: manager.add_message("s", say(5))) for _ in range(20)]
    fast += [took(lambda: manager.get_context("s")) for _ in range(20)]
    assert sorted(fast)[20] * 5 < sorted(slow)[len(slow) // 2]
    assert manager.circuit_breaker.snapshot().rejected >= 40
    redis_outage.go_on()


CALLS: dict[str, Callable[[Any], Any]] = {
    "append": lambda manager: manager.append("s", say(4)),
    "get_context": lambda manager: manager.get_context("s"),
    "pin": lambda manager: manager.pin("s", "m"),
}
"""One of each kind; what each operation waits for is in ``test_waits``."""


def test_as_many_calls_wait_for_a_hung_database_as_the_breaker_takes_failures(database_outage: Outage) -> None:
    failures = MemoryConfig().breaker_failure_threshold
    manager = database_outage.open(breaker_failure_threshold=failures, database_breaker_recovery_seconds=60.0)
    manager.append("s", say(1))
    waits = VainWaits(manager)
    database_outage.stop_database()
    own = [waits.call(lambda one, number=number: one.append("s", say(2 + number)))[0] for number in range(12)]  # type: ignore[misc]  # bound as a default
    assert manager.database_breaker.get_state() == CircuitState.OPEN
    database_outage.go_on()
    in_background = waits.total - sum(own)
    assert own == [1] * (failures - in_background) + [0] * (12 - failures + in_background)


@pytest.mark.parametrize("name", CALLS)
def test_as_many_calls_wait_for_a_hung_redis_as_the_breaker_takes_failures(redis_outage: Outage, name: str) -> None:
    """With the settings of a new manager: five waits in all, and then none."""
    failures = MemoryConfig().breaker_failure_threshold
    assert failures == 5
    manager = redis_outage.open(breaker_failure_threshold=failures, breaker_recovery_seconds=60.0)
    manager.add_messages("s", talk(3))
    manager.append("s", say(3), message_id="m")
    waits = VainWaits(manager)
    redis_outage.stop_redis()
    own = []
    while manager.circuit_breaker.get_state() != CircuitState.OPEN:
        own.append(waits.call(CALLS[name])[0])
        assert len(own) <= failures, "the breaker never opens"
    after = [waits.call(call) for call in CALLS.values()]
    redis_outage.go_on()
    assert manager.circuit_breaker.get_state() == CircuitState.OPEN
    assert own[0] >= 1, "it did not hang"
    assert set(after) == {(0, 0)}, "a call has waited although the breaker was open"
    # One that had begun to wait in the background when the breaker opened is one more.
    assert failures <= waits.total <= failures + 1


def test_a_dead_port_is_found_out_at_once(database_url: str, tenant: str, colour: str) -> None:
    """The first call tells within 50 ms, without retries; the median of ten, for the machine may stand still."""
    with socket.socket() as bound:  # and does not listen, so that a connection is refused
        bound.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}/0"
        with closing(Backend(colour, EPHEMERAL, url, None, tenant)) as backend:
            alone = [backend.open(breaker_failure_threshold=1) for _ in range(10)]

            def fail(manager: MemoryManager) -> None:
                with pytest.raises(RedisUnavailableError) as caught:
                    manager.append("s", say(1))
                assert not isinstance(caught.value, CircuitOpenError)

            assert statistics.median(took(partial(fail, one)) for one in alone) < 0.05
            assert all(one.circuit_breaker.get_state() == CircuitState.OPEN for one in alone)


def test_a_hung_redis_is_used_again_when_it_goes_on(redis_outage: Outage) -> None:
    manager = redis_outage.open()
    manager.add_messages("s", talk(3))
    redis_outage.stop_redis()
    for number in range(4, 10):
        assert manager.add_message("s", say(number)) is True
    context = manager.get_context("s")
    assert_context(context, talk(9))
    assert context["degraded"] is True
    assert manager.circuit_breaker.get_state() != CircuitState.CLOSED
    redis_outage.go_on()
    assert waited_for(lambda: not manager.get_context("s")["degraded"])
    for _ in range(2):
        context = manager.get_context("s")
        assert_context(context, talk(9))
    assert context["source"] == "redis"
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED


def test_threads_on_a_hung_redis_each_keep_the_deadline(
    private_servers: PrivateServers, database_url: str, tenant: str
) -> None:
    servers = private_servers(postgres=False)
    backend = Backend(SYNC, DURABLE, servers.redis_url, database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        manager = outage.open(breaker_recovery_seconds=60.0)
        manager.add_messages("s", talk(3))
        outage.stop_redis()
        times: list[float] = []
        run_threads(16, lambda _: times.append(took(lambda: manager.get_context("s"))))
        assert len(times) == 16
        assert max(times) < 2 * REDIS_SECONDS + 1.0
        assert manager.circuit_breaker.get_state() == CircuitState.OPEN


def test_without_a_log_a_dead_redis_is_an_error_and_never_an_empty_session(ephemeral_outage: Outage) -> None:
    manager = ephemeral_outage.open()
    manager.add_messages("s", talk(3))
    ephemeral_outage.kill_redis()
    for call in (
        lambda: manager.get_context("s"),
        lambda: manager.append("s", say(4)),
        lambda: manager.add_messages("s", talk(2)),
        lambda: manager.add_and_get_context("s", say(4)),
        lambda: manager.get_session_config("s"),
        lambda: manager.set_session_config("s", {"max_buffer_messages": 4}),
        lambda: manager.load_context("s"),
        lambda: manager.get_memory_stats("s"),
        lambda: manager.buffer_store.get_messages("s"),
        lambda: manager.buffer_store.get_buffer_info("s"),
        lambda: manager.summary_store.get_current_summary("s"),
        lambda: manager.summary_store.get_summary_history("s"),
        lambda: manager.summary_store.get_summary_stats("s"),
    ):
        with pytest.raises(RedisUnavailableError) as caught:
            call()
        assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value, CircuitOpenError)
    assert manager.add_message("s", say(4)) is False
    assert manager.buffer_store.add_message("s", say(4)) is False
    assert manager.buffer_store.clear_buffer("s") is False
    assert manager.save_context("s", {"session_id": "s"}) is False
    assert manager.summary_store.add_summary("s", "text") is False
    assert manager.summary_store.clear_summaries("s") is False
    assert manager.clear_session_memory("s") is False
    assert manager.is_available() is False
    assert manager.health().status == "unhealthy"
    ephemeral_outage.servers.start()
    assert waited_for(manager.is_available)
    assert_context(manager.get_context("s"), [])
    assert manager.append("s", say(1)).seq == 1


# -- PostgreSQL away


def test_without_the_log_messages_and_contexts_go_on_and_nothing_else(database_outage: Outage) -> None:
    manager = database_outage.open()
    for number in (1, 2, 3):
        manager.append("s", say(number), message_id=f"id{number}")
    manager.summary_store.add_summary("s", "Something.")
    assert_context_of_three(manager.get_context("s"))
    database_outage.kill_database()
    for call in (
        lambda: manager.set_session_config("s", {"max_buffer_messages": 4}),
        lambda: manager.load_context("s"),
        lambda: manager.session_store.get_chat_history("s"),
        lambda: manager.summary_store.get_summary_history("s"),
        lambda: manager.get_context("never read before"),
    ):
        with pytest.raises(DatabaseUnavailableError) as caught:
            call()
        assert isinstance(caught.value, ConnectionError)
        assert "password" not in str(caught.value).lower()
    assert manager.save_context("s", {"session_id": "s"}) is False
    assert manager.summary_store.add_summary("s", "text") is False
    context = manager.get_context("s")
    assert_context_of_three(context)
    assert context["source"] == "redis"
    assert manager.get_session_config("s")["max_buffer_messages"] == 30
    assert manager.clear_session_memory("other") is False
    assert manager.is_available() is True
    health = manager.health()
    assert (health.status, health.is_well("redis"), health.is_well("postgres")) == ("degraded", True, False)
    assert health.breakers["postgres"] == "open"
    receipt = manager.append("s", say(4), message_id="id4")
    assert (receipt.seq, receipt.durable, receipt.degraded) == (4, False, True)
    assert manager.append("s", say(3), message_id="id3").seq == 3, "in the log and in the buffer already"
    assert manager.get_context("s")["last_seq"] == 4
    assert manager.circuit_breaker.get_state() == CircuitState.CLOSED, "it guards Redis"

    database_outage.servers.start()
    assert waited_for(lambda: manager.wait_for_folds() and manager.get_context("s")["degraded"] is False)
    assert manager.append("s", say(4), message_id="id4").seq == 4, "nothing of the failed calls was stored"
    context = manager.get_context("s")
    assert context["buffer_messages"] == talk(4)
    url = database_outage.servers.database_url
    assert logged(url, database_outage.backend.tenant, "s") == list(enumerate(talk(4), start=1))


def test_a_search_index_that_hangs_is_nobody_elses_matter(database_outage: Outage) -> None:
    """Somebody rebuilds it under a lock: the recall gives up after a few deadlines, and the rest does not notice."""
    manager = database_outage.open(max_buffer_messages=20)
    manager.add_messages("s", talk(40))
    manager.wait_for_folds()
    assert manager.get_context("s", "detail 3")["recalled"]
    said, outcomes = 40, []
    stop = observers.add(
        lambda detail: (
            outcomes.append(detail.outcome)
            if isinstance(detail, OperationEnded) and detail.operation == "search"
            else None
        )
    )
    url = make_url(database_outage.servers.database_url).set(drivername="postgresql")
    try:
        with psycopg.connect(url.render_as_string(hide_password=False)) as holder:
            holder.execute("LOCK TABLE memory_recall")
            for _ in range(8):
                said += 1
                assert manager.append("s", say(said)).durable is True
                context = manager.get_context("s", "detail 3")
                assert (context["recall_available"], context["recalled"]) == (False, [])
                assert (context["last_seq"], context["degraded"]) == (said, False)
                assert manager.get_session_config("s")["max_buffer_messages"] == 20
            assert manager.database_breaker.snapshot().failed == 0
            holder.rollback()
    finally:
        stop()
    assert set(outcomes) == {"deadline", "rejected"}
    assert 1 <= outcomes.count("deadline") <= 5, outcomes
    assert waited_for(lambda: manager.get_context("s", "detail 3")["recalled"])
    assert manager.database_breaker.get_state() == CircuitState.CLOSED


def assert_context_of_three(context: dict[str, Any]) -> None:
    assert context["buffer_messages"] == talk(3)
    assert context["current_summary"] == "Something."


def append_to(manager: MemoryManager, number: int, said: int) -> None:
    manager.append(f"t{number}", say(said))


def test_idle_connections_survive_a_restart_of_the_database(database_outage: Outage) -> None:
    manager = database_outage.open()
    if database_outage.backend.colour == SYNC:
        run_threads(6, lambda number: append_to(manager, number, 1))
    manager.add_messages("s", talk(3))
    manager.set_session_config("s", {"max_buffer_messages": 20})
    database_outage.kill_database()
    database_outage.servers.start()
    # The first call of each kind finds dead connections, and nobody learns of it.
    assert manager.append("s", say(4)).seq == 4
    database_outage.kill_database()
    database_outage.servers.start()
    manager.set_session_config("s", {"max_buffer_messages": 10})
    if database_outage.backend.colour == SYNC:
        database_outage.kill_database()
        database_outage.servers.start()
        run_threads(6, lambda number: append_to(manager, number, 2))
    assert_context(manager.get_context("s"), talk(4))
    assert manager.get_session_config("s")["max_buffer_messages"] == 10


def test_a_clearing_that_failed_takes_nothing_away(database_outage: Outage) -> None:
    """The log refused the connection, so nothing was erased: what Redis has goes on being read, by everybody."""
    manager, other = database_outage.open(), database_outage.open()
    manager.add_messages("s", talk(3))
    assert_context(other.get_context("s"), talk(3))
    database_outage.kill_database()
    assert manager.clear_session_memory("s") is False
    for one in (manager, other):
        assert_context(one.get_context("s"), talk(3))


def test_terminated_backends_are_replaced_in_silence(database_outage: Outage) -> None:
    manager = database_outage.open()
    manager.add_messages("s", talk(3))
    for round_number in range(3):
        assert database_outage.terminate_backends() >= 1
        assert waited_for(lambda: database_outage.backends() == 0)
        if round_number == 0:
            assert manager.append("s", say(4)).seq == 4
        elif round_number == 1:
            manager.set_session_config("s", {"max_buffer_messages": 10})
        else:
            assert manager.session_store.get_chat_history("s") == talk(4)


def test_a_hung_database_costs_its_deadline(database_outage: Outage) -> None:
    manager = database_outage.open()
    manager.add_messages("s", talk(3))
    manager.set_session_config("s", {"max_buffer_messages": 20})
    assert_context(manager.get_context("s"), talk(3))
    assert_context(manager.get_context("s"), talk(3))
    database_outage.stop_database()
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: manager.append("s", say(4), message_id="id4"),
        "transaction": lambda: manager.set_session_config("s", {"max_buffer_messages": 5}),
        "transaction again": lambda: manager.clear_session_memory("other"),
        "health": manager.health,
    }
    times = {name: took(call) for name, call in calls.items()}
    # A new connection takes libpq's limit, whole seconds and never less than two.
    assert {name: seconds for name, seconds in times.items() if seconds > 2 * DATABASE_SECONDS + 2.5} == {}
    assert times["append"] > DATABASE_SECONDS / 2, "the server was not hung"
    assert_context(manager.get_context("s"), talk(4))

    database_outage.go_on()
    assert waited_for(lambda: manager.health().is_well("postgres"))
    # Whether the call that ran into the deadline took effect is unknown: the same id makes sure that it does once.
    again = manager.append("s", say(4), message_id="id4")
    assert (again.seq, again.message_id, again.durable) == (4, "id4", True)
    rows = logged(database_outage.servers.database_url, database_outage.backend.tenant, "s")
    assert rows == list(enumerate(talk(4), start=1))
    assert_context(manager.get_context("s"), talk(4))


# -- both away


def test_with_both_away_nothing_is_acknowledged(private_servers: PrivateServers, colour: str, tenant: str) -> None:
    servers = private_servers()
    backend = Backend(colour, DURABLE, servers.redis_url, servers.database_url, tenant)
    with closing(Outage(servers, backend, SETTINGS)) as outage:
        manager = outage.open()
        manager.add_messages("s", talk(3))
        outage.kill_redis()
        outage.kill_database()
        for call in (
            lambda: manager.append("s", say(4)),
            lambda: manager.get_context("s"),
            lambda: manager.add_and_get_context("s", say(4)),
            lambda: manager.get_session_config("s"),
            lambda: manager.get_memory_stats("s"),
            lambda: manager.buffer_store.get_messages("s"),
            lambda: manager.summary_store.get_current_summary("s"),
        ):
            with pytest.raises(StoreUnavailableError):
                call()
        assert manager.add_message("s", say(4)) is False
        assert manager.save_context("s", {"session_id": "s"}) is False
        assert manager.clear_session_memory("s") is False
        assert manager.is_available() is False
        assert manager.health().status == "unhealthy"
        servers.start()
        assert waited_for(lambda: manager.health().status == "healthy")
        assert_context(manager.get_context("s"), talk(3))
        assert logged(servers.database_url, tenant, "s") == list(enumerate(talk(3), start=1))
        assert manager.append("s", say(4)).seq == 4
        assert_context(manager.get_context("s"), talk(4))
