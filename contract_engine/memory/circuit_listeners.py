"""Those who want to know of each change of a breaker's state."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from contract_engine.memory.circuit_state import OPEN, Transition
from contract_engine.memory.hooks import tell_all

Listener = Callable[[Transition], None]

logger = logging.getLogger("contract_engine.memory.circuit_breaker")


class CircuitListeners:
    """Tells of changes in order and one at a time, in whichever thread comes by; the log is told first."""

    def __init__(self) -> None:
        self.pending: deque[Transition] = deque()
        """Changes nobody was told of yet. The breaker adds to them within its lock, so that they are in order."""
        self._listeners: tuple[Listener, ...] = ()
        self.after_fork()

    def after_fork(self) -> None:
        """Begin afresh in a child: the thread of the parent that held the lock or was telling does not exist here."""
        self._lock = threading.Lock()
        self._is_telling = False

    def add(self, listener: Listener) -> None:
        """Tell this one too from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def tell(self) -> None:
        """Tell of what is pending; the caller holds no lock, since a listener may use the breaker."""
        while self.pending:
            with self._lock:
                # Whoever is telling finds what is pending; two at once would break the order.
                if self._is_telling or not self.pending:
                    return
                self._is_telling = True
                change = self.pending.popleft()
                listeners = self._listeners
            try:
                level = logging.WARNING if change.to_state is OPEN else logging.INFO
                path = f"{change.from_state} -> {change.to_state}"
                logger.log(level, "breaker %s: %s (%s)", change.name, path, change.reason)
                tell_all(listeners, change, _log_failure)
            finally:
                with self._lock:
                    self._is_telling = False


def _log_failure(_listener: object, exc: Exception) -> None:
    logger.error("a listener of a breaker failed", exc_info=exc)
