"""Metrics for Prometheus (extra ``metrics``): what goes on in this process, without any session or tenant."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.durations import SECONDS, Distribution, Totals, all_durations
from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.hooks import (
    BufferRead,
    Detail,
    DualWriteMismatch,
    Fallback,
    FoldEnded,
    MessagesDrained,
    MessagesUnlogged,
    SummaryWritten,
    observers,
    tell_all,
)
from contract_engine.memory.watched import CountedOutbox, WatchedDualWrite, WatchedManager, breaker_metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

logger = logging.getLogger(__name__)

MESSAGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0, 250.0, 1000.0)
TOKENS = (0.0, 100.0, 250.0, 500.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 8000.0, 16000.0, 64000.0)
TTL_SECONDS = (0.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0, 86400.0)


class Backlog(NamedTuple):
    """What waits somewhere; ``oldest_age_seconds`` is 0 where nothing waits, None where nobody knows.

    ``parked``: how many of them wait for somebody to look at them; None where there is no such thing.
    """

    waiting: int
    oldest_age_seconds: float | None = 0.0
    parked: int | None = None


COUNTERS = {
    "memory_fallback": ("reason", "Calls that went another way than the usual one, by reason."),
    "memory_folds": ("", "Folds: how often messages became summary."),
    "memory_folded_messages": ("", "Messages that became summary."),
    "memory_tokens_saved": ("", "Tokens by which folds have made contexts smaller."),
    "memory_summaries": ("method", "Summary versions written, by method."),
    "memory_summary_merges": ("", "Folds that went on from an earlier summary."),
    "memory_messages_unlogged": ("", "Messages acknowledged by Redis alone, PostgreSQL being away."),
    "memory_messages_drained": ("", "Messages logged that had waited in Redis."),
    "memory_dual_write_mismatch": ("kind", "Differences found between the two sides of a dual write, by kind."),
}
"""Label and help of each counter; in the text ``_total`` is added to the names."""

BUFFER_HELP = {
    "memory_buffer_messages": "Messages word for word in the contexts that were read.",
    "memory_buffer_tokens": "Tokens of the messages word for word in the contexts that were read.",
    "memory_buffer_ttl_seconds": "How long the buffers that were read would have stayed in Redis.",
}


class MemoryMetrics:
    """Collects from every operation of the process from its construction to :meth:`close`.

    ``registry``: where the metrics are found, by default a new one; it then holds nothing else. Breakers and backlogs
    are those of the managers it is told to :meth:`watch`. Raises :class:`ConfigurationError` where the extra is
    missing.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._client = prometheus()
        self.registry: CollectorRegistry = self._client.CollectorRegistry() if registry is None else registry
        self._before = all_durations()
        self._buffers = {
            "memory_buffer_messages": Distribution(MESSAGES),
            "memory_buffer_tokens": Distribution(TOKENS),
            "memory_buffer_ttl_seconds": Distribution(TTL_SECONDS),
        }
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._breakers: dict[int, CircuitBreaker] = {}
        self._backlogs: dict[str, Callable[[], Backlog | None]] = {}
        self._managers: list[WatchedManager] = []
        self.registry.register(cast("Any", self))
        self._stop = observers.add_recorder(self.take)
        _all.add(self)

    def watch(self, manager: WatchedManager) -> None:
        """Show the breakers and the backlog of this manager too, until :meth:`close`."""
        with self._lock:
            self._managers.append(manager)
            for breaker in (manager.circuit_breaker, manager.database_breaker, manager.summarizer_breaker):
                if breaker is not None:
                    self._breakers[id(breaker)] = breaker

    def watch_dual_write(self, store: WatchedDualWrite) -> None:
        """Show the outbox as this adapter has counted it last, and its legacy store's breaker, until :meth:`close`.

        An adapter that relays counts every few seconds; one that does not, at each call of its ``backlog()``. Until the
        first count there are no figures. The newest adapter told of is the one that is shown.
        """
        self.add_backlog("outbox", lambda: _outbox(store.last_backlog))
        with self._lock:
            self._breakers[id(store.legacy_breaker)] = store.legacy_breaker

    def add_backlog(self, name: str, read: Callable[[], Backlog | None]) -> None:
        """Show ``memory_<name>_messages`` and ``memory_<name>_oldest_age_seconds``, read whenever somebody looks.

        ``read`` must answer at once, from memory; None is shown as nothing.
        """
        if not name.isidentifier():
            raise ConfigurationError("name", f"expected a part of a metric's name, got {name!r}")
        with self._lock:
            self._backlogs[name] = read

    def text(self) -> bytes:
        """Return everything in the registry in the text format of Prometheus."""
        text: bytes = self._client.generate_latest(self.registry)
        return text

    def close(self) -> None:
        """Collect no more, and take the metrics out of the registry."""
        self._stop()
        self.registry.unregister(cast("Any", self))
        with _making:
            if self in _own:
                _own.remove(self)

    def after_fork(self) -> None:
        """Begin with another lock in a child: the thread of the parent that held it does not exist there."""
        self._lock = threading.Lock()

    def take(self, detail: Detail) -> None:
        """Take one detail: the hook itself."""
        if isinstance(detail, BufferRead):
            sizes = (detail.messages, detail.tokens, detail.ttl_seconds)
            for distribution, size in zip(self._buffers.values(), sizes, strict=True):
                if size is not None:
                    distribution.add(size)
            return
        counts = list(_counts(detail))
        with self._lock:
            for name, label, count in counts:
                self._counts[name, label] += count

    def describe(self) -> list[Metric]:
        """Tell the registry nothing beforehand: else it would collect once to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; what prometheus-client calls."""
        core = self._client.core
        yield self._histogram(
            "memory_operation_duration_seconds",
            "Time of operations (backend manager) and of their steps (redis, postgres, model, summarizer, legacy).",
            ("operation", "backend", "outcome"),
            SECONDS,
            self._durations(),
        )
        for name, sizes in self._buffers.items():
            yield self._histogram(name, BUFFER_HELP[name], (), sizes.bounds, [((), sizes.totals())])
        with self._lock:
            counts = dict(self._counts)
            breakers, backlogs, managers = list(self._breakers.values()), dict(self._backlogs), list(self._managers)
        for name, (label, text) in COUNTERS.items():
            counter = core.CounterMetricFamily(name, text, labels=[label] if label else [])
            if not label:
                counter.add_metric([], counts.get((name, ""), 0))
            for (of, value), count in sorted(counts.items()):
                if of == name and label:
                    counter.add_metric([value], count)
            yield counter
        yield from breaker_metrics(core, breakers)
        yield from backlog_metrics(core, "unlogged", _unlogged(managers), unit="sessions")
        for name, read in backlogs.items():
            found: list[Backlog | None] = []
            tell_all([lambda read, found=found: found.append(read())], read, _log_failure)  # type: ignore[misc]
            for backlog in found:
                if backlog is not None:
                    yield from backlog_metrics(core, name, backlog)

    def _durations(self) -> Iterator[tuple[tuple[str, ...], Totals]]:
        """Yield what has been timed since the beginning, by labels: the distributions are older, and of the process."""
        for labels, totals in all_durations().items():
            before = self._before.get(labels)
            mine = totals if before is None else totals.since(before)
            if any(mine.counts):
                yield labels, mine

    def _histogram(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        bounds: tuple[float, ...],
        series: Iterable[tuple[tuple[str, ...], Totals]],
    ) -> Metric:
        family = self._client.core.HistogramMetricFamily(name, text, labels=labels)
        ends = (*map(str, bounds), "+Inf")
        for values, totals in series:
            family.add_metric(
                values, buckets=list(zip(ends, accumulate(totals.counts), strict=True)), sum_value=totals.sum
            )
        return cast("Metric", family)


