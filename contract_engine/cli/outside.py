"""Metrics that can be seen from outside an application's process: what the servers hold, and how they are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import sqlalchemy as sa

from contract_engine.cli.nodes import find_nodes, open_client, redis_failures, redis_info
from contract_engine.cli.readings import CALL_SECONDS, table_counts
from contract_engine.memory import MemoryManager, MemoryServiceError
from contract_engine.memory._effects import Command, Flow, query, redis_call, scan, transaction
from contract_engine.memory._layout import parse_unlogged
from contract_engine.memory._log_outbox import OUTBOX_FIGURES
from contract_engine.memory.errors import CorruptDataError
from contract_engine.memory.metrics import Backlog, backlog_metrics, prometheus
from contract_engine.memory.watched import breaker_metrics

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELD_SECONDS = 5.0
"""How long figures are given again; what takes a look through every key of Redis or every row is held for longer."""
HELD_LONG_SECONDS = 30.0

HELD_TIMES, TRIED_TIMES = 100, 10
"""Figures that took long to find are held for so many times as long, and so is what was looked for in vain."""

MOST_LISTS = 1000
"""Of so many sessions with waiting messages at most the oldest message is looked at."""

# name, help, whether it only grows
_REDIS_INFO = {
    "used_memory": ("memory_redis_used_memory_bytes", "Memory Redis uses.", False),
    "maxmemory": ("memory_redis_max_memory_bytes", "Memory Redis may use; 0: no limit.", False),
    "connected_clients": ("memory_redis_connected_clients", "Connections to Redis.", False),
    "evicted_keys": ("memory_redis_evicted_keys", "Keys Redis has evicted for want of memory.", True),
    "expired_keys": ("memory_redis_expired_keys", "Keys that have expired.", True),
    "keyspace_hits": ("memory_redis_keyspace_hits", "Lookups of keys that were there.", True),
    "keyspace_misses": ("memory_redis_keyspace_misses", "Lookups of keys that were not.", True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFigures:
    """What a look through the tables finds, of all tenants; ``buffered`` messages are those no summary covers."""

    active_sessions: int
    buffered: int
    summaries: Mapping[str, int]
    merges: int
    quarantined: int


@dataclass(slots=True)
class UnloggedFigures:
    """What waits in Redis to be logged, of all tenants; the age is None where no list could be read."""

    sessions: int = 0
    messages: int = 0
    oldest_age_seconds: float | None = 0.0


class OutsideMetrics:
    """Asks the servers whenever somebody looks, but never more often than every few seconds.

    A server that is away is told by ``memory_up`` and by its figures being absent. The breakers are those of this
    process: they tell how its own questions fare.
    """

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._core = prometheus().core
        self._held: dict[str, tuple[object, float]] = {}
        self._lock = threading.Lock()
        registry = prometheus().CollectorRegistry()
        registry.register(cast("Any", self))
        self.registry = registry

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        text: bytes = prometheus().generate_latest(self.registry)
        return text

    def describe(self) -> list[Metric]:
        """Tell the registry nothing beforehand: else it would ask the servers to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; what prometheus-client calls."""
        gauge = self._core.GaugeMetricFamily
        report = self._manager.health()
        up = gauge("memory_up", "Whether a service answers.", labels=["service"])
        took = gauge("memory_check_duration_seconds", "How long the check of a service took.", labels=["service"])
        for name in self._manager.health_monitor.services:
            check = report.check(name)
            assert check is not None, "there is a check of every service"
            up.add_metric([name], int(report.is_well(name)))
            took.add_metric([name], check.took_ms / 1000)
        yield up
        yield took
        yield gauge("memory_ready", "Whether calls can be served, by whatever path.", value=int(report.is_ready))
        breakers = [self._manager.circuit_breaker]
        if self._manager.config.is_durable:
            breakers.append(self._manager.database_breaker)
        yield from breaker_metrics(self._core, breakers)
        yield from self._redis_metrics()
        if self._manager.config.is_durable:
            yield from self._durable_metrics()

    def _redis_metrics(self) -> Iterator[Metric]:
        """Yield what Redis tells; of a primary that was looked up, in a Cluster or at Sentinels, under its address."""
        gauge, counter = self._core.GaugeMetricFamily, self._core.CounterMetricFamily
        infos = self._kept("redis", HELD_SECONDS, lambda: _redis_infos(self._manager.config.redis_url)) or {}
        for key, (name, text, is_counter) in _REDIS_INFO.items():
            labels = ["node"] if any(infos) else []
            family = (counter if is_counter else gauge)(name, text, labels=labels)
            for node, info in infos.items():
                if key in info:
                    family.add_metric([node] if labels else [], info[key])
            if family.samples:
                yield family

    def _durable_metrics(self) -> Iterator[Metric]:
        gauge = self._core.GaugeMetricFamily
        counts = self._kept("table counts", HELD_SECONDS, lambda: self._run(transaction(table_counts)))
        if counts is not None:
            yield gauge("memory_sessions", "Sessions in the log, about.", value=counts["sessions"].live)
            yield gauge("memory_logged_messages", "Messages in the log, about.", value=counts["messages"].live)
        figures = self._kept("tables", HELD_LONG_SECONDS, lambda: self._run(transaction(_database_figures)))
        if figures is not None:
            yield gauge("memory_active_sessions", "Sessions used within an hour.", value=figures.active_sessions)
            yield gauge("memory_unfolded_messages", "Messages no summary covers.", value=figures.buffered)
            # No counters: a purge lowers them, and rate() would take that for a restart and count all again.
            summaries = gauge("memory_logged_summaries", "Summary versions in the log, by method.", labels=["method"])
            for method, count in sorted(figures.summaries.items()):
                summaries.add_metric([method], count)
            yield summaries
            yield gauge("memory_logged_merges", "Versions that went on from an earlier one.", value=figures.merges)
            yield gauge("memory_quarantined_summaries", "Versions in quarantine.", value=figures.quarantined)
        pattern = f"{self._manager.config.key_prefix}:{{*}}:unlogged"
        waiting = self._kept("unlogged", HELD_LONG_SECONDS, lambda: self._run(_unlogged_figures(pattern)))
        if waiting is not None:
            yield gauge("memory_unlogged_messages", "Messages that wait in Redis to be logged.", value=waiting.messages)
            backlog = Backlog(waiting.sessions, waiting.oldest_age_seconds)
            yield from backlog_metrics(self._core, "unlogged", backlog, unit="sessions")
        outbox = self._kept("outbox", HELD_LONG_SECONDS, lambda: self._run(query(OUTBOX_FIGURES, {})))
        if outbox is not None:
            messages, parked, oldest_seconds = outbox[0]
            yield from backlog_metrics(self._core, "outbox", Backlog(messages, oldest_seconds, parked))

    def _run(self, flow: Flow[T]) -> T:
        return self._manager._runtime.run(flow)

    def _kept(self, name: str, seconds: float, ask: Callable[[], T]) -> T | None:
        """Return figures, asked for again when they are too old; None where nobody can tell them now."""
        with self._lock:
            held, until = self._held.get(name, (None, 0.0))
            if time.monotonic() < until:
                return cast("T | None", held)
            started, times = time.monotonic(), HELD_TIMES
            try:
                found: T | None = ask()
            except MemoryServiceError as exc:
                logger.warning("no figures of %s: %s", name, exc)
                found, seconds, times = None, HELD_SECONDS, TRIED_TIMES
            ended = time.monotonic()
            self._held[name] = (found, ended + max(seconds, times * (ended - started)))
            return found


def _redis_infos(url: str) -> dict[str, dict[str, int]]:
    """Return what each server tells; one of several that is away is left out."""
    found = {}
    nodes = find_nodes(url, timeout_seconds=CALL_SECONDS).nodes
    for node in nodes:
        try:
            with redis_failures(), open_client(node.url, timeout_seconds=CALL_SECONDS) as client:
                info = redis_info(client, "memory", "stats", "clients")
        except MemoryServiceError as exc:
            if len(nodes) == 1:
                raise
            logger.warning("no figures of redis %s: %s", node.name, exc)
            continue
        found[node.name] = {name: int(info[name]) for name in _REDIS_INFO if name in info}
    return found


def _database_figures(connection: sa.Connection) -> DatabaseFigures:
    totals = connection.execute(
        sa.text(
            "SELECT count(*) FILTER (WHERE updated_at > now() - interval '1 hour'), "
            "coalesce(sum(last_seq - watermark), 0) FROM memory_sessions"
        )
    ).one()
    rows = connection.execute(
        sa.text("SELECT method, count(*), count(parent), count(quarantined_at) FROM memory_summaries GROUP BY method")
    ).all()
    active_sessions, buffered = map(int, totals)
    return DatabaseFigures(
        active_sessions=active_sessions,
        buffered=buffered,
        summaries={row[0]: row[1] for row in rows},
        merges=sum(row[2] for row in rows),
        quarantined=sum(row[3] for row in rows),
    )


def _unlogged_figures(pattern: str) -> Flow[UnloggedFigures]:
    """Look at the lists of messages that wait: how many there are, and the oldest message of each."""
    keys = sorted(set((yield from scan(pattern))))
    figures = UnloggedFigures(sessions=len(keys))
    oldest_ms: int | None = None
    for key in keys[:MOST_LISTS]:
        # Behind its head stands the oldest; see lua/waiting.lua.
        length, first = yield from redis_call(Command(("LLEN", key)), Command(("LRANGE", key, 1, 1)))
        if isinstance(length, CorruptDataError) or not first:
            continue
        figures.messages += length - 1
        try:
            at_ms = parse_unlogged(first[0]).at_ms
        except CorruptDataError:
            continue
        oldest_ms = at_ms if oldest_ms is None else min(oldest_ms, at_ms)
    if keys:
        figures.oldest_age_seconds = None if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)
    return figures
