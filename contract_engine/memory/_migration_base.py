"""What the two adapters of a migration have in common: checked arguments, and flows made at the first use."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from contract_engine.memory.async_manager import AsyncMemoryManager
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.dual_writing import DualFlows, DualWriteStats, shares_log
from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.memory.legacy import Legacy
from contract_engine.memory.manager import MemoryManager
from contract_engine.memory.outbox import Backlog
from contract_engine.memory.phases import Phase, PhaseSetting, check_phase
from contract_engine.memory.relaying import RelaySettings
from contract_engine.memory.session_store import AsyncPostgresSessionStore, PostgresSessionStore

M = TypeVar("M", MemoryManager, AsyncMemoryManager)


class MigrationBase(ABC, Generic[M]):
    """Two stores side by side; nothing is read or opened before the first call."""

    _manager_type: type[M]
    _log_type: type[PostgresSessionStore] | type[AsyncPostgresSessionStore]
    _other: str
    """The adapter of the other colour."""

    def __init__(
        self,
        memory_manager: M | None = None,
        legacy_store: Any = None,
        *,
        phase: Phase | str | None = None,
        percentage: float | None = None,
        shadow_rate: float = 0.01,
        is_relaying: bool = True,
        relay: RelaySettings | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        share: object = shadow_rate
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InvalidInputError("shadow_rate", f"expected a share from 0 to 1, got {share!r}")
        if relay is not None and not isinstance(relay, RelaySettings):
            raise InvalidInputError("relay", f"expected RelaySettings, got {type(relay).__name__}")
        self._owned: list[Any] = []
        if memory_manager is None:
            memory_manager = self._manager_type()
            self._owned.append(memory_manager)
        self._check_manager(memory_manager)
        if legacy_store is None:
            legacy_store = self._log_type()
            self._owned.append(legacy_store)
        self.memory_manager: M = memory_manager
        self.legacy_store = legacy_store
        if phase is None and percentage is not None:
            raise InvalidInputError("percentage", "goes with phase gradual, and no phase was given")
        self._first_phase: PhaseSetting | None = None if phase is None else check_phase(phase, percentage)
        self._shadow_rate = shadow_rate
        self._is_relaying = is_relaying
        self._relay_settings = relay or RelaySettings()
        self._legacy = Legacy(legacy_store, breaker=breaker)
        self._making = threading.Lock()
        self._made: DualFlows | None = None
        self._make_worker()
        _adapters.add(self)

    @abstractmethod
    def _make_worker(self) -> None:
        """Make what relays beside the program."""

    def _check_manager(self, manager: object) -> None:
        """Refuse what is no manager of this colour, naming the adapter that takes the other one."""
        kind = self._manager_type
        if not isinstance(manager, kind):
            hint = f"; use {self._other}" if isinstance(manager, MemoryManager | AsyncMemoryManager) else ""
            raise ConfigurationError("memory_manager", f"expected {kind.__name__}, got {type(manager).__name__}{hint}")

    @property
    def _flows(self) -> DualFlows:
        if self._made is None:
            with self._making:
                if self._made is None:
                    self._made = self._make_flows()
        return self._made

    def _make_flows(self) -> DualFlows:
        manager = self.memory_manager._flows
        return DualFlows(
            manager,
            None if shares_log(manager, self.legacy_store) else self._legacy,
            phase=self._first_phase,
            shadow_rate=self._shadow_rate,
            settings=self._relay_settings,
        )

    @property
    def legacy_breaker(self) -> CircuitBreaker:
        """What guards the legacy store; a message is acknowledged whatever state it is in."""
        return self._legacy.breaker

    @property
    def last_backlog(self) -> Backlog | None:
        """What waited for the legacy store when this adapter counted last, None if it never has; asks nobody.

        While hooks or metrics listen, an adapter that relays counts every few seconds.
        """
        return self._flows.last_backlog

    @property
    def stats(self) -> DualWriteStats:
        """What this adapter has done since it was made; asks nobody."""
        return self._flows.stats()


_adapters: weakref.WeakSet[MigrationBase[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    for adapter in _adapters:
        adapter._making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
