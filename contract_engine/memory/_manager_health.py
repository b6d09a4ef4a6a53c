"""What a manager checks of itself, and what its report says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from contract_engine.memory._effects import Command, Flow, query, redis_call
from contract_engine.memory._log import PING
from contract_engine.memory._log_outbox import OUTBOX_HEALTH
from contract_engine.memory._manager_flows import ManagerFlows
from contract_engine.memory._runtime.checkup import CheckResult, Checks
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.errors import StoreMisconfiguredError
from contract_engine.memory.health import (
    OUTBOX,
    POSTGRES,
    REDIS,
    STORES,
    SUMMARIZER,
    UNLOGGED,
    CheckState,
    HealthCheck,
    HealthReport,
    HealthStatus,
    OperationMode,
    SystemHealthMonitor,
)


class OutboxHealth(NamedTuple):
    """How a tenant's outbox is: its messages, of their sessions those that have failed and those put aside, its age."""

    has_phase: bool = False
    messages: int = 0
    failing: int = 0
    parked: int = 0
    oldest_seconds: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is a legacy store, or was one that still lacks something."""
        return bool(self.has_phase or self.messages)


class _Warning:
    """A check that nothing is asked for, and that warns at most; it knows since when it says what it says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_on = False
        self._since = time.time()

    def told(self, detail: str, *, is_on: bool, began: float | None = None) -> HealthCheck:
        """Return it as it is now. ``began``: when what it warns of began, where that is known."""
        if is_on != self._is_on:
            self._is_on, self._since = is_on, began or time.time()
        return HealthCheck(
            name=self._name,
            state=CheckState.WARN if is_on else CheckState.OK,
            critical=False,
            took_ms=0.0,
            detail=detail,
            since=self._since,
        )


class ManagerHealth(Checks[HealthReport]):
    """The checks of one manager, and the monitor that hears of them."""

    def __init__(self, flows: ManagerFlows, breakers: Mapping[str, CircuitBreaker]) -> None:
        """``breakers``: of each service that is configured and has one."""
        self._flows = flows
        self._breakers = dict(breakers)
        services = [REDIS]
        if flows.config.is_durable:
            services.append(POSTGRES)
        if flows.has_model:
            services.append(SUMMARIZER)
        self.monitor = SystemHealthMonitor(tuple(services))
        for service, breaker in self._breakers.items():
            self.monitor.watch(service, breaker)
        self._outbox = OutboxHealth()
        self._unlogged_warning, self._outbox_warning = _Warning(UNLOGGED), _Warning(OUTBOX)

    def flows(self) -> Mapping[str, Callable[[], Flow[str]]]:
        checks = {REDIS: self._check_redis, POSTGRES: self._check_postgres}
        return {name: check for name, check in checks.items() if name in self.monitor.services}

    def _check_redis(self) -> Flow[str]:
        yield from redis_call(Command(("PING",)))
        return "answers"

    def _check_postgres(self) -> Flow[str]:
        yield from query(PING, {})
        try:
            row = (yield from query(OUTBOX_HEALTH, {"of_tenant": self._flows.config.tenant}))[0]
            self._outbox = OutboxHealth._make(row)
        except StoreMisconfiguredError:
            self._outbox = OutboxHealth()  # an older schema; the doctor says so
        return "answers"

    def report(self, results: Mapping[str, CheckResult]) -> HealthReport:
        is_durable = self._flows.config.is_durable
        for name, result in results.items():
            if result.error:
                self.monitor.report_service_error(name, result.error)
            else:
                self.monitor.report_service_recovery(name)
        checks = [self._service_check(name, results.get(name)) for name in self.monitor.services]
        if is_durable:
            checks.append(self._backlog_check())
            if self._outbox.is_known:
                checks.append(self._outbox_check())
        stores = [check.state is CheckState.OK for check in checks if check.name in STORES]
        if all(check.state is CheckState.OK for check in checks):
            status = HealthStatus.HEALTHY
        else:
            status = HealthStatus.DEGRADED if any(stores) else HealthStatus.UNHEALTHY
        mode = self.monitor.get_operation_mode()
        if mode is OperationMode.FULL and status is HealthStatus.DEGRADED:
            mode = OperationMode.DEGRADED
        return HealthReport(
            status=status,
            mode=mode,
            storage="durable" if is_durable else "ephemeral",
            detail=_detail(is_durable=is_durable, is_up=dict(zip(STORES, stores, strict=False))),
            checks=tuple(checks),
            at=time.time(),
            breakers={name: breaker.get_state().value for name, breaker in self._breakers.items()},
            damaged=self._flows.damaged,
            summarizer=self._flows.model_stats(),
        )

    def _service_check(self, name: str, result: CheckResult | None) -> HealthCheck:
        facts = self.monitor.facts(name)
        found = result.detail if result is not None else "is not asked for a check"
        breaker = self._breakers.get(name)
        said = facts.error or (found if breaker is None else f"{found}; circuit breaker {breaker.get_state()}")
        return HealthCheck(
            name=name,
            state=CheckState.OK if facts.is_available else CheckState.FAIL,
            critical=name == REDIS and not self._flows.config.is_durable,
            took_ms=0.0 if result is None else round(result.seconds * 1000, 3),
            detail=said,
            since=facts.since,
        )

    def _backlog_check(self) -> HealthCheck:
        count, oldest = self._flows.unlogged_backlog()
        detail = "no session that was written here waits to be logged"
        if count:
            detail = f"sessions that were written here wait in Redis to be logged: {count}"
        return self._unlogged_warning.told(detail, is_on=bool(count), began=oldest)

    def _outbox_check(self) -> HealthCheck:
        # What was found last is what is known: while the database is away nothing leaves the outbox either.
        found = self._outbox
        detail = f"messages that wait for the legacy store: {found.messages}"
        if found.oldest_seconds is not None:
            detail += f", the oldest for {found.oldest_seconds:,.0f} s"
        if found.failing:
            detail += f"; it has failed for sessions: {found.failing}"
        if found.parked:
            detail += f"; sessions put aside: {found.parked}"
        return self._outbox_warning.told(detail, is_on=bool(found.failing or found.parked))


def _detail(*, is_durable: bool, is_up: Mapping[str, bool]) -> str:
    """Say what an acknowledgement is worth now."""
    if not is_durable:
        return "no database is configured: what Redis loses is lost"
    if is_up[POSTGRES]:
        return "every acknowledged message is committed in PostgreSQL"
    if is_up[REDIS]:
        return "PostgreSQL is away: acknowledged messages wait in Redis, which alone has them until it is back"
    return "both servers are away: nothing is acknowledged"
