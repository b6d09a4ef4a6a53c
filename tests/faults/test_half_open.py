"""The moment of half-open through whole managers: of 64 callers only the permitted ask a server that does not answer.

Redis, or PostgreSQL, is killed until the breaker is open, comes back and is stopped at once: so a probe hangs for as
long as a test wants it to, and what happens meanwhile happens while the breaker is half-open.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import psycopg
import pytest
from memory_contract import ASYNC, DURABLE, SYNC, Backend, assert_context, say, talk
from network_path import BOTH_COLOURS, POSTGRES, REDIS
from server_faults import Outage, waited_for
from servers import PrivateServers

from contract_engine.memory import (
    AsyncMemoryManager,
    CircuitBreaker,
    CircuitState,
    MemoryConfig,
    MemoryManager,
)
from contract_engine.memory.circuit_state import Transition

M = TypeVar("M", MemoryManager, AsyncMemoryManager)

CALLERS = 64
NAMES = [f"s{number}" for number in range(CALLERS)]
PATIENCE = 30.0
"""Deadline of a round trip to Redis where a probe is to hang: nothing here takes as long."""

THRESHOLD = 3
RECOVERY = 0.2
LONG = 1000.0
OPEN_FOR_LONG: dict[str, Any] = {"backoff": LONG / RECOVERY, "max_recovery_timeout": LONG}
"""Once it is open again, nothing but what a test does moves the breaker."""

SAID = talk(5)
OTHERS_SAID = talk(4, start=100)

Context = Future[dict[str, Any]]


class Callers(Protocol):
    """One manager and what calls it; every call runs beside the others."""

    def start(self, name: str, *args: object) -> Future[Any]: ...

    def start_at_once(self, name: str, arguments: Sequence[tuple[object, ...]]) -> list[Future[Any]]:
        """Call the same with each of these arguments, at one moment."""
        ...

    def close(self) -> None: ...


def guarded(manager: M, server: str, breaker: CircuitBreaker) -> M:
    """Put a breaker of the test's own in front of a server; that of PostgreSQL, nobody but a manager makes."""
    vars(manager)["circuit_breaker" if server == REDIS else "database_breaker"] = breaker
    return manager


class Threads:
    """A blocking manager, called from threads."""

    def __init__(self, config: MemoryConfig, server: str, breaker: CircuitBreaker) -> None:
        self._manager = guarded(MemoryManager(config=config), server, breaker)
        self._pool = ThreadPoolExecutor(CALLERS + 4)

    def start(self, name: str, *args: object) -> Future[Any]:
        return self._pool.submit(getattr(self._manager, name), *args)

    def start_at_once(self, name: str, arguments: Sequence[tuple[object, ...]]) -> list[Future[Any]]:
        barrier = threading.Barrier(len(arguments))
        method = getattr(self._manager, name)

        def call(args: tuple[object, ...]) -> Any:
            barrier.wait()
            return method(*args)

        return [self._pool.submit(call, args) for args in arguments]

    def close(self) -> None:
        self._pool.shutdown()
        self._manager.close()


