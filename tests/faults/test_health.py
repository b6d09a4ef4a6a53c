"""Health: what is said of servers that are there, killed and stopped, how fast, and how often they are asked."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from memory_contract import ASYNC, DURABLE, SYNC, Backend, say
from server_faults import SETTINGS, Outage, waited_for

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import AsyncMemoryManager, CircuitBreaker, InvalidInputError, MemoryManager
from contract_engine.memory._effects import RedisCall
from contract_engine.memory._log import PING
from contract_engine.memory.health import (
    HealthReport,
    OperationMode,
    SystemHealthMonitor,
    liveness,
    readiness,
)
from contract_engine.memory.hooks import Detail, OperationEnded, observers
from contract_engine.memory.summarizers import ModelSummarizer

pytest_plugins = ["memory_fixtures"]

SECRET = "hunter2"  # stands for a password that must not be seen
MOST_SECONDS = 2.0
"""Of the median of some calls: the second that is promised, and one for a machine that stalls."""


@pytest.fixture(params=[SYNC, ASYNC])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair() -> Iterator[EmbeddedServers]:
    """Servers of this module's own; each test that has harmed them leaves them alive."""
    with EmbeddedServers(durable=False) as servers:
        yield servers


@pytest.fixture
def outage(pair: EmbeddedServers, colour: str, tenant: str) -> Iterator[Outage]:
    backend = Backend(colour, DURABLE, pair.redis_url, pair.database_url, tenant)
    with closing(Outage(pair, backend, SETTINGS)) as one:
        yield one
    pair.start()


def later(manager: MemoryManager, **expected: object) -> HealthReport:
    """Return the first report in which this holds."""
    found: list[HealthReport] = []

    def holds() -> bool:
        found.append(manager.health())
        return all(getattr(found[-1], name) == value for name, value in expected.items())

    assert waited_for(holds, 30), found[-1]
    return found[-1]


# -- the monitor


def test_modes_follow_the_services() -> None:
    monitor = SystemHealthMonitor()
    assert monitor.get_operation_mode() is OperationMode.FULL
    monitor.report_service_error("summarizer", TimeoutError("slow"))
    assert monitor.get_operation_mode() is OperationMode.DEGRADED
    monitor.report_service_error("redis", ConnectionError("gone"))
    assert monitor.get_operation_mode() is OperationMode.DEGRADED
    assert not monitor.is_service_available("redis")
    assert monitor.is_service_available("postgres")
    monitor.report_service_error("postgres")
    assert monitor.get_operation_mode() is OperationMode.MINIMAL
    for service in ("postgres", "redis", "summarizer"):
        monitor.report_service_recovery(service)
    assert monitor.get_operation_mode() is OperationMode.FULL


def test_without_a_database_redis_is_everything() -> None:
    monitor = SystemHealthMonitor(("redis",))
    monitor.report_service_error("redis", ConnectionError())
    assert monitor.get_operation_mode() is OperationMode.MINIMAL


