"""What the two managers have in common: settings, breakers and flows, made at their first use."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from contract_engine.memory._manager_flows import ManagerFlows
from contract_engine.memory._runtime import breaker_for, database_breaker_for
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.config import MemoryConfig, SessionLimits, check_settings
from contract_engine.memory.summarizers import FactsWriter
from contract_engine.memory.token_counter import TokenCounter

if TYPE_CHECKING:
    from contract_engine.memory._manager_health import ManagerHealth
    from contract_engine.memory.health import SystemHealthMonitor

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  # used as a decorator, like cached_property
    """A property that is made at its first use, by one thread: ``functools.cached_property`` may make it twice."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: ManagerBase, owner: type) -> T: ...
    def __get__(self, instance: ManagerBase | None, owner: type) -> Self | T:
        if instance is None:
            return self
        with instance._making:
            if self._name not in instance.__dict__:
                instance.__dict__[self._name] = self._make(instance)
        made: T = instance.__dict__[self._name]
        return made


class ManagerBase:
    """What both managers are built from; nothing is read or opened before the first call."""

    def __init__(
        self,
        summary_trigger_tokens: int | None = None,
        max_buffer_tokens: int | None = None,
        *,
        max_buffer_messages: int | None = None,
        config: MemoryConfig | None = None,
        breaker: CircuitBreaker | None = None,
        facts_writer: FactsWriter | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "summary_trigger_tokens": summary_trigger_tokens,
            "max_buffer_tokens": max_buffer_tokens,
            "max_buffer_messages": max_buffer_messages,
        }
        self._making = threading.RLock()
        _managers.add(self)
        self._limit_changes = {name: value for name, value in given.items() if value is not None}
        self._given_config = config
        self._settings = settings
        self._breaker = breaker
        self._facts_writer = facts_writer
        if config is not None or settings:
            _ = self.config  # what is wrong with it is said here and not at the first call
        else:
            SessionLimits().with_changes(self._limit_changes)

    @once
    def config(self) -> MemoryConfig:
        """The settings in force: those given, else those of the environment at the first call."""
        if self._given_config is not None:
            check_settings(self._settings)
            config = replace(self._given_config, **self._settings)
        else:
            config = MemoryConfig.from_env(**self._settings)
        return (
            replace(config, limits=config.limits.with_changes(self._limit_changes)) if self._limit_changes else config
        )

    @once
    def circuit_breaker(self) -> CircuitBreaker:
        """What guards Redis; a manager that takes everything from the environment uses ``redis_circuit_breaker``."""
        if self._breaker is not None:
            return self._breaker
        return breaker_for(self.config, is_shared=self._given_config is None and not self._settings)

    @once
    def database_breaker(self) -> CircuitBreaker:
        """What guards PostgreSQL; every manager has its own."""
        return database_breaker_for(self.config)

    @property
    def summarizer_breaker(self) -> CircuitBreaker | None:
        """What guards the language model; None where there is no model, or none that has a breaker."""
        breaker = getattr(self._facts_writer, "breaker", None)
        return breaker if isinstance(breaker, CircuitBreaker) else None

    @once
    def _health(self) -> ManagerHealth:
        # Imported here because most programs never ask, and the import is to be cheap for all.
        from contract_engine.memory._manager_health import ManagerHealth

        breakers = {"redis": self.circuit_breaker}
        if self.config.is_durable:
            breakers["postgres"] = self.database_breaker
        if self.summarizer_breaker is not None:
            breakers["summarizer"] = self.summarizer_breaker
        return ManagerHealth(self._flows, breakers)

    @property
    def health_monitor(self) -> SystemHealthMonitor:
        """What knows which services are there: told by the breakers, by :meth:`health`, and by you."""
        return self._health.monitor

    @property
    def unlogged_backlog(self) -> tuple[int, float | None]:
        """How many sessions wait to be logged that this manager has written to, and since when the first of them does.

        For all it knows, which costs nothing: the time is in seconds since the epoch, None where nothing waits.
        """
        return self._flows.unlogged_backlog()

    @once
    def _flows(self) -> ManagerFlows:
        return ManagerFlows(self.config, self.circuit_breaker, self._facts_writer)

    @property
    def token_counter(self) -> TokenCounter:
        """What counts this manager's tokens."""
        return self._flows.counter

    @property
    def summary_trigger_tokens(self) -> int:
        """From how many tokens a fold is due, where a session has no setting of its own."""
        return self.config.limits.summary_trigger_tokens


_managers: weakref.WeakSet[ManagerBase] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    for manager in _managers:
        manager._making = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
