"""Circuit breakers in every state, on a clock that moves when told."""

from __future__ import annotations

from typing import Any

from contract_engine.memory.circuit_breaker import CircuitBreaker, CircuitState, Transition

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED = CircuitState


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def succeed(breaker: CircuitBreaker) -> None:
    breaker.success(breaker.acquire())


def fail(breaker: CircuitBreaker, *, times: int = 1) -> None:
    for _ in range(times):
        breaker.failure(breaker.acquire(), ConnectionError("down"))


def boom() -> None:
    raise ConnectionError("down")


def raise_(exc: BaseException) -> None:
    raise exc


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
