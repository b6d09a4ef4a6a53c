"""The circuit breaker: every promise of its docstrings, on an injected clock; nothing here sleeps."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import inspect
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import FrozenInstanceError, asdict
from typing import Any, assert_type

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from contract_engine.memory.circuit_breaker import (
    TRANSITIONS,
    BreakerSnapshot,
    CircuitBreaker,
    CircuitState,
    Permit,
    RedisCircuitBreaker,
    Transition,
    redis_circuit_breaker,
)
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError, RedisUnavailableError

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED = CircuitState


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared_breaker() -> Iterator[CircuitBreaker]:
    redis_circuit_breaker.reset()
    yield redis_circuit_breaker
    redis_circuit_breaker.reset()


def succeed(breaker: CircuitBreaker) -> None:
    breaker.success(breaker.acquire())


def fail(breaker: CircuitBreaker, *, times: int = 1) -> None:
    for _ in range(times):
        breaker.failure(breaker.acquire(), ConnectionError("down"))


def boom() -> None:
    raise ConnectionError("down")


def in_state(state: CircuitState, clock: Clock, **settings: Any) -> CircuitBreaker:
    """Return a breaker that got to ``state`` by the public interface."""
    breaker = CircuitBreaker(2, 60, clock=clock, **settings)
    if state is FORCED_OPEN:
        breaker.force_open()
    elif state is DISABLED:
        breaker.disable()
    elif state is not CLOSED:
        fail(breaker, times=2)
        if state is HALF_OPEN:
            clock.advance(60)
            breaker.cancel(breaker.acquire())
    assert breaker.get_state() is state
    return breaker


def recorded(breaker: CircuitBreaker) -> list[Transition]:
    seen: list[Transition] = []
    breaker.add_listener(seen.append)
    return seen


def path(seen: list[Transition]) -> list[tuple[CircuitState, CircuitState]]:
    return [(change.from_state, change.to_state) for change in seen]


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


# Back-off and jitter


def waits(breaker: CircuitBreaker, clock: Clock, *, openings: int) -> list[float]:
    found = []
    for _ in range(openings):
        fail(breaker)
        found.append(breaker.retry_after)
        clock.advance(found[-1])
    return found


def test_the_wait_is_constant_by_default(clock: Clock) -> None:
    assert waits(CircuitBreaker(1, 10, clock=clock), clock, openings=4) == [10, 10, 10, 10]


def test_the_wait_backs_off_to_its_cap_and_starts_over_after_a_recovery(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 10, backoff=2, max_recovery_timeout=35, clock=clock)
    assert waits(breaker, clock, openings=5) == [10, 20, 35, 35, 35]
    succeed(breaker)
    assert waits(breaker, clock, openings=2) == [10, 20]
    breaker.reset()
    assert waits(breaker, clock, openings=2) == [10, 20]


def test_a_backed_off_wait_is_not_the_hint_of_a_forced_open_breaker(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 10, backoff=2, clock=clock)
    assert waits(breaker, clock, openings=3) == [10, 20, 40]
    breaker.force_open()
    assert breaker.retry_after == 10


def test_the_default_cap_is_ten_times_the_wait_however_often_it_opens(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 10, backoff=1e9, clock=clock)
    assert waits(breaker, clock, openings=300) == [10] + [100] * 299


@pytest.mark.parametrize(("drawn", "expected"), [(0.0, 10.0), (0.5, 8.0), (1.0, 6.0)])
def test_jitter_shortens_the_wait_by_at_most_its_share(drawn: float, expected: float, clock: Clock) -> None:
    breaker = CircuitBreaker(1, 10, jitter=0.4, random=lambda: drawn, clock=clock)
    assert waits(breaker, clock, openings=1) == [pytest.approx(expected)]


def test_jitter_spreads_the_waits_within_its_bounds(clock: Clock) -> None:
    found = [waits(CircuitBreaker(1, 10, jitter=0.25, clock=clock), clock, openings=1)[0] for _ in range(200)]
    assert 7.5 <= min(found) < 8.5
    assert 9 < max(found) <= 10


# Windows


def test_a_failure_rate_over_the_last_calls_opens_it(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=0.5, window_size=10, minimum_calls=4, clock=clock)
    seen = recorded(breaker)
    fail(breaker, times=3)  # 3 of 3, but below the minimum
    assert breaker.get_state() is CLOSED
    succeed(breaker)
    assert breaker.get_state() is OPEN
    assert seen[0].reason == "3 of 4 calls failed"


def test_the_count_window_forgets_all_but_the_last_calls(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=0.5, window_size=10, clock=clock)
    for _ in range(20):
        fail(breaker, times=4)
        for _ in range(6):
            succeed(breaker)
    assert breaker.get_state() is CLOSED
    fail(breaker, times=4)
    assert breaker.get_state() is CLOSED
    fail(breaker)  # six successes and four failures ago became five and five
    assert breaker.get_state() is OPEN


def test_the_minimum_of_calls_is_never_more_than_the_window_holds(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=1, window_size=3, minimum_calls=50, clock=clock)
    fail(breaker, times=2)
    assert breaker.get_state() is CLOSED
    fail(breaker)
    assert breaker.get_state() is OPEN


def test_the_time_window_forgets_old_calls(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=0.5, window_seconds=30, minimum_calls=4, clock=clock)
    fail(breaker, times=3)
    clock.advance(30)
    fail(breaker)
    assert breaker.get_state() is CLOSED
    clock.advance(29)
    fail(breaker, times=2)
    assert breaker.get_state() is CLOSED
    fail(breaker)
    assert breaker.get_state() is OPEN


def test_the_time_window_stays_small_under_load_and_exact_in_sum(clock: Clock) -> None:
    breaker = CircuitBreaker(10**6, 60, failure_rate=1, window_seconds=60, clock=clock)
    for _ in range(20_000):
        clock.advance(0.01)
        succeed(breaker)
    window = breaker._window
    assert window is not None
    assert len(window._entries) <= 61
    assert window.calls == sum(entry[1] for entry in window._entries)
    assert 5900 <= window.calls <= 6100


def test_a_window_starts_empty_after_closing_again(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=0.5, window_size=4, minimum_calls=4, clock=clock)
    fail(breaker, times=4)
    clock.advance(60)
    succeed(breaker)
    fail(breaker, times=3)
    assert breaker.get_state() is CLOSED
    fail(breaker)
    assert breaker.get_state() is OPEN


def test_failures_in_a_row_open_it_with_a_window_too(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 60, failure_rate=1, window_size=100, minimum_calls=100, clock=clock)
    fail(breaker, times=3)
    assert breaker.get_state() is OPEN


# Slow calls


def slow_breaker(clock: Clock, **settings: Any) -> CircuitBreaker:
    return CircuitBreaker(
        5, 60, slow_call_seconds=1, slow_call_rate=0.5, window_size=4, minimum_calls=4, clock=clock, **settings
    )


def timed(breaker: CircuitBreaker, clock: Clock, *seconds: float) -> None:
    for duration in seconds:
        permit = breaker.acquire()
        clock.advance(duration)
        breaker.success(permit)


def test_a_rate_of_slow_calls_opens_it(clock: Clock) -> None:
    breaker = slow_breaker(clock)
    seen = recorded(breaker)
    timed(breaker, clock, 1.0, 1.0, 1.0, 1.5, 1.0)  # as long as the limit is not longer than it
    assert (breaker.get_state(), breaker.snapshot().slow) == (CLOSED, 1)
    timed(breaker, clock, 1.5)
    assert breaker.get_state() is OPEN
    assert seen[0].reason == "2 of 4 calls were slow"
    assert (breaker.snapshot().slow, breaker.snapshot().successful) == (2, 6)


def test_a_slow_probe_opens_it_again_and_a_quick_one_closes_it(clock: Clock) -> None:
    breaker = slow_breaker(clock)
    timed(breaker, clock, 2, 2, 2, 2)
    clock.advance(60)
    timed(breaker, clock, 2)
    assert breaker.get_state() is OPEN
    clock.advance(60)
    timed(breaker, clock, 0.5)
    assert breaker.get_state() is CLOSED


def test_probes_are_judged_by_their_rate_of_slow_ones(clock: Clock) -> None:
    breaker = slow_breaker(clock, half_open_permits=3)
    timed(breaker, clock, 2, 2, 2, 2)
    clock.advance(60)
    timed(breaker, clock, 2, 0.1)
    assert breaker.get_state() is HALF_OPEN
    timed(breaker, clock, 0.1)
    assert breaker.get_state() is CLOSED


def test_durations_do_not_matter_unless_asked_for(clock: Clock) -> None:
    breaker = CircuitBreaker(5, 60, failure_rate=0.5, window_size=4, minimum_calls=4, clock=clock)
    timed(breaker, clock, 1e6, 1e6, 1e6, 1e6)
    assert (breaker.get_state(), breaker.snapshot().slow) == (CLOSED, 0)


# Which exceptions count


@pytest.mark.parametrize("counts", [ConnectionError, (ConnectionError, TimeoutError)])
def test_only_the_named_exceptions_count(counts: Any, clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, counts=counts, clock=clock)
    fail(breaker)
    for _ in range(5):
        with pytest.raises(ValueError, match="mine"):
            breaker.call(raise_, ValueError("mine"))
    assert (breaker.get_state(), breaker.failure_count) == (CLOSED, 1)  # neither a failure nor a success
    fail(breaker)
    assert breaker.get_state() is OPEN


def raise_(exc: BaseException) -> None:
    raise exc


def test_a_function_may_say_what_counts(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, counts=lambda exc: "down" in str(exc), clock=clock)
    with pytest.raises(OSError, match="odd"):
        breaker.call(raise_, OSError("odd"))
    assert breaker.get_state() is CLOSED
    with pytest.raises(OSError, match="down"):
        breaker.call(raise_, OSError("down"))
    assert breaker.get_state() is OPEN


@pytest.mark.parametrize("exc", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_cancellation_never_counts_not_even_when_named(exc: BaseException, clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, counts=BaseException, clock=clock)
    with pytest.raises(type(exc)):
        breaker.call(raise_, exc)
    assert (breaker.get_state(), breaker.failure_count, breaker.snapshot().cancelled) == (CLOSED, 0, 1)


def test_a_broken_classifier_is_heard_and_costs_no_permit(clock: Clock) -> None:
    broken = False

    def counts(exc: BaseException) -> bool:
        if broken:
            raise LookupError("classifier")
        return True

    breaker = in_state(HALF_OPEN, clock, counts=counts)
    broken = True
    with pytest.raises(LookupError, match="classifier") as caught:
        breaker.call(boom)
    assert isinstance(caught.value.__context__, ConnectionError)
    broken = False
    succeed(breaker)
    assert breaker.get_state() is CLOSED


# Decorator, call, guard


def test_a_decorated_function_keeps_its_signature_and_answer(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    @breaker
    def divide(a: int, *, by: int = 2) -> float:
        """Divide."""
        return a / by

    assert_type(divide(8), float)
    assert divide(8) == 4
    assert divide(9, by=3) == 3
    assert (divide.__name__, divide.__doc__) == ("divide", "Divide.")
    assert str(inspect.signature(divide)) == "(a: 'int', *, by: 'int' = 2) -> 'float'"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            divide(1, by=0)
    with pytest.raises(CircuitOpenError):
        divide(1)
    assert breaker.snapshot().successful == 3


async def test_a_decorated_coroutine_function_is_judged_by_what_it_awaits(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    @breaker
    async def echo(value: str, *, fails: bool = False) -> str:
        await asyncio.sleep(0)
        if fails:
            raise TimeoutError(value)
        return value

    assert inspect.iscoroutinefunction(echo)
    answer = await echo("a")
    assert_type(answer, str)
    assert answer == "a"
    for _ in range(2):
        with pytest.raises(TimeoutError, match="b"):
            await echo("b", fails=True)
    with pytest.raises(CircuitOpenError):
        await echo("c")
    assert (breaker.snapshot().successful, breaker.snapshot().failed) == (1, 2)


async def test_methods_of_both_colours_are_decorated_alike(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)

    class Store:
        def __init__(self, value: int) -> None:
            self.value = value

        @breaker
        def read(self, extra: int) -> int:
            return self.value + extra

        @breaker
        async def read_later(self, extra: int) -> int:
            return self.value + extra

        @staticmethod
        @breaker
        def fail() -> None:
            raise ConnectionError

    store = Store(40)
    assert store.read(2) == 42
    assert await store.read_later(extra=3) == 43
    for _ in range(2):
        with pytest.raises(ConnectionError):
            store.fail()
    with pytest.raises(CircuitOpenError):
        store.read(1)
    with pytest.raises(CircuitOpenError):
        await store.read_later(1)


async def test_call_async_takes_any_function_that_returns_an_awaitable(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)

    def begin(value: int) -> asyncio.Future[int]:
        future = asyncio.get_running_loop().create_future()
        if value < 0:
            future.set_exception(ConnectionError("down"))
        else:
            future.set_result(value)
        return future

    assert await breaker.call_async(begin, 7) == 7
    with pytest.raises(ConnectionError):
        await breaker.call_async(begin, -1)
    assert breaker.get_state() is OPEN


def test_call_passes_arguments_even_those_named_like_its_own(clock: Clock) -> None:
    def take(fn: str, **rest: int) -> tuple[str, dict[str, int]]:
        return fn, rest

    assert CircuitBreaker(clock=clock).call(take, fn="x", self=1) == ("x", {"self": 1})


async def test_guard_protects_a_block_in_sync_and_async_code(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, clock=clock)
    with breaker.guard():
        pass
    with pytest.raises(ConnectionError), breaker.guard():
        raise ConnectionError
    with pytest.raises(TimeoutError), breaker.guard():
        await asyncio.wait_for(asyncio.Event().wait(), 0)
    with pytest.raises(CircuitOpenError), breaker.guard():
        raise AssertionError("must not run")
    assert (breaker.snapshot().successful, breaker.snapshot().failed) == (1, 2)


def test_generators_are_refused(clock: Clock) -> None:
    breaker = CircuitBreaker(clock=clock)

    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for fn in (numbers, later):
        with pytest.raises(ConfigurationError, match="generator"):
            breaker(fn)


def test_a_nested_rejection_is_not_a_failure_of_the_server(clock: Clock) -> None:
    inner, outer = in_state(OPEN, clock), CircuitBreaker(1, 60, clock=clock)
    with pytest.raises(CircuitOpenError):
        outer.call(inner.call, boom)
    assert (outer.get_state(), outer.snapshot().cancelled) == (CLOSED, 1)


# By hand


def test_forced_open_rejects_until_reset_whatever_the_time(clock: Clock) -> None:
    breaker = in_state(FORCED_OPEN, clock)
    clock.advance(1e8)
    with pytest.raises(CircuitOpenError) as caught:
        breaker.acquire()
    assert caught.value.retry_after == breaker.retry_after == 60
    assert breaker.get_state() is FORCED_OPEN
    breaker.reset()
    succeed(breaker)
    assert breaker.get_state() is CLOSED


@pytest.mark.parametrize("state", [FORCED_OPEN, HALF_OPEN])
def test_without_any_wait_a_rejection_is_still_a_rejection(state: CircuitState, clock: Clock) -> None:
    breaker = CircuitBreaker(1, 0, clock=clock)
    if state is FORCED_OPEN:
        breaker.force_open()
    else:
        fail(breaker)
        breaker.acquire()
    with pytest.raises(CircuitOpenError):
        breaker.acquire()


def test_disabled_lets_everything_pass_and_judges_nothing(clock: Clock) -> None:
    breaker = in_state(DISABLED, clock)
    fail(breaker, times=100)
    assert (breaker.get_state(), breaker.failure_count) == (DISABLED, 0)
    assert breaker.snapshot().failed == 100
    breaker.reset()
    fail(breaker, times=2)
    assert breaker.get_state() is OPEN


@pytest.mark.parametrize("state", list(CircuitState))
def test_reset_closes_from_every_state_and_forgets(state: CircuitState, clock: Clock) -> None:
    breaker = in_state(state, clock)
    breaker.reset()
    snapshot = breaker.snapshot()
    assert snapshot.state is CLOSED
    assert (snapshot.failure_count, snapshot.last_failure_time, snapshot.opened_at) == (0, None, None)
    fail(breaker)
    assert breaker.get_state() is CLOSED


# The table of transitions


def probe_after(breaker: CircuitBreaker, clock: Clock, *, seconds: float) -> None:
    clock.advance(seconds)
    breaker.acquire()


CAUSES: dict[tuple[CircuitState, CircuitState], Callable[[CircuitBreaker, Clock], None]] = {
    (CLOSED, OPEN): lambda breaker, _: fail(breaker, times=2),
    (OPEN, HALF_OPEN): lambda breaker, clock: probe_after(breaker, clock, seconds=60),
    (HALF_OPEN, OPEN): lambda breaker, _: fail(breaker),
    (HALF_OPEN, CLOSED): lambda breaker, _: succeed(breaker),
    **{(state, CLOSED): lambda breaker, _: breaker.reset() for state in (OPEN, FORCED_OPEN, DISABLED)},
    **{(state, FORCED_OPEN): lambda breaker, _: breaker.force_open() for state in CircuitState},
    **{(state, DISABLED): lambda breaker, _: breaker.disable() for state in CircuitState},
}
LEGAL = [(origin, to) for origin, targets in TRANSITIONS.items() for to in targets]
ILLEGAL = [(origin, to) for origin in CircuitState for to in CircuitState if to not in TRANSITIONS[origin]]


@pytest.mark.parametrize(("origin", "to"), sorted(LEGAL))
def test_every_legal_transition_has_a_cause_and_is_announced(
    origin: CircuitState, to: CircuitState, clock: Clock
) -> None:
    breaker = in_state(origin, clock, wall_clock=lambda: 1.7e9)
    seen = recorded(breaker)
    CAUSES[origin, to](breaker, clock)
    assert breaker.get_state() is to
    assert path(seen) == [(origin, to)]
    assert (seen[0].name, seen[0].at) == ("redis", 1.7e9)
    assert seen[0].reason


@pytest.mark.parametrize(("origin", "to"), sorted(ILLEGAL))
def test_every_other_transition_is_refused_and_changes_nothing(
    origin: CircuitState, to: CircuitState, clock: Clock
) -> None:
    breaker = in_state(origin, clock)
    seen = recorded(breaker)
    before = breaker.snapshot()
    with pytest.raises(RuntimeError, match=f"cannot go from {origin} to {to}"):
        breaker._move(to, "test", clock())
    assert breaker.snapshot() == before
    assert seen == []


def test_repeating_a_command_announces_nothing(clock: Clock) -> None:
    breaker = CircuitBreaker(clock=clock)
    seen = recorded(breaker)
    for command in (breaker.force_open, breaker.disable, breaker.reset):
        command()
        command()
    assert path(seen) == [(CLOSED, FORCED_OPEN), (FORCED_OPEN, DISABLED), (DISABLED, CLOSED)]


# Listeners


def test_a_raising_listener_breaks_neither_call_nor_state(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)
    breaker.add_listener(lambda _: raise_(RuntimeError("listener bug")))
    seen = recorded(breaker)
    with pytest.raises(ConnectionError, match="down"):
        breaker.call(boom)
    assert breaker.get_state() is OPEN
    clock.advance(60)
    assert breaker.call(lambda: 5) == 5
    assert path(seen) == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 3
    assert errors[0].exc_info is not None
    assert "listener bug" in str(errors[0].exc_info[1])


def test_a_listener_may_use_the_breaker_and_the_order_stays(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)
    states: list[CircuitState] = []

    def reset_when_open(change: Transition) -> None:
        assert not breaker._lock.locked()
        states.append(breaker.get_state())
        if change.to_state is OPEN:
            breaker.reset()

    breaker.add_listener(reset_when_open)
    seen = recorded(breaker)
    fail(breaker)
    assert path(seen) == [(CLOSED, OPEN), (OPEN, CLOSED)]
    assert states == [OPEN, CLOSED]


def test_listeners_hear_racing_transitions_in_order_and_one_at_a_time() -> None:
    breaker = CircuitBreaker(1, 0)
    seen: list[Transition] = []
    inside = 0
    overlaps = 0

    def listen(change: Transition) -> None:
        nonlocal inside, overlaps
        inside += 1
        overlaps += inside > 1
        seen.append(change)
        time.sleep(0)  # invites another thread in
        inside -= 1

    def work(seed: int) -> None:
        start.wait()
        for step in range(200):
            (breaker.force_open, breaker.disable, breaker.reset)[(step * 7 + seed) % 3]()

    breaker.add_listener(listen)
    start = threading.Barrier(8)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) >= 3
    assert overlaps == 0
    assert [change.from_state for change in seen] == [CLOSED, *(change.to_state for change in seen[:-1])]
    assert seen[-1].to_state is breaker.get_state()


def test_an_interrupt_in_a_listener_does_not_silence_the_breaker(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 60, clock=clock)
    breaker.add_listener(lambda change: raise_(KeyboardInterrupt()) if change.to_state is OPEN else None)
    with pytest.raises(KeyboardInterrupt):
        fail(breaker)
    seen = recorded(breaker)
    breaker.reset()
    assert path(seen) == [(OPEN, CLOSED)]


def test_a_transition_is_frozen_and_opening_is_a_warning(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    breaker = CircuitBreaker(1, 60, name="cache", clock=clock)
    seen = recorded(breaker)
    fail(breaker)
    breaker.reset()
    with pytest.raises(FrozenInstanceError):
        seen[0].reason = "other"  # type: ignore[misc]  # that is the point
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "breaker cache: closed -> open (1 failures in a row)"),
        ("INFO", "breaker cache: open -> closed (reset)"),
    ]


# Snapshot


def test_last_failure_time_is_wall_clock_time_of_the_last_counted_failure() -> None:
    breaker = CircuitBreaker(5, 60, counts=ConnectionError)
    assert breaker.last_failure_time is None
    succeed(breaker)
    breaker.failure(breaker.acquire(), ValueError())
    assert breaker.snapshot().last_failure_time is None
    before = time.time()
    fail(breaker)
    reported = breaker.snapshot().last_failure_time
    assert reported is not None
    assert before <= reported <= time.time()
    assert breaker.last_failure_time == reported


def test_the_snapshot_counts_calls_by_kind_and_fits_json(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 60, name="cache", clock=clock, wall_clock=lambda: 1.7e9)
    late = breaker.acquire()
    for _ in range(3):
        succeed(breaker)
    breaker.cancel(breaker.acquire())
    fail(breaker, times=2)
    breaker.success(late)
    clock.advance(10)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    snapshot = breaker.snapshot()
    assert snapshot == BreakerSnapshot(
        name="cache",
        state=OPEN,
        failure_count=2,
        last_failure_time=1.7e9,
        opened_at=1.7e9,
        retry_after=50,
        successful=3,
        failed=2,
        slow=0,
        rejected=1,
        cancelled=1,
        late=1,
    )
    assert json.loads(json.dumps(asdict(snapshot), allow_nan=False))["state"] == "open"
    breaker.force_open()
    assert json.dumps(asdict(breaker.snapshot()), allow_nan=False)


def test_threads_lose_no_failure() -> None:
    breaker = CircuitBreaker(10**6, 60)
    threads = [threading.Thread(target=fail, args=(breaker,), kwargs={"times": 500}) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert breaker.failure_count == breaker.snapshot().failed == 8000


# Construction and life


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"failure_threshold": 0}, "failure_threshold"),
        ({"failure_threshold": 1.5}, "failure_threshold"),
        ({"failure_threshold": True}, "failure_threshold"),
        ({"recovery_timeout": -1}, "recovery_timeout"),
        ({"recovery_timeout": math.nan}, "recovery_timeout"),
        ({"recovery_timeout": math.inf}, "recovery_timeout"),
        ({"recovery_timeout": "60"}, "recovery_timeout"),
        ({"name": ""}, "name"),
        ({"counts": "ConnectionError"}, "counts"),
        ({"counts": int}, "counts"),
        ({"counts": (ConnectionError, "x")}, "counts"),
        ({"failure_rate": 0, "window_size": 10}, "failure_rate"),
        ({"failure_rate": 1.01, "window_size": 10}, "failure_rate"),
        ({"failure_rate": 0.5}, "window_size"),
        ({"window_size": 10}, "window_size"),
        ({"window_seconds": 10}, "window_size"),
        ({"failure_rate": 0.5, "window_size": 0}, "window_size"),
        ({"failure_rate": 0.5, "window_seconds": 0}, "window_seconds"),
        ({"failure_rate": 0.5, "window_size": 10, "window_seconds": 10}, "window_size"),
        ({"minimum_calls": 0}, "minimum_calls"),
        ({"slow_call_seconds": 1, "window_size": 10}, "slow_call_rate"),
        ({"slow_call_rate": 0.5, "window_size": 10}, "slow_call_rate"),
        ({"slow_call_rate": 2, "slow_call_seconds": 1, "window_size": 10}, "slow_call_rate"),
        ({"slow_call_rate": 0.5, "slow_call_seconds": -1, "window_size": 10}, "slow_call_seconds"),
        ({"half_open_permits": 0}, "half_open_permits"),
        ({"half_open_max_seconds": 0}, "half_open_max_seconds"),
        ({"backoff": 0.9}, "backoff"),
        ({"max_recovery_timeout": 59}, "max_recovery_timeout"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize("required", ["failure_threshold", "recovery_timeout", "minimum_calls", "backoff", "jitter"])
def test_a_setting_that_is_needed_cannot_be_none(required: str) -> None:
    settings: dict[str, Any] = {required: None}
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker(**settings)
    assert caught.value.field == required


def test_a_forked_child_does_not_inherit_a_held_lock(clock: Clock) -> None:
    breaker = in_state(OPEN, clock)
    with breaker._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking beside threads
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            os._exit(0 if breaker.get_state() is OPEN else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_breaker_nobody_holds_is_collected() -> None:
    breaker = CircuitBreaker()
    gone = weakref.ref(breaker)
    del breaker
    gc.collect()
    assert gone() is None


# Against a model


class BreakerModel(RuleBasedStateMachine):
    """The breaker beside a naive one, in which time passes second by second and timers fire on the spot."""

    permits = Bundle("permits")
    THRESHOLD, TIMEOUT, STAY, PROBES, CAP = 3, 10, 15, 2, 40

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(
            self.THRESHOLD,
            self.TIMEOUT,
            counts=ConnectionError,
            half_open_permits=self.PROBES,
            half_open_max_seconds=self.STAY,
            backoff=2,
            max_recovery_timeout=self.CAP,
            clock=self.clock,
        )
        self.seen = recorded(self.breaker)
        self.state = CLOSED
        self.era = 0
        self.failures = 0
        self.timer = 0
        self.wait = self.TIMEOUT
        self.out = 0
        self.good = 0
        self.totals = dict.fromkeys(("successful", "failed", "rejected", "cancelled", "late"), 0)

    def go(self, to: CircuitState, *, timer: int = 0) -> None:
        self.state, self.timer = to, timer
        self.era += 1
        self.out = self.good = 0
        if to in (CLOSED, DISABLED):
            self.failures = 0

    def open(self) -> None:
        self.wait = min(self.wait * 2, self.CAP) if self.state is HALF_OPEN else self.TIMEOUT
        self.go(OPEN, timer=self.wait)

    @rule(seconds=st.integers(1, 30))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)
        for _ in range(seconds):
            self.timer = max(0, self.timer - 1)
            if self.state is HALF_OPEN and self.timer == 0:
                self.open()

    def try_to_acquire(self) -> tuple[Permit, int] | None:
        if self.state is OPEN and self.timer == 0:
            self.go(HALF_OPEN, timer=self.STAY)
        if self.state in (OPEN, FORCED_OPEN) or (self.state is HALF_OPEN and self.out + self.good == self.PROBES):
            self.totals["rejected"] += 1
            with pytest.raises(CircuitOpenError):
                self.breaker.acquire()
            return None
        self.out += 1
        return self.breaker.acquire(), self.era

    def is_late(self, era: int) -> bool:
        if era != self.era:
            self.totals["late"] += 1
            return True
        self.out -= 1
        return False

    @rule(target=permits)
    def acquire(self) -> Any:
        held = self.try_to_acquire()
        return multiple() if held is None else held

    @rule(held=consumes(permits))
    def succeed(self, held: tuple[Permit, int]) -> None:
        self.report_success(held)

    @rule(held=consumes(permits))
    def fail(self, held: tuple[Permit, int]) -> None:
        self.report_failure(held)

    def report_success(self, held: tuple[Permit, int]) -> None:
        self.breaker.success(held[0])
        if self.is_late(held[1]):
            return
        self.totals["successful"] += 1
        if self.state is CLOSED:
            self.failures = 0
        elif self.state is HALF_OPEN:
            self.good += 1
            if self.good == self.PROBES:
                self.go(CLOSED)

    def report_failure(self, held: tuple[Permit, int]) -> None:
        self.breaker.failure(held[0], ConnectionError())
        if self.is_late(held[1]):
            return
        self.totals["failed"] += 1
        if self.state is not DISABLED:
            self.failures += 1
            if self.state is HALF_OPEN or self.failures == self.THRESHOLD:
                self.open()

    @rule(held=consumes(permits), exc=st.sampled_from([None, ValueError(), asyncio.CancelledError()]))
    def give_back(self, held: tuple[Permit, int], exc: BaseException | None) -> None:
        if exc is None:
            self.breaker.cancel(held[0])
        else:
            self.breaker.failure(held[0], exc)
        if not self.is_late(held[1]):
            self.totals["cancelled"] += 1

    @rule(outcomes=st.lists(st.booleans(), min_size=1, max_size=4))
    def make_calls(self, outcomes: list[bool]) -> None:
        for is_good in outcomes:
            held = self.try_to_acquire()
            if held is not None:
                (self.report_success if is_good else self.report_failure)(held)

    @rule(to=st.sampled_from([CLOSED, FORCED_OPEN, DISABLED]))
    def command(self, to: CircuitState) -> None:
        {CLOSED: self.breaker.reset, FORCED_OPEN: self.breaker.force_open, DISABLED: self.breaker.disable}[to]()
        if to is CLOSED or self.state is not to:
            self.go(to)

    @rule()
    def look(self) -> None:
        snapshot = self.breaker.snapshot()
        assert snapshot.state is (HALF_OPEN if self.state is OPEN and self.timer == 0 else self.state)
        assert snapshot.failure_count == self.failures
        assert {kind: getattr(snapshot, kind) for kind in self.totals} == self.totals
        if self.state is OPEN:
            assert snapshot.retry_after == self.timer
        elif self.state is FORCED_OPEN:
            assert snapshot.retry_after == self.TIMEOUT
        elif self.state is HALF_OPEN and self.out + self.good == self.PROBES:
            assert 0 < snapshot.retry_after <= self.timer
        else:
            assert snapshot.retry_after == 0

    @invariant()
    def announcements_form_one_legal_path(self) -> None:
        at = CLOSED
        for change in self.seen:
            assert change.from_state is at
            assert change.to_state in TRANSITIONS[at]
            at = change.to_state

    def teardown(self) -> None:
        self.look()


TestBreakerAgainstModel = BreakerModel.TestCase
TestBreakerAgainstModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