@pytest.mark.parametrize("service", ["mysql", "", None, ["redis"]])
def test_a_service_nobody_knows_is_refused(service: Any) -> None:
    monitor = SystemHealthMonitor()
    for call in (
        lambda: monitor.report_service_error(service, "x"),
        lambda: monitor.report_service_recovery(service),
        lambda: monitor.is_service_available(service),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.field == "service"


def test_since_is_when_it_began_and_not_the_last_word() -> None:
    now = [100.0]
    monitor = SystemHealthMonitor(wall_clock=lambda: now[0])
    now[0] = 200.0
    monitor.report_service_error("redis", "first")
    now[0] = 300.0
    monitor.report_service_error("redis", "second")
    assert (monitor.facts("redis").since, monitor.facts("redis").error) == (200.0, "second")
    monitor.report_service_recovery("redis")
    now[0] = 400.0
    monitor.report_service_recovery("redis")
    assert (monitor.facts("redis").since, monitor.facts("redis").error) == (300.0, "")


def test_of_foreign_errors_only_the_class_is_remembered() -> None:
    monitor = SystemHealthMonitor()
    monitor.report_service_error("redis", RuntimeError(f"redis://:{SECRET}@host"))
    assert monitor.facts("redis").error == "RuntimeError"


def test_breakers_tell_the_monitor() -> None:
    monitor, breaker = SystemHealthMonitor(), CircuitBreaker(2, 60.0, name="redis")
    monitor.watch("redis", breaker)
    for _ in range(2):
        permit = breaker.acquire()
        breaker.failure(permit, ConnectionError())
    assert not monitor.is_service_available("redis")
    assert "2 failures in a row" in monitor.facts("redis").error
    breaker.reset()
    assert monitor.is_service_available("redis")
    breaker.force_open()
    assert monitor.get_operation_mode() is OperationMode.DEGRADED
    breaker.disable()
    assert monitor.get_operation_mode() is OperationMode.FULL


def test_a_breaker_that_was_open_before_is_seen_and_keeps_no_monitor_alive() -> None:
    breaker = CircuitBreaker(name="redis")
    breaker.force_open()
    monitor = SystemHealthMonitor()
    monitor.watch("redis", breaker)
    assert not monitor.is_service_available("redis")
    del monitor
    gc.collect()
    breaker.reset()  # tells nobody, and fails nobody


# -- reports


def test_a_report_is_typed_frozen_and_json(manager: MemoryManager, backend: Backend) -> None:
    started = time.monotonic()
    report = manager.health()
    most_ms = (time.monotonic() - started) * 1000
    assert isinstance(report, HealthReport)
    assert (report.status, report.mode, report.is_ready) == ("healthy", "full", True)
    assert [check.name for check in report.checks] == (
        ["redis", "postgres", "unlogged"] if backend.is_durable else ["redis"]
    )
    for check in report.checks:
        assert (check.state, check.critical) == ("ok", not backend.is_durable)
        assert (0 < check.took_ms <= most_ms) or check.name == "unlogged"  # which asks nobody
        assert check.since <= report.at
    with pytest.raises(AttributeError):
        report.status = "x"  # type: ignore[misc,assignment]  # it is frozen
    shown = json.loads(json.dumps(report.as_dict()))
    assert shown["storage"] == backend.mode
    assert shown["ready"] is True
    assert report.check("nothing of that name") is None


def test_ephemeral_mode_says_what_can_be_lost(ephemeral: Backend) -> None:
    assert "lost" in ephemeral.open().health().detail


def test_redis_down_is_ready_and_degraded(outage: Outage) -> None:
    manager = outage.open()
    later(manager, status="healthy")
    before = time.time()
    outage.kill_redis()
    report = later(manager, status="degraded")
    assert (report.mode, report.is_ready) == ("degraded", True)
    assert readiness(report)[0] == 200
    check = report.check("redis")
    assert check is not None
    assert (check.state, report.is_well("postgres")) == ("fail", True)
    assert before - 1 < check.since <= report.at
    assert manager.append("s", say(1)).durable is True, "it is ready indeed"
    outage.servers.start()
    assert later(manager, status="healthy").mode == "full"


def test_postgres_down_is_ready_degraded_and_tells_of_the_backlog(outage: Outage) -> None:
    manager = outage.open()
    manager.append("s", say(1))
    outage.kill_database()
    assert manager.append("s", say(2)).durable is False, "the fault has fired"
    report = later(manager, status="degraded")
    assert report.is_ready
    assert not report.is_well("postgres")
    backlog = report.check("unlogged")
    assert backlog is not None
    assert (backlog.state, "logged: 1" in backlog.detail) == ("warn", True)
    assert "Redis" in report.detail
    assert manager.unlogged_backlog[0] == 1
    outage.servers.start()
    assert waited_for(lambda: manager.append("s", say(3)).durable, 30)
    assert later(manager, status="healthy").is_well("unlogged")


def test_with_both_away_nothing_is_ready(outage: Outage) -> None:
    manager = outage.open()
    outage.kill_redis()
    outage.kill_database()
    report = later(manager, status="unhealthy")
    assert (report.mode, report.is_ready) == ("minimal", False)
    code, body = readiness(report)
    assert (code, body["ready"], body["checks"]["redis"]) == (503, False, "fail")
    assert liveness()[0] == 200


def test_ephemeral_without_redis_is_not_ready(outage: Outage) -> None:
    manager = outage.open(database_url=None)
    assert manager.health().is_ready
    outage.kill_redis()
    report = later(manager, status="unhealthy")
    check = report.check("redis")
    assert check is not None
    assert (check.critical, report.mode) == (True, "minimal")


def test_stopped_servers_cost_a_second_for_both_together(outage: Outage) -> None:
    """Timeouts of 20 and 30 seconds: it is the round that ends, and not the calls."""
    manager = outage.open(redis_timeout_seconds=20.0, database_timeout_seconds=30.0)
    manager.append("s", say(1))
    later(manager, status="healthy")
    outage.stop_redis()
    outage.stop_database()
    taken: list[float] = []
    reports = [later(manager, status="unhealthy")]

    def is_next_round() -> bool:
        started = time.monotonic()
        report = manager.health()
        if report is reports[-1]:  # it is held for a second
            return False
        taken.append(time.monotonic() - started)
        reports.append(report)
        return True

    at_work = threading.active_count()
    for _ in range(2):
        assert waited_for(is_next_round, 30)
        assert threading.active_count() <= at_work, "a check that hangs is not begun again"
    for report in reports:
        assert (report.status, report.is_ready) == ("unhealthy", False)
        assert all("no answer within" in check.detail for check in report.checks if check.name in ("redis", "postgres"))
    assert min(taken) < MOST_SECONDS, taken
    outage.go_on()
    later(manager, status="healthy")


@pytest.fixture
def database_outage(pair: EmbeddedServers, tenant: str) -> Iterator[Outage]:
    backend = Backend(SYNC, DURABLE, pair.redis_url, pair.database_url, tenant)
    with closing(Outage(pair, backend, SETTINGS)) as one:
        yield one


def has_only_redis(reports: Sequence[HealthReport]) -> bool:
    """Whether everybody was told that one server answers; that the other one does not is beyond doubt."""
    assert not any(report.is_well("postgres") for report in reports), "the fault has fired"
    return all(
        (report.is_well("redis"), report.is_ready, report.mode) == (True, True, "degraded") for report in reports
    )


def test_a_server_that_hangs_takes_nothing_from_the_other_one(database_outage: Outage) -> None:
    """Those who wait for the round of another must not give up before it has ended."""
    opened: list[MemoryManager] = []

    def is_told_to_all() -> bool:
        opened.append(database_outage.open(database_timeout_seconds=5.0))
        return has_only_redis(ask_at_once(opened[-1].health))

    database_outage.stop_database()
    # A machine that stands still for as long as a round may make both look away, but not every time.
    assert any(is_told_to_all() for _ in range(3))
    database_outage.go_on()
    for manager in opened:
        later(manager, status="healthy")


async def test_nor_does_it_for_asyncio(database_outage: Outage) -> None:
    urls = database_outage.servers.redis_url, database_outage.servers.database_url

    async def is_told_to_all() -> bool:
        async with AsyncMemoryManager(redis_url=urls[0], database_url=urls[1]) as manager:
            return has_only_redis(await asyncio.gather(*(manager.health() for _ in range(64))))

    database_outage.stop_database()
    assert True in [await is_told_to_all() for _ in range(2)]


class Pings:
    """Counts what a manager asks its servers, and lets it pass."""

    def __init__(self, manager: MemoryManager | AsyncMemoryManager) -> None:
        runtime: Any = manager._runtime
        self._perform = runtime._perform
        self.servers: Counter[str] = Counter()
        runtime._perform = self._count

    def _count(self, effect: Any) -> Any:
        if isinstance(effect, RedisCall):
            assert effect.commands[0].words == ("PING",)
            self.servers["redis"] += 1
        elif effect.statement is PING:
            self.servers["postgres"] += 1
        return self._perform(effect)


def ask_at_once(ask: Callable[[], HealthReport]) -> list[HealthReport]:
    """Return the reports that 64 threads get which ask at the same moment."""
    begin = threading.Barrier(64)

    def one() -> HealthReport:
        begin.wait()
        return ask()

    with ThreadPoolExecutor(64) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(64)]]