class Tasks:
    """An asyncio manager, called from tasks on a loop in a thread of its own."""

    def __init__(self, config: MemoryConfig, server: str, breaker: CircuitBreaker) -> None:
        self._manager = guarded(AsyncMemoryManager(config=config), server, breaker)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def start(self, name: str, *args: object) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(getattr(self._manager, name)(*args), self._loop)

    def start_at_once(self, name: str, arguments: Sequence[tuple[object, ...]]) -> list[Future[Any]]:
        return [self.start(name, *args) for args in arguments]

    def close(self) -> None:
        self.start("aclose").result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Situation:
    """A manager with a breaker to look at, and the Redis that belongs to them."""

    def __init__(self, outage: Outage, callers: Callers, breaker: CircuitBreaker) -> None:
        self.outage = outage
        self.callers = callers
        self.breaker = breaker
        self.changes: list[Transition] = []
        self.reads_before = 0
        self.before = breaker.snapshot()
        breaker.add_listener(self.changes.append)

    def do(self, name: str, *args: object) -> Any:
        return self.callers.start(name, *args).result(PATIENCE)

    def read(self, session: str = "s") -> dict[str, Any]:
        context: dict[str, Any] = self.do("get_context", session)
        return context

    def start_reads(self, count: int) -> list[Context]:
        """Read the session by that many callers at once."""
        return self.callers.start_at_once("get_context", [("s",)] * count)

    def probes_among(self, futures: list[Future[Any]], permits: int) -> list[Future[Any]]:
        """Return the calls that hang on the server that is stopped, which must be as many as are permitted.

        Whoever has been answered was answered without it, and whoever has not is a probe.
        """
        assert waited_for(lambda: sum(future.done() for future in futures) >= len(futures) - permits, PATIENCE / 2)
        during = self.counted("rejected", "successful", "failed")
        probes = [future for future in futures if not future.done()]
        assert len(probes) == permits
        assert self.breaker.get_state() is CircuitState.HALF_OPEN
        assert during == (len(futures) - permits, 0, 0)
        return probes

    @property
    def path(self) -> list[tuple[str, str]]:
        return [(change.to_state.value, change.reason) for change in self.changes]

    def reads_since_stopped(self) -> int:
        """Return how many reads have reached Redis since it was stopped: each has one LRANGE, and nothing else here."""
        return self.outage.calls()["lrange"] - self.reads_before

    def reach_half_open(self) -> None:
        """Kill Redis, see the breaker open, bring Redis back with its copies, stop it, and wait until half-open."""
        self.do("add_messages", "s", SAID)
        self.do("add_messages", "t", OTHERS_SAID)
        assert self.read()["source"] == "redis"
        self.outage.kill_redis()
        for _ in range(THRESHOLD):
            assert self.read()["degraded"] is True
        assert self.path == [("open", f"{THRESHOLD} failures in a row")]
        self.bring_redis_back()
        self.reads_before = self.outage.calls()["lrange"]
        self.outage.stop_redis()
        assert waited_for(lambda: self.breaker.get_state() is CircuitState.HALF_OPEN)
        assert len(self.changes) == 1, "the state that the next caller meets: nobody has called"
        self.before = self.breaker.snapshot()

    def reach_half_open_database(self) -> None:
        """Kill PostgreSQL, see its breaker open, bring it back, stop it, and wait until half-open.

        Each of the sessions has a copy in Redis by then, so that to append to it takes one statement.
        """
        for name in NAMES:
            assert self.do("append", name, say(1)).durable
        self.outage.kill_database()
        for number in range(THRESHOLD):
            assert not self.do("append", f"refused{number}", say(1)).durable
        assert self.path == [("open", f"{THRESHOLD} failures in a row")]
        self.outage.restart_database()
        self.outage.stop_database()
        assert waited_for(lambda: self.breaker.get_state() is CircuitState.HALF_OPEN)
        assert len(self.changes) == 1, "the state that the next caller meets: nobody has called"
        self.before = self.breaker.snapshot()

    def counted(self, *names: str) -> tuple[int, ...]:
        """Return what the breaker has counted since it was half-open."""
        after = self.breaker.snapshot()
        return tuple(getattr(after, name) - getattr(self.before, name) for name in names)

    def logged_twice(self) -> set[str]:
        """Return the sessions of which the PostgreSQL that was harmed holds a second message."""
        with psycopg.connect(self.outage.database.database_url) as connection:
            return {name for (name,) in connection.execute("SELECT session_id FROM memory_messages WHERE seq = 2")}

    def bring_redis_back(self) -> None:
        """Restart it, and have another process put its copies back in place."""
        self.outage.restart_redis()
        other = self.outage.backend.open(redis_timeout_seconds=PATIENCE)
        for session in ("s", "t"):
            assert other.get_context(session)["source"] == "postgres", "it came back empty"
            assert other.get_context(session)["source"] == "redis"

    def begin_probe(self) -> Context:
        """Start the one read that is let through, and see that it was."""
        probe: Context = self.callers.start("get_context", "s")
        assert waited_for(lambda: ("half_open", "wait is over") in self.path)
        return probe

    def assert_rejected(self, count: int = 8) -> None:
        """Have callers come while the probe hangs: each is rejected at once, and told the truth by the log."""
        before = self.breaker.snapshot()
        for future in self.start_reads(count):
            assert_from_log(future.result(PATIENCE))
        after = self.breaker.snapshot()
        # An open breaker counts without its lock, and may lose a few.
        exact = before.state is CircuitState.HALF_OPEN
        assert (count if exact else 1) <= after.rejected - before.rejected <= count
        assert (after.state, after.successful, after.failed) == (before.state, before.successful, before.failed)

    def assert_recovered(self) -> None:
        """Redis answers again, to everybody, and each is told what belongs to them."""
        assert self.breaker.get_state() is CircuitState.CLOSED
        for _ in range(3):
            assert_from_redis(self.read())
            assert_from_redis(self.read("t"), OTHERS_SAID)
        assert self.breaker.snapshot().failure_count == 0


