"""A network that loses replies, is slow, falls silent or refuses, between managers and either of their servers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memory_contract import EPHEMERAL, assert_context, say, talk
from network_path import BOTH_COLOURS, EITHER_SERVER, POSTGRES, REDIS, ROOM, WIDE_SECONDS, Paths, paths_of
from server_faults import DATABASE_SECONDS, REDIS_SECONDS, SETTINGS, waited_for

from contract_engine.memory import CircuitState, MemoryManager, Receipt, RedisUnavailableError

pytest_plugins = ("memory_fixtures",)


@pytest.fixture
def paths(redis_url: str, database_url: str, tenant: str) -> Iterator[Paths]:
    with paths_of(redis_url, database_url, tenant) as found:
        yield found


# -- the reply is lost, the request was served


def append_with_id(manager: MemoryManager) -> list[Receipt]:
    return [manager.append("s", say(4), message_id="m4")]


def append(manager: MemoryManager) -> list[Receipt]:
    return [manager.append("s", say(4))]


def add_messages(manager: MemoryManager) -> list[Receipt]:
    return manager.add_messages("s", talk(3, start=4))


def add_and_get_context(manager: MemoryManager) -> list[Receipt]:
    assert_context(manager.add_and_get_context("s", say(4), message_id="m4"), talk(4))
    return []


_TEXT = say(4)["content"].encode()
FOURTH = (_TEXT, _TEXT.hex().encode())
"""What a request holds that brings the fourth message; PostgreSQL is given a batch in hexadecimal digits."""

OPERATIONS: dict[Callable[[MemoryManager], list[Receipt]], int] = {
    append_with_id: 1,
    append: 1,
    add_messages: 3,
    add_and_get_context: 1,
}
"""And how many messages each adds."""


@BOTH_COLOURS
@EITHER_SERVER
@pytest.mark.parametrize("loss", ["kept connection", "and the next", "new connection"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_lost_reply_loses_and_doubles_nothing(
    paths: Paths, server: str, colour: str, loss: str, operation: Callable[[MemoryManager], list[Receipt]]
) -> None:
    """On a kept connection the manager asks again; a new one that breaks is an outage, and the other server goes on."""
    path = paths(server, colour)
    said = talk(3 + OPERATIONS[operation])
    path.beside.add_messages("s", talk(3))
    manager = path.open()
    if loss != "new connection":
        assert_context(manager.add_and_get_context("other", say(1)), talk(1))
    resets = 2 if loss == "and the next" else 1
    path.proxy.reset_replies(resets, to=FOURTH)
    receipts = operation(manager)
    assert path.proxy.resets == resets
    assert [receipt.seq for receipt in receipts] == list(range(4, 4 + len(receipts)))
    is_hidden = loss == "kept connection"
    for receipt in receipts:
        assert receipt.degraded is not is_hidden
        assert receipt.durable is (is_hidden or server == REDIS)
    assert_context(manager.get_context("s"), said)
    if operation in (append_with_id, add_and_get_context):
        again = manager.append("s", say(4), message_id="m4")
        assert (again.seq, again.message_id, again.durable, again.degraded) == (4, "m4", True, False)
    elif server == POSTGRES and not is_hidden:
        manager.drain("s")
    manager.wait_for_folds()
    assert path.rows() == said
    assert_context(manager.get_context("s"), said)
    assert_context(path.beside.get_context("s"), said)
    assert path.proxy.resets == resets


@BOTH_COLOURS
@pytest.mark.parametrize("loss", ["kept connection", "new connection"])
def test_a_lost_reply_without_a_log(paths: Paths, colour: str, loss: str) -> None:
    """Redis alone numbers the messages: the manager asks again by id, or the caller is told and does so."""
    path = paths(REDIS, colour, mode=EPHEMERAL)
    path.beside.add_messages("s", talk(3))
    manager = path.open()
    if loss == "kept connection":
        manager.get_context("s")
    path.proxy.reset_replies(to=FOURTH)
    if loss == "kept connection":
        assert manager.append("s", say(4)).seq == 4
    else:
        with pytest.raises(RedisUnavailableError):
            manager.append("s", say(4), message_id="m4")
        assert manager.append("s", say(4), message_id="m4").seq == 4
    assert path.proxy.resets == 1
    assert manager.append("s", say(5)).seq == 5
    assert_context(manager.get_context("s"), talk(5))


# -- the network is slow


@BOTH_COLOURS
@pytest.mark.parametrize("milliseconds", [1, 10, 50])
def test_a_call_waits_for_redis_once(paths: Paths, colour: str, milliseconds: int) -> None:
    path = paths(REDIS, colour)
    manager = path.open(**ROOM)
    proxy = path.proxy
    said = talk(3)
    manager.add_messages("s", said)
    manager.get_context("s")

    def add() -> None:
        said.append(say(len(said) + 1))
        assert manager.add_message("s", said[-1]) is True

    def read() -> None:
        context = manager.get_context("s")
        assert_context(context, said)
        assert context["source"] == "redis"

    def add_and_read() -> None:
        said.append(say(len(said) + 1))
        assert_context(manager.add_and_get_context("s", said[-1]), said)

    def seconds(call: Callable[[], None]) -> float:
        """Return the median of a few calls, each of which must cost one round trip."""
        times = []
        for _ in range(11):
            before = proxy.requests, proxy.round_trips
            started = time.monotonic()
            call()
            times.append(time.monotonic() - started)
            assert (proxy.requests - before[0], proxy.round_trips - before[1]) == (1, 1)
        return statistics.median(times)

    latency = milliseconds / 1000
    for call in (add, read, add_and_read):
        near = seconds(call)
        proxy.delay(latency)
        far = seconds(call)
        proxy.heal()
        assert far > latency, "the delay was there"
        if milliseconds == 50:
            assert far - near < 2 * latency
    assert proxy.connections == 1
    assert path.rows() == said


# -- the network falls silent


def talk_on(manager: MemoryManager, said: list[dict[str, Any]], *, served_by: str) -> list[float]:
    """Say and read ten more messages with one server left, which says so each time; answers how long each call took."""
    times = []
    for number in range(len(said) + 1, len(said) + 11):
        started = time.monotonic()
        receipt = manager.append("s", say(number), message_id=f"m{number}")
        times.append(time.monotonic() - started)
        said.append(say(number))
        assert (receipt.seq, receipt.durable, receipt.degraded) == (number, served_by == POSTGRES, True)
        started = time.monotonic()
        context = manager.get_context("s")
        times.append(time.monotonic() - started)
        assert_context(context, said)
        assert (context["source"], context["degraded"]) == (served_by, True)
    return times


@BOTH_COLOURS
@pytest.mark.parametrize("is_serving", [True, False], ids=["requests arrive", "requests are lost"])
def test_a_silent_redis(paths: Paths, colour: str, *, is_serving: bool) -> None:
    """No FIN and no reply, on old connections and new ones: each call keeps its deadline, and the log answers."""
    path = paths(REDIS, colour)
    manager = path.open(**SETTINGS)
    said = talk(5)
    manager.add_messages("s", said)
    assert manager.get_context("s")["source"] == "redis"
    path.proxy.go_silent(is_serving=is_serving)
    times = talk_on(manager, said, served_by=POSTGRES)
    assert path.proxy.swallowed > 0
    assert manager.circuit_breaker.get_state() != CircuitState.CLOSED
    assert max(times) >= REDIS_SECONDS
    assert max(times) < 2 * REDIS_SECONDS + WIDE_SECONDS
    path.proxy.heal()
    assert waited_for(lambda: manager.health().is_well("redis"))
    assert waited_for(lambda: manager.get_context("s")["source"] == "redis")
    assert_context(manager.get_context("s"), said)
    assert_context(path.beside.get_context("s"), said)
    assert path.rows() == said


@BOTH_COLOURS
@pytest.mark.parametrize("is_serving", [True, False], ids=["requests arrive", "requests are lost"])
def test_a_silent_database(paths: Paths, colour: str, *, is_serving: bool) -> None:
    """Appends go on in Redis; those the log has got in spite of it are there once."""
    path = paths(POSTGRES, colour)
    manager = path.open(**(SETTINGS | {"database_breaker_recovery_seconds": 0.3}))
    said = talk(5)
    manager.add_messages("s", said)
    path.proxy.go_silent(is_serving=is_serving)
    times = talk_on(manager, said, served_by=REDIS)
    assert path.proxy.swallowed > 0
    assert manager.database_breaker.get_state() != CircuitState.CLOSED
    assert max(times) >= DATABASE_SECONDS
    # libpq counts a deadline for connecting in whole seconds, and takes one for two.
    assert max(times) < 3 * DATABASE_SECONDS + WIDE_SECONDS
    path.proxy.heal()
    assert waited_for(lambda: manager.append("s", say(16), message_id="m16").durable)
    said.append(say(16))
    manager.wait_for_folds()
    assert path.rows() == said
    assert_context(manager.get_context("s"), said)
    assert_context(path.beside.get_context("s"), said)
    assert manager.get_context("s")["degraded"] is False


@BOTH_COLOURS
@EITHER_SERVER
def test_a_port_that_refuses(paths: Paths, server: str, colour: str) -> None:
    path = paths(server, colour)
    manager = path.open(**(SETTINGS | {"database_breaker_recovery_seconds": 0.3}))
    said = talk(5)
    manager.add_messages("s", said)
    path.proxy.refuse()
    for number in range(6, 12):
        receipt = manager.append("s", say(number))
        said.append(say(number))
        assert (receipt.seq, receipt.durable, receipt.degraded) == (number, server == REDIS, True)
        assert_context(manager.get_context("s"), said)
    breaker = manager.circuit_breaker if server == REDIS else manager.database_breaker
    assert breaker.get_state() != CircuitState.CLOSED
    connections = path.proxy.connections
    path.proxy.heal()
    assert waited_for(lambda: manager.health().is_well(server))
    said.append(say(12))
    assert manager.append("s", said[-1]).durable is True
    manager.wait_for_folds()
    assert path.proxy.connections > connections
    assert_context(manager.get_context("s"), said)
    assert_context(path.beside.get_context("s"), said)
    assert path.rows() == said