def test_64_threads_make_one_round(redis_url: str, database_url: str, tenant: str) -> None:
    with MemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as manager:
        manager.append("s", say(1))
        pings = Pings(manager)
        rounds = {report.at for report in ask_at_once(manager.health)}
    # A machine that stands still for a second may make it another round; 64 of them it cannot make.
    assert len(rounds) <= 3
    assert pings.servers == {"redis": len(rounds), "postgres": len(rounds)}


async def test_64_tasks_make_one_round(redis_url: str, database_url: str, tenant: str) -> None:
    async with AsyncMemoryManager(redis_url=redis_url, database_url=database_url, tenant=tenant) as manager:
        pings = Pings(manager)
        reports = await asyncio.gather(*(manager.health() for _ in range(64)))
    assert len({id(report) for report in reports}) == 1
    assert pings.servers == {"redis": 1, "postgres": 1}


def test_a_check_is_no_operation(durable: Backend) -> None:
    """Else a probe that finds Redis away would be counted among the calls that failed, none of which did."""
    manager = durable.open(redis_url="redis://127.0.0.1:1/0")
    told: list[Detail] = []
    stop = observers.add(told.append)
    assert manager.health().status == "degraded"
    assert told == []
    assert manager.add_message("s", say(1)) is True
    assert manager.wait_for_folds(30)  # it has begun to tell Redis of the message, beside us
    stop()
    ended = [one for one in told if isinstance(one, OperationEnded) and one.backend == "manager"]
    assert sorted((one.operation, one.outcome) for one in ended) == [("add_message", "ok"), ("tell", "unavailable")]