def assert_from_log(context: Mapping[str, Any]) -> None:
    assert_context(context, SAID)
    assert (context["source"], context["degraded"]) == ("postgres", True)


def assert_from_redis(context: Mapping[str, Any], said: list[dict[str, Any]] = SAID) -> None:
    assert_context(context, said)
    assert (context["source"], context["degraded"]) == ("redis", False)


class Arrange(Protocol):
    """Make a manager of either colour with a breaker of its own, and bring it to half-open."""

    def __call__(
        self, colour: str, server: str = REDIS, *, redis_timeout: float = PATIENCE, **breaker: Any
    ) -> Situation: ...


@pytest.fixture
def arrange(private_servers: PrivateServers, redis_url: str, database_url: str, tenant: str) -> Iterator[Arrange]:
    closing: list[Callable[[], None]] = []

    def make(colour: str, server: str = REDIS, *, redis_timeout: float = PATIENCE, **breaker: Any) -> Situation:
        if server == REDIS:
            servers = private_servers(postgres=False)
            backend = Backend(SYNC, DURABLE, servers.redis_url, database_url, tenant)
        else:
            servers = private_servers(redis=False)
            backend = Backend(SYNC, DURABLE, redis_url, servers.database_url, tenant)
        outage = Outage(servers, backend)
        closing.append(outage.close)
        guard = CircuitBreaker(THRESHOLD, RECOVERY, name=server, **breaker)
        config = backend.config(redis_timeout_seconds=redis_timeout, database_timeout_seconds=PATIENCE)
        callers: Callers = (Threads if colour == SYNC else Tasks)(config, server, guard)
        closing.append(callers.close)
        closing.append(outage.go_on)  # first of all: nobody may wait for a stopped server
        situation = Situation(outage, callers, guard)
        if server == REDIS:
            situation.reach_half_open()
        else:
            situation.reach_half_open_database()
        return situation

    yield make
    for close in reversed(closing):
        close()


@BOTH_COLOURS
@pytest.mark.parametrize("permits", [1, 3, 5])
def test_of_64_callers_exactly_the_permitted_ask_redis(arrange: Arrange, colour: str, permits: int) -> None:
    situation = arrange(colour, half_open_permits=permits, half_open_max_seconds=None)
    futures = situation.start_reads(CALLERS)
    probes = situation.probes_among(futures, permits)
    for future in futures:
        if future not in probes:
            assert_from_log(future.result())
    situation.outage.go_on()
    for future in probes:
        assert_from_redis(future.result(PATIENCE))
    assert situation.reads_since_stopped() == permits
    assert situation.counted("successful") == (permits,)
    assert situation.path[1:] == [("half_open", "wait is over"), ("closed", "probes succeeded")]
    situation.assert_recovered()


@BOTH_COLOURS
@pytest.mark.parametrize("permits", [1, 3, 5])
def test_of_64_callers_exactly_the_permitted_ask_postgres(arrange: Arrange, colour: str, permits: int) -> None:
    """The others go on in Redis at once, and what they said is logged when their sessions are touched again."""
    situation = arrange(colour, POSTGRES, half_open_permits=permits, half_open_max_seconds=None)
    futures = situation.callers.start_at_once("append", [(name, say(2)) for name in NAMES])
    probes = situation.probes_among(futures, permits)
    for future in futures:
        if future not in probes:
            assert (future.result().durable, future.result().degraded) == (False, True)
    situation.outage.go_on()
    for future in probes:
        assert (future.result(PATIENCE).durable, future.result().degraded) == (True, False)
    assert situation.counted("successful", "failed") == (permits, 0)
    assert situation.path[1:] == [("half_open", "wait is over"), ("closed", "probes succeeded")]
    asked = {name for name, future in zip(NAMES, futures, strict=True) if future in probes}
    assert situation.logged_twice() == asked
    for name in NAMES:
        assert situation.do("drain", name) == (name not in asked)
        assert_context(situation.read(name), talk(2))
    assert situation.logged_twice() == set(NAMES)


