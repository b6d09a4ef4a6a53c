"""An operator's side of a circuit breaker: its state by hand, and what health output asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from contract_engine.memory.circuit_state import CLOSED, DISABLED, FORCED_OPEN, BreakerSnapshot, CircuitState


class CircuitControl(ABC):
    """What an operator may do and see, all made of :meth:`snapshot` and one way to set the state."""

    @abstractmethod
    def snapshot(self) -> BreakerSnapshot:
        """Return state and counts of one moment."""

    @abstractmethod
    def _override(self, to: CircuitState, reason: str) -> None:
        """Go to ``to`` from any state."""

    def reset(self) -> None:
        """Close the breaker from any state and forget its failures; results of calls under way are ignored."""
        self._override(CLOSED, "reset")

    def force_open(self) -> None:
        """Reject every call until :meth:`reset` or :meth:`disable`."""
        self._override(FORCED_OPEN, "forced open")

    def disable(self) -> None:
        """Let every call pass, and judge none, until :meth:`reset` or :meth:`force_open`."""
        self._override(DISABLED, "disabled")

    def get_state(self) -> CircuitState:
        """Return the state the next caller meets: half-open as soon as the wait of an open breaker is over.

        Asking starts no probe and takes no permit, so health checks may ask at will.
        """
        return self.snapshot().state

    state = property(get_state)

    @property
    def retry_after(self) -> float:
        """Seconds until it is worth asking again: 0.0 if a call may pass now; if forced open, ``recovery_timeout``."""
        return self.snapshot().retry_after
