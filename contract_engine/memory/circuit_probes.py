"""The calls that pass while a circuit breaker is half-open."""

from __future__ import annotations

from contract_engine.memory.circuit_state import CLOSED, OPEN, CircuitState


class CircuitProbes:
    """How many probes may pass, and what they say together. Not thread-safe: its owner has a lock.

    ``admitted`` is its owner's to count: up for a call that passes, down for a permit that is given back.
    """

    __slots__ = ("_permits", "_slow", "_slow_rate", "_succeeded", "admitted")

    def __init__(self, permits: int, *, slow_rate: float | None) -> None:
        self._permits = permits
        self._slow_rate = slow_rate
        self.clear()

    def clear(self) -> None:
        """Forget every probe."""
        self.admitted = self._succeeded = self._slow = 0

    @property
    def are_full(self) -> bool:
        """Whether as many have passed as may."""
        return self.admitted >= self._permits

    def verdict(self, failed: bool, slow: bool) -> tuple[CircuitState, str] | None:
        """Count one that has ended; return which state follows and why, or None while others must end first."""
        if failed:
            return OPEN, "a probe failed"
        self._succeeded += 1
        self._slow += slow
        if self._succeeded < self._permits:
            return None
        if self._slow_rate is not None and self._slow / self._succeeded >= self._slow_rate:
            return OPEN, "probes were slow"
        return CLOSED, "probes succeeded"
