"""The circuit breaker: closed, open, half-open and late, on an injected clock; nothing here sleeps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator

import pytest
from breaker_states import CLOSED, HALF_OPEN, OPEN, Clock, fail, in_state, path, recorded, succeed

from contract_engine.memory.circuit_breaker import (
    CircuitBreaker,
    CircuitState,
    RedisCircuitBreaker,
    redis_circuit_breaker,
)
from contract_engine.memory.errors import CircuitOpenError, RedisUnavailableError

pytest_plugins = ("breaker_fixtures",)


@pytest.fixture
def shared_breaker() -> Iterator[CircuitBreaker]:
    redis_circuit_breaker.reset()
    yield redis_circuit_breaker
    redis_circuit_breaker.reset()


# The documents' usage


def test_the_ready_instance_is_used_as_the_documents_show(shared_breaker: CircuitBreaker) -> None:
    calls = 0

    @redis_circuit_breaker
    def redis_operation() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError("redis is down")

    for _ in range(5):
        with pytest.raises(ConnectionError, match="redis is down"):
            redis_operation()
    assert redis_circuit_breaker.get_state() == CircuitState.OPEN
    with pytest.raises(Exception, match=r"^Circuit breaker is OPEN for 'redis': retry in "):
        redis_operation()
    assert calls == 5
    assert redis_circuit_breaker.failure_count == 5
    redis_circuit_breaker.reset()
    assert redis_circuit_breaker.get_state() == CircuitState.CLOSED
    assert redis_circuit_breaker.failure_count == 0


def test_names_and_defaults_are_those_of_the_documents() -> None:
    assert RedisCircuitBreaker is CircuitBreaker
    assert isinstance(redis_circuit_breaker, RedisCircuitBreaker)
    assert redis_circuit_breaker.name == "redis"
    assert redis_circuit_breaker.failure_threshold == 5
    assert redis_circuit_breaker.recovery_timeout == 60
    assert [state.value for state in CircuitState][:3] == ["closed", "open", "half_open"]
    assert f"{CircuitState.OPEN}" == "open"
    breaker = CircuitBreaker(failure_threshold=3, recovery_timeout=30)
    assert (breaker.failure_threshold, breaker.recovery_timeout) == (3, 30)
    assert breaker.state == "closed"


# Closed


def test_it_opens_at_the_threshold_and_not_before(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 60, clock=clock)
    fail(breaker, times=2)
    assert (breaker.get_state(), breaker.failure_count) == (CLOSED, 2)
    fail(breaker)
    assert (breaker.get_state(), breaker.failure_count) == (OPEN, 3)


@pytest.mark.parametrize("days", [-1, 1])
def test_setting_the_clock_of_the_machine_neither_opens_nor_closes_it(clock: Clock, days: int) -> None:
    wall = [1_700_000_000.0]
    breaker = CircuitBreaker(1, 60, clock=clock, wall_clock=lambda: wall[0])
    fail(breaker)
    wall[0] += days * 86_400
    assert breaker.get_state() == OPEN
    with pytest.raises(CircuitOpenError) as caught:
        breaker.acquire()
    assert caught.value.retry_after == 60
    clock.advance(60)
    wall[0] -= days * 86_400
    succeed(breaker)
    assert breaker.get_state() == CLOSED


def test_a_success_resets_the_row_of_failures(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 60, clock=clock)
    for _ in range(4):
        fail(breaker, times=2)
        succeed(breaker)
        assert breaker.failure_count == 0
    assert breaker.get_state() is CLOSED


def test_a_closed_success_takes_no_lock_and_reads_no_clock() -> None:
    reads = 0

    def clock() -> float:
        nonlocal reads
        reads += 1
        return 0.0

    breaker = CircuitBreaker(clock=clock)
    with breaker._lock:  # a lock taken below would never be granted
        succeed(breaker)
    assert reads == 0
    assert breaker.snapshot().successful == 1


def test_an_open_rejection_takes_no_lock(clock: Clock) -> None:
    breaker = in_state(OPEN, clock)
    with breaker._lock, pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert breaker.snapshot().rejected == 1


def test_the_lock_is_free_during_the_protected_call(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock)

    def look() -> bool:
        return breaker._lock.locked()

    assert breaker.call(look) is False


# Open


def test_rejection_says_when_to_come_back_and_calls_nothing(clock: Clock) -> None:
    breaker = in_state(OPEN, clock, name="cache")
    clock.advance(15)
    calls: list[int] = []
    with pytest.raises(CircuitOpenError, match=r"^Circuit breaker is OPEN for 'cache': retry in 45\.0 s$") as caught:
        breaker.call(calls.append, 1)
    assert calls == []
    assert caught.value.retry_after == breaker.retry_after == 45
    assert isinstance(caught.value, RedisUnavailableError)


def test_the_wait_ends_exactly_when_it_should(clock: Clock) -> None:
    breaker = in_state(OPEN, clock)
    clock.advance(59.999)
    assert breaker.get_state() is OPEN
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(0.001)
    assert breaker.get_state() is HALF_OPEN
    succeed(breaker)
    assert breaker.get_state() is CLOSED


def test_asking_for_the_state_starts_no_probe(clock: Clock) -> None:
    breaker = in_state(OPEN, clock)
    seen = recorded(breaker)
    for _ in range(10):
        clock.advance(60)
        assert breaker.get_state() is breaker.state is HALF_OPEN
        assert breaker.retry_after == 0
    assert seen == []
    succeed(breaker)
    assert path(seen) == [(OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]


# Half-open


@pytest.mark.parametrize("permits", [1, 3])
def test_64_threads_at_half_open_let_exactly_the_permitted_through(permits: int, clock: Clock) -> None:
    breaker = in_state(OPEN, clock, half_open_permits=permits)
    clock.advance(60)
    start, tried = threading.Barrier(64), threading.Barrier(64)
    outcomes: list[str] = []

    def caller() -> None:
        start.wait()
        try:
            permit = breaker.acquire()
        except CircuitOpenError:
            outcomes.append("rejected")
            tried.wait()
        else:
            outcomes.append("passed")
            tried.wait()  # no probe reports before everybody has tried
            breaker.success(permit)

    threads = [threading.Thread(target=caller) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes.count("passed") == permits
    assert outcomes.count("rejected") == 64 - permits
    assert breaker.get_state() is CLOSED


@pytest.mark.parametrize("permits", [1, 3])
async def test_64_tasks_at_half_open_let_exactly_the_permitted_through(permits: int, clock: Clock) -> None:
    breaker = in_state(OPEN, clock, half_open_permits=permits)
    clock.advance(60)
    answer = asyncio.Event()
    passed = 0

    async def probe() -> None:
        nonlocal passed
        passed += 1
        await answer.wait()

    tasks = [asyncio.create_task(breaker.call_async(probe)) for _ in range(64)]
    await asyncio.sleep(0)
    assert passed == permits
    answer.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, CircuitOpenError) for result in results) == 64 - permits
    assert results.count(None) == permits
    assert breaker.get_state() is CLOSED


def test_it_closes_when_all_probes_have_succeeded_and_not_before(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_permits=3)
    permits = [breaker.acquire() for _ in range(3)]
    for permit in permits[:2]:
        breaker.success(permit)
        assert breaker.get_state() is HALF_OPEN
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
    breaker.success(permits[2])
    assert (breaker.get_state(), breaker.failure_count) == (CLOSED, 0)
    fail(breaker)  # the row starts from nothing
    assert breaker.get_state() is CLOSED


def test_one_failed_probe_opens_it_again_for_a_full_wait(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_permits=3)
    first, second = breaker.acquire(), breaker.acquire()
    clock.advance(5)
    breaker.failure(first, ConnectionError())
    assert (breaker.get_state(), breaker.retry_after) == (OPEN, 60)
    assert breaker.failure_count == 3  # two that opened it, one more
    breaker.success(second)
    assert breaker.get_state() is OPEN
    assert breaker.snapshot().late == 1


def test_a_rejection_while_half_open_names_a_wait_no_longer_than_the_stay(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_max_seconds=20)
    assert breaker.retry_after == 0
    breaker.acquire()
    clock.advance(5)
    assert breaker.retry_after == 15
    unlimited = in_state(HALF_OPEN, clock, half_open_max_seconds=None)
    unlimited.acquire()
    assert unlimited.retry_after == 60


@pytest.mark.parametrize(
    "give_back",
    [
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        GeneratorExit(),
        CircuitOpenError("inner", 1.0),
        ValueError("not counted"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_a_probe_that_says_nothing_gives_its_permit_back(give_back: BaseException, clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, counts=lambda exc: not isinstance(exc, ValueError))
    before = breaker.snapshot()
    for _ in range(3):
        breaker.failure(breaker.acquire(), give_back)
    assert breaker.get_state() is HALF_OPEN
    after = breaker.snapshot()
    assert after.cancelled == before.cancelled + 3
    assert (after.failed, after.failure_count) == (before.failed, before.failure_count)
    succeed(breaker)
    assert breaker.get_state() is CLOSED


async def test_a_cancelled_task_gives_its_probe_back(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock)
    before = breaker.snapshot()
    task = asyncio.create_task(breaker.call_async(asyncio.Event().wait))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert breaker.get_state() is HALF_OPEN
    assert breaker.snapshot().cancelled == before.cancelled + 1
    succeed(breaker)
    assert breaker.get_state() is CLOSED


async def test_a_hanging_probe_ends_half_open_after_the_longest_stay(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_max_seconds=20)
    seen = recorded(breaker)
    answer = asyncio.Event()
    hanging = asyncio.create_task(breaker.call_async(answer.wait))
    await asyncio.sleep(0)
    clock.advance(19.9)
    assert breaker.get_state() is HALF_OPEN
    clock.advance(0.1)
    assert breaker.get_state() is OPEN
    assert [change.reason for change in seen] == ["half-open for too long"]
    answer.set()  # it comes back after all, too late to matter
    assert await hanging is True
    assert breaker.get_state() is OPEN
    assert breaker.snapshot().late == 1


def test_the_stay_ends_when_it_was_over_and_not_when_somebody_looks(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_max_seconds=20)
    abandoned = breaker.acquire()
    seen = recorded(breaker)
    clock.advance(50)
    assert (breaker.get_state(), breaker.retry_after) == (OPEN, 30)
    clock.advance(200)
    succeed(breaker)  # the wait that began when the stay ended is long over
    assert path(seen) == [(HALF_OPEN, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]
    breaker.success(abandoned)
    assert breaker.snapshot().late == 1


def test_a_late_probe_is_late_even_if_nobody_looked_before(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_max_seconds=20)
    permit = breaker.acquire()
    clock.advance(21)
    breaker.success(permit)
    assert breaker.get_state() is OPEN


def test_without_a_longest_stay_a_probe_may_take_for_ever(clock: Clock) -> None:
    breaker = in_state(HALF_OPEN, clock, half_open_max_seconds=None)
    permit = breaker.acquire()
    clock.advance(1e8)
    assert breaker.get_state() is HALF_OPEN
    breaker.success(permit)
    assert breaker.get_state() is CLOSED


# Late results


@pytest.mark.parametrize("report", ["success", "failure", "cancel"])
def test_results_of_calls_begun_in_an_earlier_state_have_no_effect(report: str, clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)
    early = breaker.acquire()
    fail(breaker, times=2)
    clock.advance(60)
    probe = breaker.acquire()
    if report == "success":
        breaker.success(early)
    elif report == "failure":
        breaker.failure(early, ConnectionError())
    else:
        breaker.cancel(early)
    assert breaker.get_state() is HALF_OPEN
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert (breaker.snapshot().late, breaker.failure_count) == (1, 2)
    breaker.success(probe)
    assert breaker.get_state() is CLOSED


def test_reset_makes_calls_under_way_late_even_when_closed(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)
    permit = breaker.acquire()
    breaker.reset()
    breaker.failure(permit, ConnectionError())
    assert (breaker.get_state(), breaker.failure_count, breaker.snapshot().late) == (CLOSED, 0, 1)