def _counts(detail: Detail) -> Iterator[tuple[str, str, int]]:
    """Yield what a detail adds to which counters: name, label, count."""
    if isinstance(detail, Fallback):
        yield "memory_fallback", detail.reason, 1
    elif isinstance(detail, FoldEnded):
        yield "memory_folds", "", 1
        yield "memory_folded_messages", "", detail.messages
        yield "memory_summary_merges", "", int(detail.is_merge)
        yield "memory_tokens_saved", "", detail.tokens_saved
    elif isinstance(detail, SummaryWritten):
        yield "memory_summaries", detail.method, 1
    elif isinstance(detail, MessagesUnlogged):
        yield "memory_messages_unlogged", "", detail.count
    elif isinstance(detail, MessagesDrained):
        yield "memory_messages_drained", "", detail.count
    elif isinstance(detail, DualWriteMismatch):
        yield "memory_dual_write_mismatch", detail.kind, detail.count


def _log_failure(_read: object, exc: Exception) -> None:
    logger.error("a backlog cannot be read", exc_info=exc)


def backlog_metrics(core: Any, name: str, backlog: Backlog, *, unit: str = "messages") -> Iterator[Metric]:
    """Yield the gauges of something that waits; no age where it is not known."""
    yield core.GaugeMetricFamily(f"memory_{name}_{unit}", f"What waits: {name}.", value=backlog.waiting)
    if backlog.oldest_age_seconds is not None:
        text = f"For how long the oldest has been waiting: {name}; 0 where nothing waits."
        yield core.GaugeMetricFamily(f"memory_{name}_oldest_age_seconds", text, value=backlog.oldest_age_seconds)
    if backlog.parked is not None:
        text = f"Of those that wait, those that were put aside: {name}."
        yield core.GaugeMetricFamily(f"memory_{name}_parked_{unit}", text, value=backlog.parked)


def _outbox(counted: CountedOutbox | None) -> Backlog | None:
    if counted is None:
        return None
    return Backlog(counted.messages, counted.oldest_seconds or 0.0, counted.parked_messages)


def _unlogged(managers: list[WatchedManager]) -> Backlog:
    """Return how many sessions wait that managers of this process have written to, PostgreSQL being away."""
    found = [manager.unlogged_backlog for manager in managers]
    oldest = min((since for _, since in found if since is not None), default=None)
    return Backlog(sum(count for count, _ in found), 0.0 if oldest is None else max(0.0, time.time() - oldest))


def prometheus() -> Any:
    """Return the module prometheus_client, or raise :class:`ConfigurationError` that names the extra."""
    try:
        # Imported here because it is an extra, and because nobody else should pay for its import.
        import prometheus_client
        import prometheus_client.core
    except ImportError as exc:
        raise ConfigurationError("metrics", "prometheus-client is missing; install contract-engine[metrics]") from exc
    return prometheus_client


def metrics_of_process() -> MemoryMetrics:
    """Return the metrics of this process on a registry of their own; they are collected from the first call on."""
    with _making:
        if not _own:
            _own.append(MemoryMetrics())
        return _own[0]


def metrics_text() -> bytes:
    """Return what :func:`metrics_of_process` has collected, in the text format of Prometheus (``CONTENT_TYPE``)."""
    return metrics_of_process().text()


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What an application says its answer of :func:`metrics_text` is."""

_all: weakref.WeakSet[MemoryMetrics] = weakref.WeakSet()
_own: list[MemoryMetrics] = []
_making = threading.Lock()


def _after_fork() -> None:
    for metrics in list(_all):
        metrics.after_fork()


os.register_at_fork(after_in_child=_after_fork)
