"""The circuit breaker against a naive one, in histories made at random."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from breaker_states import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, OPEN, Clock, recorded
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from contract_engine.memory.circuit_breaker import TRANSITIONS, CircuitBreaker, CircuitState, Permit
from contract_engine.memory.errors import CircuitOpenError


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
