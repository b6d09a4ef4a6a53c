"""How the memory is doing, as a value: which services answer, what that means, and what can be lost meanwhile."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.circuit_state import CLOSED, DISABLED, FORCED_OPEN, OPEN, Transition
from contract_engine.memory.errors import InvalidInputError, MemoryServiceError
from contract_engine.memory.summarizers import ModelStats

REDIS, POSTGRES, SUMMARIZER, UNLOGGED, OUTBOX = "redis", "postgres", "summarizer", "unlogged", "outbox"
SERVICES = (REDIS, POSTGRES, SUMMARIZER)
STORES = (REDIS, POSTGRES)


class OperationMode(StrEnum):
    """What can be done now.

    FULL: everything. DEGRADED: sessions are read and written, but a service is away, so that it is slower, less safe,
    or without a language model. MINIMAL: no store is there; only what needs none still works.
    """

    FULL = "full"
    DEGRADED = "degraded"
    MINIMAL = "minimal"


class HealthStatus(StrEnum):
    """healthy: all checks are well. degraded: calls are served all the same. unhealthy: no path can serve them."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class CheckState(StrEnum):
    """How a check ended; ``warn`` is something that is to pass by itself."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """One check. ``critical``: without it nothing can be served. ``since``: in this state, in seconds since the epoch.

    ``detail`` says what was found, without content or credentials.
    """

    name: str
    state: CheckState
    critical: bool
    took_ms: float
    detail: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """One look at everything; up to a second old.

    ``storage``: ``durable``, or ``ephemeral`` where no database is configured; ``detail`` says what an acknowledgement
    is worth now, and what can be lost. ``at``: when it was made, in seconds since the epoch. ``breakers``: the state of
    each. ``damaged``: how many values under our keys in Redis were none of ours. ``summarizer``: what the model has
    done so far, None where there is none, or one that does not count.
    """

    status: HealthStatus
    mode: OperationMode
    storage: str
    detail: str
    checks: tuple[HealthCheck, ...]
    at: float
    breakers: Mapping[str, str]
    damaged: int
    summarizer: ModelStats | None

    @property
    def is_ready(self) -> bool:
        """Whether calls can be served, by whatever path: the answer of a readiness probe."""
        return self.status is not HealthStatus.UNHEALTHY

    def check(self, name: str) -> HealthCheck | None:
        """Return the check of this name, None where it is not made: nothing of that kind is configured."""
        return next((check for check in self.checks if check.name == name), None)

    def is_well(self, name: str) -> bool:
        """Whether there is such a check, and it is well."""
        found = self.check(name)
        return found is not None and found.state is CheckState.OK

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return asdict(self) | {"breakers": dict(self.breakers), "ready": self.is_ready}


def liveness() -> tuple[int, dict[str, Any]]:
    """Return status code and body of a liveness probe, which asks nobody: the process answers, so it is alive."""
    return 200, {"status": "alive"}


def readiness(report: HealthReport) -> tuple[int, dict[str, Any]]:
    """Return status code and body of a readiness probe: 503 only where no path can serve."""
    checks = {check.name: check.state.value for check in report.checks}
    body = {"ready": report.is_ready, "status": report.status.value, "mode": report.mode.value, "checks": checks}
    return 200 if report.is_ready else 503, body


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What is known of a service; ``error`` is why it is not available, without content or credentials."""

    is_available: bool
    since: float
    error: str = ""


class SystemHealthMonitor:
    """Knows which services are there: told by breakers, by health checks, and by whoever meets an error.

    The newest word counts. A service nobody has spoken of is available. ``services``: those that are configured, by
    default ``redis``, ``postgres`` and ``summarizer``; others raise :class:`InvalidInputError`. Threads may share one.
    """

    def __init__(
        self,
        services: tuple[str, ...] = SERVICES,
        *,
        stores: tuple[str, ...] = STORES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not services:
            raise InvalidInputError("services", "expected at least one name")
        self.services = services
        self._stores = tuple(name for name in stores if name in services)
        self._clock = wall_clock
        self._facts = dict.fromkeys(services, ServiceFacts(True, wall_clock()))

    def report_service_error(self, service: str, error: BaseException | str | None = None) -> None:
        """Take note that a service does not work; of foreign exceptions only the class is remembered."""
        if isinstance(error, BaseException):
            error = str(error) if isinstance(error, MemoryServiceError) else type(error).__name__
        before = self.facts(service)
        since = self._clock() if before.is_available else before.since
        self._facts[service] = ServiceFacts(False, since, error or "an error was reported")

    def report_service_recovery(self, service: str) -> None:
        """Take note that a service works again."""
        if not self.facts(service).is_available:
            self._facts[service] = ServiceFacts(True, self._clock())

    def is_service_available(self, service: str) -> bool:
        """Whether the newest word of a service is a good one."""
        return self.facts(service).is_available

    def get_operation_mode(self) -> OperationMode:
        """Return what can be done now."""
        if all(facts.is_available for facts in self._facts.values()):
            return OperationMode.FULL
        has_store = any(self._facts[name].is_available for name in self._stores)
        return OperationMode.DEGRADED if has_store or not self._stores else OperationMode.MINIMAL

    def facts(self, service: str) -> ServiceFacts:
        """Return what is known of a service."""
        try:
            return self._facts[service]
        except (KeyError, TypeError):
            known = ", ".join(self.services)
            raise InvalidInputError("service", f"{service!r} is unknown here; expected one of {known}") from None

    def watch(self, service: str, breaker: CircuitBreaker) -> None:
        """Hear of a service from its breaker: what opens it is an error, what closes it a recovery.

        The breaker does not keep the monitor alive.
        """
        self.facts(service)
        itself = weakref.ref(self)

        def listener(change: Transition) -> None:
            monitor = itself()
            if monitor is not None:
                monitor._hear(service, change)

        breaker.add_listener(listener)
        snapshot = breaker.snapshot()
        if snapshot.opened_at is not None:
            self._facts[service] = ServiceFacts(False, snapshot.opened_at, f"circuit breaker {snapshot.state}")

    def _hear(self, service: str, change: Transition) -> None:
        if change.to_state in (OPEN, FORCED_OPEN):
            self.report_service_error(service, f"circuit breaker {change.to_state}: {change.reason}")
        elif change.to_state in (CLOSED, DISABLED):
            self.report_service_recovery(service)