async def test_one_who_is_cancelled_takes_nothing_from_the_others(redis_url: str, tenant: str) -> None:
    async with AsyncMemoryManager(redis_url=redis_url, tenant=tenant) as manager:
        first = asyncio.create_task(manager.health())
        second = asyncio.create_task(manager.health())
        await asyncio.sleep(0)  # one turn of the loop begins both, and no answer can be there yet
        assert not first.done()
        first.cancel()
        assert (await second).status == "healthy"
        with pytest.raises(asyncio.CancelledError):
            await first


def test_a_report_is_held_for_a_second(manager: MemoryManager) -> None:
    """Until a second has gone by nobody is asked, and all get the same one; from then on everybody is asked again."""
    manager.append("s", say(1))
    pings = Pings(manager)
    began = time.monotonic()
    first = manager.health()
    ended = time.monotonic()
    assert first.status == "healthy", "all have answered, and none of them is late"
    asked = pings.servers.copy()
    assert asked["redis"] == 1
    again = began
    while True:
        asked_again, report = time.monotonic(), manager.health()
        if report is not first:
            break
        again = time.monotonic()
        assert asked_again < ended + 1, "it was given for longer than a second"
        assert pings.servers == asked
        time.sleep(0.02)
    assert time.monotonic() >= began + 1, "it was not given for a second"
    assert again > began, "nobody was given it"
    assert {name: count - asked[name] for name, count in pings.servers.items()} == asked


def test_an_async_manager_goes_on_in_the_next_loop(redis_url: str, tenant: str) -> None:
    manager = AsyncMemoryManager(redis_url=redis_url, tenant=tenant)

    async def look() -> str:
        report = await manager.health()
        await manager.aclose()
        return report.status

    assert [asyncio.run(look()), asyncio.run(look())] == ["healthy"] * 2


def test_the_model_is_known_by_its_breaker_and_never_asked(durable: Backend) -> None:
    asked: list[object] = []

    def model(messages: object, max_tokens: int) -> str:
        asked.append(messages)
        return "NONE"

    writer = ModelSummarizer(model, name="mine")
    manager = durable.open(facts_writer=writer)
    check = manager.health().check("summarizer")
    assert check is not None
    assert (check.state, check.critical) == ("ok", False)
    writer.breaker.force_open()
    report = later(manager, status="degraded")
    assert not report.is_well("summarizer")
    assert report.is_ready
    writer.breaker.reset()
    later(manager, status="healthy")
    assert asked == []


def test_what_is_reported_by_hand_is_in_the_report(durable: Backend) -> None:
    manager = durable.open(facts_writer=ModelSummarizer(lambda messages, max_tokens: "NONE"))
    manager.health_monitor.report_service_error("summarizer", "the vendor says so")
    report = later(manager, status="degraded")
    assert report.check("summarizer").detail == "the vendor says so"  # type: ignore[union-attr]  # it is there
    assert manager.health_monitor.get_operation_mode() is OperationMode.DEGRADED
    manager.health_monitor.report_service_recovery("summarizer")
    later(manager, status="healthy")


def test_no_credentials_anywhere(colour: str, tenant: str) -> None:
    backend = Backend(
        colour, DURABLE, f"redis://u:{SECRET}@127.0.0.1:1/0", f"postgresql://u:{SECRET}@127.0.0.1:1/x", tenant
    )
    with closing(backend):
        report = backend.open().health()
    assert report.status == "unhealthy"
    assert SECRET not in repr(report) + json.dumps(report.as_dict())


def test_importing_the_package_does_not_import_health() -> None:
    code = (
        "import sys, contract_engine.memory; names = ('health', 'metrics', 'tracing', '_manager_health'); "
        "print([name for name in names if f'contract_engine.memory.{name}' in sys.modules]); "
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"
