"""What opens a circuit breaker, and for how long: back-off, windows, slow calls, and which exceptions count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from breaker_states import CLOSED, HALF_OPEN, OPEN, Clock, boom, fail, in_state, raise_, recorded, succeed

from contract_engine.memory.circuit_breaker import CircuitBreaker

pytest_plugins = ("breaker_fixtures",)


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


@pytest.mark.parametrize(("cap", "expected"), [(None, [5, 50, 50]), (100, [5, 100, 100]), (20, [5, 20, 20])])
def test_another_first_wait_moves_the_default_cap_and_no_other(
    cap: int | None, expected: list[int], clock: Clock
) -> None:
    breaker = CircuitBreaker(3, 10, backoff=1e9, max_recovery_timeout=cap, clock=clock)
    breaker.configure(1, 5)
    assert waits(breaker, clock, openings=3) == expected


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


def test_a_good_call_takes_no_lock_while_the_count_window_is_full_of_them(clock: Clock) -> None:
    plain = CircuitBreaker(100, 60, failure_rate=0.5, window_size=4, clock=clock)
    timed = slow_breaker(clock)
    for breaker in (plain, timed):
        for _ in range(4):
            succeed(breaker)
        with breaker._lock:  # a lock taken below would never be granted
            succeed(breaker)
        assert breaker.snapshot().successful == 5


def test_a_window_full_of_good_calls_still_sees_what_comes_after_them(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 60, failure_rate=0.5, window_size=4, minimum_calls=4, clock=clock)
    for _ in range(3):
        for _ in range(7):
            succeed(breaker)
        fail(breaker)
        for _ in range(3):
            succeed(breaker)
        fail(breaker)  # the one before it has left
        assert breaker.get_state() is CLOSED
    succeed(breaker)
    succeed(breaker)
    assert breaker.get_state() is CLOSED
    fail(breaker)
    assert breaker.get_state() is OPEN
    breaker.reset()
    fail(breaker, times=3)
    assert breaker.get_state() is CLOSED  # the good calls are forgotten, and three are fewer than the minimum


def test_a_slow_call_after_a_window_full_of_quick_ones_is_seen(clock: Clock) -> None:
    breaker = slow_breaker(clock)
    timed(breaker, clock, 0, 0, 0, 0, 0, 0, 1.5)
    assert (breaker.get_state(), breaker.snapshot().slow) == (CLOSED, 1)
    timed(breaker, clock, 1.5)
    assert (breaker.get_state(), breaker.snapshot().successful) == (OPEN, 8)


def test_a_late_success_is_late_for_a_window_full_of_good_calls_too(clock: Clock) -> None:
    for breaker in (slow_breaker(clock), CircuitBreaker(100, 60, failure_rate=0.5, window_size=4, clock=clock)):
        early = breaker.acquire()
        breaker.reset()
        for _ in range(4):
            succeed(breaker)
        breaker.success(early)
        assert (breaker.snapshot().successful, breaker.snapshot().late) == (4, 1)


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