@BOTH_COLOURS
def test_a_probe_that_misses_its_deadline_opens_the_breaker_again(arrange: Arrange, colour: str) -> None:
    situation = arrange(colour, redis_timeout=1.0, **OPEN_FOR_LONG)
    probe = situation.begin_probe()
    assert_from_log(probe.result(PATIENCE))
    assert situation.path[1:] == [("half_open", "wait is over"), ("open", "a probe failed")]
    assert situation.counted("failed") == (1,)
    situation.assert_rejected()
    situation.outage.go_on()
    situation.assert_rejected()
    assert situation.reads_since_stopped() <= 1, "the probe, read by a server that nobody waits for any more"
    assert len(situation.path) == 3
    situation.breaker.reset()
    situation.assert_recovered()


@BOTH_COLOURS
def test_a_probe_that_succeeds_when_the_breaker_has_moved_on_changes_nothing(arrange: Arrange, colour: str) -> None:
    situation = arrange(colour, half_open_max_seconds=1.0, **OPEN_FOR_LONG)
    probe = situation.begin_probe()
    assert waited_for(lambda: situation.breaker.get_state() is CircuitState.OPEN)
    assert situation.path[2:] == [("open", "half-open for too long")]
    assert not probe.done()
    situation.assert_rejected()
    situation.outage.go_on()
    assert_from_redis(probe.result(PATIENCE))
    assert situation.counted("late", "successful") == (1, 0)
    assert situation.breaker.get_state() is CircuitState.OPEN
    situation.assert_rejected()
    assert situation.reads_since_stopped() == 1
    assert len(situation.path) == 3
    situation.breaker.reset()
    situation.assert_recovered()


@BOTH_COLOURS
def test_a_probe_that_fails_when_the_breaker_has_been_closed_changes_nothing(arrange: Arrange, colour: str) -> None:
    situation = arrange(colour, half_open_max_seconds=None)
    probe = situation.begin_probe()
    situation.breaker.reset()
    assert not probe.done()
    situation.outage.kill_redis()
    assert_from_log(probe.result(PATIENCE))
    assert situation.counted("late", "failed") == (1, 0)
    after = situation.breaker.snapshot()
    assert (after.state, after.failure_count) == (CircuitState.CLOSED, 0)
    assert situation.path[1:] == [("half_open", "wait is over"), ("closed", "reset")]
    situation.bring_redis_back()
    situation.assert_recovered()


@pytest.mark.parametrize("permits", [1, 3])
def test_a_cancelled_probe_gives_its_place_to_another(arrange: Arrange, permits: int) -> None:
    """Tasks only: a thread cannot be cancelled. Who takes the place is not given the answer to the cancelled one."""
    situation = arrange(ASYNC, half_open_permits=permits, half_open_max_seconds=None)
    futures = situation.start_reads(CALLERS)
    first, *others = situation.probes_among(futures, permits)
    assert first.cancel()
    assert waited_for(lambda: situation.counted("cancelled") == (1,))
    assert situation.path[1:] == [("half_open", "wait is over")]
    # The loop takes them in turn, and each asks the breaker before it waits for anything: the first gets the place.
    second: Context = situation.callers.start("get_context", "t")
    situation.assert_rejected()
    assert not any(future.done() for future in (second, *others))
    situation.outage.go_on()
    assert_from_redis(second.result(PATIENCE), OTHERS_SAID)
    for future in others:
        assert_from_redis(future.result(PATIENCE))
    assert situation.counted("successful", "failed") == (permits, 0)
    assert situation.path[2:] == [("closed", "probes succeeded")]
    situation.assert_recovered()


def test_cancelled_callers_that_were_rejected_change_nothing(arrange: Arrange, database_url: str) -> None:
    """They wait for the log: the probe, the breaker and the connections to the log are as they were."""
    situation = arrange(ASYNC, half_open_max_seconds=None)
    probe = situation.begin_probe()
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE memory_sessions, memory_messages")
        futures = situation.start_reads(CALLERS)
        assert waited_for(lambda: situation.counted("rejected") >= (CALLERS,))
        assert sum(future.cancel() for future in futures) == CALLERS
    situation.assert_rejected(CALLERS)
    assert situation.breaker.get_state() is CircuitState.HALF_OPEN
    assert situation.counted("cancelled") == (0,)
    assert not probe.done()
    situation.outage.go_on()
    assert_from_redis(probe.result(PATIENCE))
    assert situation.path[2:] == [("closed", "probes succeeded")]
    situation.assert_recovered()
