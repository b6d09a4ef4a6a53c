"""What is said of a circuit breaker: its states, which may follow which, and what listeners and health output see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CircuitState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED = CircuitState

TRANSITIONS: dict[CircuitState, frozenset[CircuitState]] = {
    CLOSED: frozenset({OPEN, FORCED_OPEN, DISABLED}),
    OPEN: frozenset({HALF_OPEN, CLOSED, FORCED_OPEN, DISABLED}),
    HALF_OPEN: frozenset({OPEN, CLOSED, FORCED_OPEN, DISABLED}),
    FORCED_OPEN: frozenset({CLOSED, DISABLED}),
    DISABLED: frozenset({CLOSED, FORCED_OPEN}),
}


@dataclass(slots=True)
class Permit:
    """The right to make one call in one generation of the state."""

    generation: int
    started: float


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, as listeners see it; ``at`` is in seconds since the epoch."""

    name: str
    from_state: CircuitState
    to_state: CircuitState
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSnapshot:
    """A breaker at one moment, for health output. Times are seconds since the epoch, counts run since the start.

    ``cancelled``: permits given back, by cancellation or by an exception that does not count. ``late``: results of
    calls begun in an earlier state. ``slow`` calls are also in ``successful`` or ``failed``.
    """

    name: str
    state: CircuitState
    failure_count: int
    last_failure_time: float | None
    opened_at: float | None
    retry_after: float
    successful: int
    failed: int
    slow: int
    rejected: int
    cancelled: int
    late: int
