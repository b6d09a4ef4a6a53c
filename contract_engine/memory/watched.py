"""What metrics are told to watch: managers, adapters of a migration, and the breakers of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from contract_engine.memory.circuit_breaker import CircuitBreaker, CircuitState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CALL_KINDS = ("successful", "failed", "slow", "rejected", "cancelled", "late")


class WatchedManager(Protocol):
    """What a manager of either colour tells of itself."""

    @property
    def circuit_breaker(self) -> CircuitBreaker: ...
    @property
    def database_breaker(self) -> CircuitBreaker: ...
    @property
    def summarizer_breaker(self) -> CircuitBreaker | None: ...
    @property
    def unlogged_backlog(self) -> tuple[int, float | None]: ...


class CountedOutbox(Protocol):
    """What waits for a legacy store, as somebody has counted it."""

    @property
    def messages(self) -> int: ...
    @property
    def oldest_seconds(self) -> float | None: ...
    @property
    def parked_messages(self) -> int: ...


class WatchedDualWrite(Protocol):
    """What an adapter of a migration, of either colour, tells of itself."""

    @property
    def legacy_breaker(self) -> CircuitBreaker: ...
    @property
    def last_backlog(self) -> CountedOutbox | None: ...


def breaker_metrics(core: Any, breakers: Iterable[CircuitBreaker]) -> Iterator[Metric]:
    """Yield state and calls of breakers; those of one name are counted together."""
    snapshots = [breaker.snapshot() for breaker in breakers]
    names = sorted({snapshot.name for snapshot in snapshots})
    states = core.GaugeMetricFamily(
        "memory_circuit_breaker_state",
        "How many breakers of this name are in this state: one, where there is one manager.",
        labels=["name", "state"],
    )
    calls = core.CounterMetricFamily(
        "memory_circuit_breaker_calls", "Calls by what the breaker made of them.", labels=["name", "kind"]
    )
    for name in names:
        mine = [snapshot for snapshot in snapshots if snapshot.name == name]
        for state in CircuitState:
            states.add_metric([name, state.value], sum(snapshot.state is state for snapshot in mine))
        for kind in CALL_KINDS:
            calls.add_metric([name, kind], sum(getattr(snapshot, kind) for snapshot in mine))
    yield states
    yield calls
