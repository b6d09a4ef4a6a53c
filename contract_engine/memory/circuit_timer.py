"""How long a circuit breaker stays in a state that ends by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from contract_engine.memory.circuit_state import HALF_OPEN, OPEN, CircuitState


class CircuitTimer:
    """When the state ends, and how the wait grows from one opening to the next. Its owner has a lock.

    For reading only: ``deadline``, when probes may pass (open) or the stay is over (half-open), infinite in any other
    state; ``wait``, seconds that this opening lasts before jitter. The first wait is the breaker's to say each time.
    """

    __slots__ = ("_backoff", "_half_open_seconds", "_jitter", "_longest_wait", "_random", "deadline", "wait")

    def __init__(
        self,
        first_wait: float,
        longest_wait: float | None,
        half_open_seconds: float | None,
        *,
        backoff: float,
        jitter: float,
        random: Callable[[], float],
    ) -> None:
        self.wait = first_wait
        self.deadline = math.inf
        self._longest_wait = longest_wait
        self._backoff = backoff
        self._jitter = jitter
        self._half_open_seconds = math.inf if half_open_seconds is None else half_open_seconds
        self._random = random

    def enter(self, to: CircuitState, now: float, first_wait: float, *, origin: CircuitState) -> None:
        """Begin a state; an opening without a recovery before it waits longer than the last one."""
        if to is OPEN:
            longest = 10 * first_wait if self._longest_wait is None else max(self._longest_wait, first_wait)
            self.wait = min(self.wait * self._backoff, longest) if origin is HALF_OPEN else first_wait
            self.deadline = now + self.wait * (1.0 - self._jitter * self._random())
        elif to is HALF_OPEN:
            self.deadline = now + self._half_open_seconds
        else:
            self.wait, self.deadline = first_wait, math.inf
