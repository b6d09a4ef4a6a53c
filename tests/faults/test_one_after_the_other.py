"""Outages that meet: of one server while it matters what became of the other, and of callers that want all of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from crash_matrix import Interposition, name_of
from memory_contract import ASYNC, DURABLE, SYNC, Backend, assert_context, logged, run_threads, say, talk
from server_faults import Outage, waited_for

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import AsyncMemoryManager, CircuitState, MemoryManager

OPEN_SECONDS = 0.3
QUICK = {"database_breaker_recovery_seconds": OPEN_SECONDS}
CALLERS = 64


@contextmanager
def outage_of(colour: str, tenant: str, *, persist_redis: bool = False) -> Iterator[Outage]:
    with EmbeddedServers(persist_redis=persist_redis) as servers:
        backend = Backend(colour, DURABLE, servers.redis_url, servers.database_url, tenant)
        with closing(Outage(servers, backend)) as found:
            yield found


@pytest.fixture(params=[SYNC, ASYNC])
def outage(request: pytest.FixtureRequest, tenant: str) -> Iterator[Outage]:
    """Both colours, on servers of their own."""
    with outage_of(request.param, tenant, persist_redis=True) as found:
        yield found


@pytest.fixture
def blocking(tenant: str) -> Iterator[Outage]:
    """Managers that threads may share."""
    with outage_of(SYNC, tenant, persist_redis=True) as found:
        yield found


def texts(context: dict[str, Any]) -> list[dict[str, Any]]:
    return list(context["buffer_messages"])


def test_messages_go_on_behind_one_that_the_buffer_lacks(outage: Outage) -> None:
    """Redis misses messages, then PostgreSQL dies: the session begins anew in Redis, once, and grows there."""
    manager, other = outage.open(**QUICK), outage.open(**QUICK)
    manager.add_messages("s", talk(3))
    outage.stop_redis()
    for number in range(4, 8):
        assert manager.append("s", say(number)).degraded is True
    outage.kill_database()
    outage.go_on()
    assert waited_for(lambda: manager.health().is_well("redis"))
    shown = []
    for number in range(8, 14):
        receipt = manager.append("s", say(number))
        assert receipt.durable is False
        shown.append(say(number))
        for reader in (manager, other):
            context = reader.get_context("s")
            assert (texts(context), context["complete"], context["degraded"]) == (shown, False, True)
    outage.restart_database()
    assert waited_for(lambda: not manager.get_context("s")["degraded"])
    assert_context(manager.get_context("s"), talk(13))


def test_what_waits_in_redis_is_missed_while_redis_is_away(outage: Outage) -> None:
    """The log lacks what this process has appended to Redis alone, and the answer says that something is missing."""
    manager = outage.open(**QUICK)
    manager.add_messages("s", talk(2))
    outage.kill_database()
    assert "wait in Redis" in manager.health().detail
    for number in (3, 4, 5):
        assert manager.append("s", say(number)).durable is False
    outage.restart_database()
    outage.stop_redis()
    assert waited_for(lambda: manager.health().is_well("postgres"))
    context = manager.get_context("s")
    assert (texts(context), context["source"], context["complete"]) == (talk(2), "postgres", False)
    assert manager.append("s", say(6)).durable is True
    assert manager.get_context("s")["complete"] is False
    outage.go_on()
    assert waited_for(lambda: manager.get_context("s")["source"] == "redis" and manager.append("s", say(7)).durable)
    context = manager.get_context("s")
    assert context["complete"] is True
    rows = [message for _, message in logged(outage.servers.database_url, outage.backend.tenant, "s")]
    assert sorted(str(row) for row in rows if row != say(7)) == sorted(map(str, talk(6)))
    assert_context(context, rows)


def test_telling_redis_of_a_change_leaves_what_waits_there(outage: Outage) -> None:
    """One process could not tell Redis of a message; another has messages waiting there since, and goes on reading."""
    teller, other = outage.open(**QUICK), outage.open(**QUICK)
    teller.add_messages("s", talk(3))
    teller.add_messages("x", talk(2))
    assert_context(other.get_context("s"), talk(3))
    teller.circuit_breaker.force_open()
    assert teller.append("s", say(4)).degraded is True
    outage.kill_database()
    teller.circuit_breaker.reset()
    assert other.append("s", say(5)).durable is False
    assert waited_for(lambda: teller.get_context("x")["source"] == "redis")
    teller.wait_for_folds()
    for manager in (other, teller):
        context = manager.get_context("s")
        assert (texts(context), context["degraded"]) == ([*talk(3), say(5)], True)
        assert context["complete"] is False, "what is missing is known by now"
    outage.restart_database()
    assert waited_for(lambda: not teller.get_context("s")["degraded"])
    assert_context(teller.get_context("s"), talk(5))


@pytest.mark.parametrize("colour", [SYNC, ASYNC])
def test_more_callers_than_connections_on_a_stopped_database(tenant: str, colour: str) -> None:
    """All of them go on in Redis: after one deadline, or two where a connection had to be opened at its end."""
    with outage_of(colour, tenant) as outage:
        settings = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 2.0, "database_pool_size": 8}
        manager = outage.open(**settings)
        at_once = _threads if colour == SYNC else _tasks
        assert all(durable for durable, _ in at_once(outage.backend, manager))
        outage.stop_database()
        try:
            answers = at_once(outage.backend, manager)
        finally:
            outage.go_on()
        assert [durable for durable, _ in answers] == [False] * CALLERS
        waited = sorted(seconds for _, seconds in answers)
        assert waited[CALLERS // 2] < 1.6 * settings["database_timeout_seconds"]
        assert waited[-1] < 2.6 * settings["database_timeout_seconds"]
        assert manager.database_breaker.get_state() != CircuitState.CLOSED


def _threads(_: Backend, manager: MemoryManager) -> list[tuple[bool, float]]:
    answers: list[tuple[bool, float]] = []

    def append(number: int) -> None:
        started = time.monotonic()
        durable = manager.append(f"s{number}", say(1)).durable
        answers.append((durable, time.monotonic() - started))

    run_threads(CALLERS, append)
    return answers


def _tasks(backend: Backend, manager: MemoryManager) -> list[tuple[bool, float]]:
    view: Any = manager
    target: AsyncMemoryManager = view._target

    async def append(number: int) -> tuple[bool, float]:
        started = time.monotonic()
        durable = (await target.append(f"s{number}", say(1))).durable
        return durable, time.monotonic() - started

    async def at_once() -> list[tuple[bool, float]]:
        return list(await asyncio.gather(*map(append, range(CALLERS))))

    assert backend.loop is not None
    answers: list[tuple[bool, float]] = backend.loop.run_until_complete(at_once())
    return answers


def test_large_messages_that_wait_are_logged_a_few_at_a_time(outage: Outage) -> None:
    """A round of a drain is as many messages as are read within any deadline, and not a number of them."""
    manager = outage.open(**QUICK, redis_timeout_seconds=5.0, database_timeout_seconds=20.0)
    outage.kill_database()
    sent = [{"role": "user", "content": f"{number} " + "x" * 900_000} for number in range(60)]
    for message in sent:
        assert manager.append("s", message).durable is False
    outage.restart_database()
    assert waited_for(lambda: manager.health().is_well("postgres"))
    effects = Interposition(manager)
    assert manager.drain("s") == len(sent)
    effects.remove()
    assert Counter(name_of(effect) for effect in effects.effects)["drained"] >= len(sent) / 8
    rows = [message for _, message in logged(outage.servers.database_url, outage.backend.tenant, "s")]
    assert [row["content"][:8] for row in rows] == [message["content"][:8] for message in sent]


def test_a_child_forked_in_the_middle_of_telling_tells_too(blocking: Outage) -> None:
    manager = blocking.open(redis_timeout_seconds=2.0)
    for name in ("s", "x"):
        manager.append(name, say(1))
    untold = manager._flows._sessions._untold
    blocking.stop_redis()
    assert manager.append("s", say(2)).degraded is True
    assert waited_for(lambda: untold._is_telling), "the background was to be at it"
    held = threading.Event()
    done = threading.Event()

    def hold() -> None:
        with untold._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        status = 1
        try:
            blocking.go_on()
            told = waited_for(lambda: manager.append("x", say(2)).degraded is False and not untold, seconds=20)
            status = 0 if told else 2
        finally:
            os._exit(status)
    done.set()
    holder.join()
    blocking.go_on()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert waited_for(lambda: manager.append("x", say(3)).degraded is False)
    assert_context(manager.get_context("s"), talk(2))
