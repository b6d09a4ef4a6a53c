"""A circuit breaker moved by hand, its transitions, listeners and snapshot, and the life of one."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from breaker_states import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    OPEN,
    Clock,
    boom,
    fail,
    in_state,
    path,
    raise_,
    recorded,
    succeed,
)

from contract_engine.memory.circuit_breaker import (
    TRANSITIONS,
    BreakerSnapshot,
    CircuitBreaker,
    CircuitState,
    Transition,
)
from contract_engine.memory.errors import CircuitOpenError, ConfigurationError

pytest_plugins = ("breaker_fixtures",)


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
