"""How servers and applications are looked at again and again: cheaply, read-only, and no longer than a deadline.

Each is asked in a thread of its own and keeps its connection, so that one that hangs holds up none of the others.
"""

from __future__ import annotations

import http.client
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa

from contract_engine.cli.nodes import Node, find_nodes, open_client, redis_failures, redis_info
from contract_engine.cli.samples import ApplicationReading, Away, DatabaseReading, Operation, RedisCounts, RedisReading
from contract_engine.memory import ConfigurationError, MemoryConfig, MemoryServiceError, StoreUnavailableError
from contract_engine.memory._runtime.database import Database
from contract_engine.memory.circuit_breaker import CircuitBreaker
from contract_engine.memory.daemon import start_daemon
from contract_engine.memory.keys import unlogged_pattern

T = TypeVar("T")

CALL_SECONDS = 1.0
"""What one answer of a server may take."""

LOOK_SECONDS = 3.0
"""What a whole look may take; what has not answered then is away."""

SCAN_CALLS, SCAN_KEYS = 10, 1000
"""How much of Redis one look goes through in search of unlogged lists; the next one goes on from there."""

OUTBOX_ROWS = 10_000
"""How many rows of the outbox are counted at most: counting is the one thing here that grows with what it counts."""

SECTIONS = ("server", "memory", "stats", "clients", "commandstats", "keyspace")
SCRIPT_COMMANDS = ("evalsha", "eval", "fcall")
MAX_METRICS_BYTES = 16 * 2**20

DURATIONS = "memory_operation_duration_seconds"
NO_FAILURES = ("ok", "invalid", "cancelled", "nothing")
"""Outcomes that say nothing against the memory: bad input and giving up are the caller's."""

STATES = ("disabled", "closed", "half_open", "open", "forced_open")
"""Of a circuit breaker, from good to bad."""

_COUNTS = sa.text(
    """SELECT relid = to_regclass('memory_messages'), relid = to_regclass('memory_summaries'), n_live_tup, n_tup_ins
         FROM pg_stat_user_tables
        WHERE relid IN (to_regclass('memory_sessions'), to_regclass('memory_messages'),
                        to_regclass('memory_summaries'))"""
)
_CONNECTIONS = sa.text(
    """SELECT count(*), count(*) FILTER (WHERE application_name = 'contract-memory'),
              count(*) FILTER (WHERE wait_event_type = 'Lock'), current_setting('max_connections')::int
         FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
)
_HAS_OUTBOX = sa.text("SELECT to_regclass('memory_outbox') IS NOT NULL")
_OUTBOX = sa.text("SELECT count(*) FROM (SELECT 1 FROM memory_outbox LIMIT :most) AS waiting")


class Watched(Generic[T]):
    """Asks one server in a thread nobody has to wait for; while it hangs, it is not asked again."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._asked: Future[T] | None = None

    def ask(self) -> None:
        """Begin a look, unless the last one still goes on."""
        if self._asked is None or self._asked.done():
            self._asked = start_daemon(self._read, "contract-memory top")

    def answer(self, until: float) -> T | Away:
        """Return what the look found, or that nothing came up to ``until`` (monotonic seconds)."""
        assert self._asked is not None, "ask first"
        wait((self._asked,), max(0.0, until - time.monotonic()))
        if not self._asked.done():
            return Away("no answer in time")
        try:
            return self._asked.result()
        except MemoryServiceError as exc:
            return Away(str(exc))


class RedisReader:
    """Reads INFO, and looks through the keys for what waits to be logged, some thousands at a time.

    Of a Cluster every primary is asked, and the figures are those of all together; of a primary behind Sentinels the
    one they tell of at each look.
    """

    def __init__(self, config: MemoryConfig, *, timeout_seconds: float = CALL_SECONDS) -> None:
        self._url, self._timeout_seconds = config.redis_url, timeout_seconds
        self._clients: dict[Node, redis.Redis] = {}
        self._pattern = unlogged_pattern(config.key_prefix, config.tenant)
        self._begin_scan()
        self._unlogged: tuple[int, int] | None = None

    def read(self) -> RedisReading:
        """Look once; raises RedisUnavailableError or StoreMisconfiguredError where any of the servers is away."""
        try:
            with redis_failures():
                self._find_nodes()
                infos = {node.name: redis_info(client, *SECTIONS) for node, client in self._clients.items()}
                keys = sum(_keys(infos[node.name], client) for node, client in self._clients.items())
                at_seconds = time.monotonic()
                self._scan()
        except MemoryServiceError:
            self._begin_scan()
            self._unlogged = None
            raise
        limits = [int(info.get("maxmemory", 0)) for info in infos.values()]
        return RedisReading(
            at_seconds=at_seconds,
            runs={f"{name} {info.get('run_id', '')}": _counts(info) for name, info in infos.items()},
            used_memory_bytes=sum(int(info["used_memory"]) for info in infos.values()),
            max_memory_bytes=sum(limits) if all(limits) else 0,
            clients=sum(int(info["connected_clients"]) for info in infos.values()),
            keys=keys,
            unlogged_messages=None if self._unlogged is None else self._unlogged[0],
            unlogged_sessions=None if self._unlogged is None else self._unlogged[1],
        )

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def _find_nodes(self) -> None:
        """Open clients of the servers there are now, and close those of servers that went."""
        found = find_nodes(self._url, timeout_seconds=self._timeout_seconds).nodes
        if set(found) == set(self._clients):
            return
        for gone in set(self._clients).difference(found):
            self._clients.pop(gone).close()
        for node in found:
            if node not in self._clients:
                self._clients[node] = open_client(node.url, timeout_seconds=self._timeout_seconds)
        self._begin_scan()

    def _begin_scan(self) -> None:
        self._cursor = 0
        self._unseen = list(self._clients)
        self._found: set[tuple[Node, bytes | str]] = set()

    def _scan(self) -> None:
        """Go on through the keys; a count is told when all of them have been seen."""
        for _ in range(SCAN_CALLS):
            node = self._unseen[0]
            cursor, keys = self._clients[node].scan(self._cursor, match=self._pattern, count=SCAN_KEYS)
            self._cursor = int(cursor)
            self._found.update((node, key) for key in keys)
            if not self._cursor:
                self._unseen.pop(0)
            if not self._unseen:
                break
        else:
            return
        lengths: list[int] = []
        for node, client in self._clients.items():
            with client.pipeline(transaction=False) as pipeline:
                for of_node, key in self._found:
                    if of_node == node:
                        pipeline.llen(key)
                # What is no list is none of ours, and what has moved meanwhile is found by the next search.
                lengths += [length for length in pipeline.execute(raise_on_error=False) if isinstance(length, int)]
        # The first element is a header.
        self._unlogged = sum(length - 1 for length in lengths if length), sum(length > 1 for length in lengths)
        self._begin_scan()


def _keys(info: Mapping[str, Any], client: redis.Redis) -> int:
    """Return how many keys the database of a client has: no line tells of one that is empty."""
    database = client.connection_pool.connection_kwargs.get("db") or 0
    return int(info.get(f"db{database}", {}).get("keys", 0))


def _counts(info: Mapping[str, Any]) -> RedisCounts:
    scripts = [info[f"cmdstat_{name}"] for name in SCRIPT_COMMANDS if f"cmdstat_{name}" in info]
    return RedisCounts(
        uptime_seconds=int(info.get("uptime_in_seconds", 0)),
        commands=int(info["total_commands_processed"]),
        scripts=sum(int(one["calls"]) for one in scripts),
        script_microseconds=sum(int(one["usec"]) for one in scripts),
        hits=int(info["keyspace_hits"]),
        misses=int(info["keyspace_misses"]),
        evicted_keys=int(info["evicted_keys"]),
        expired_keys=int(info["expired_keys"]),
    )


class DatabaseReader:
    """Reads the statistics views of PostgreSQL, which cost the same however large the tables are."""

    def __init__(self, url: str, *, timeout_seconds: float = CALL_SECONDS) -> None:
        # It is asked once a second whatever it answered before, so the breaker never opens.
        breaker = CircuitBreaker(10**9, 0.0, name="top")
        self._database = Database(url, timeout=timeout_seconds, pool_size=1, breaker=breaker)

    def read(self) -> DatabaseReading:
        """Look once; raises DatabaseUnavailableError or StoreMisconfiguredError."""
        return self._database.transaction(_database_reading)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()


class ApplicationReader:
    """Reads the Prometheus text of an application, from an http or https URL without credentials."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            # What a name or a path may not hold would be found out only by asking.
            (host or "").encode("idna")
            (parts.path + parts.query).encode("ascii")
        except ValueError as exc:
            problem = "is not a URL; expected http://host:port/metrics, in ASCII but for the host"
            raise ConfigurationError("metrics", problem) from exc
        if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
            raise ConfigurationError("metrics", "expected http://host:port/metrics, without user and password")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = host, port
        self._path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")

    def read(self) -> ApplicationReading:
        """Look once; raises StoreUnavailableError also for an answer that is no Prometheus text."""
        connection = self._connection(self._host, self._port, timeout=CALL_SECONDS)
        try:
            connection.request("GET", self._path, headers={"Accept": "text/plain; version=0.0.4"})
            answer = connection.getresponse()
            body = answer.read(MAX_METRICS_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise StoreUnavailableError(f"no answer ({type(exc).__name__})") from exc
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise StoreUnavailableError(f"answered with status {answer.status}")
        if len(body) > MAX_METRICS_BYTES:
            raise StoreUnavailableError(f"answered with more than {MAX_METRICS_BYTES:,} bytes")
        return application_reading(body.decode("utf-8", "replace"), at_seconds=time.monotonic())


def application_reading(text: str, *, at_seconds: float) -> ApplicationReading:
    """Return what a Prometheus text says; metrics of others, and steps within operations, are passed over."""
    # Of the extra `metrics`, which not everybody has who has the command line.
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    counts: defaultdict[str, float] = defaultdict(float)
    errors: defaultdict[str, float] = defaultdict(float)
    buckets: defaultdict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    breakers: dict[str, str] = {}
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        for sample in samples:
            labels, value = sample.labels, sample.value
            if not math.isfinite(value):
                continue
            if sample.name == "memory_circuit_breaker_state":
                # Several managers in one process: the worst of their breakers of one name.
                known = STATES.index(labels["state"])
                if value > 0 and known >= STATES.index(breakers.get(labels["name"], STATES[0])):
                    breakers[labels["name"]] = labels["state"]
            elif not sample.name.startswith(DURATIONS):
                totals[sample.name] = totals.get(sample.name, 0.0) + value
            elif labels["backend"] == "manager":
                operation = labels["operation"]
                if sample.name == f"{DURATIONS}_count":
                    counts[operation] += value
                    if labels["outcome"] not in NO_FAILURES:
                        errors[operation] += value
                elif sample.name == f"{DURATIONS}_bucket":
                    buckets[operation][float(labels["le"])] += value
    except (ValueError, KeyError) as exc:
        raise StoreUnavailableError("what it answers is no Prometheus text of ours") from exc
    operations = {
        name: Operation(count, errors[name], tuple(sorted(buckets[name].items()))) for name, count in counts.items()
    }
    return ApplicationReading(
        at_seconds=at_seconds,
        started=totals.get("process_start_time_seconds"),
        operations=operations,
        breakers=breakers,
        fallbacks=totals.get("memory_fallback_total"),
        folds=totals.get("memory_folds_total"),
        tokens_saved=totals.get("memory_tokens_saved_total"),
        unlogged_sessions=totals.get("memory_unlogged_sessions"),
        unlogged_oldest_age_seconds=totals.get("memory_unlogged_oldest_age_seconds"),
        outbox_messages=totals.get("memory_outbox_messages"),
        outbox_oldest_age_seconds=totals.get("memory_outbox_oldest_age_seconds"),
        outbox_parked_messages=totals.get("memory_outbox_parked_messages"),
    )


class TableCounts(NamedTuple):
    """Rows of one of our tables, of all tenants, as the statistics know them: about a second late, at no cost."""

    live: int = 0
    inserted: int = 0


def table_counts(connection: sa.Connection) -> dict[str, TableCounts]:
    """Return the rows of ``sessions``, ``messages`` and ``summaries``."""
    found = dict.fromkeys(("sessions", "messages", "summaries"), TableCounts())
    for is_messages, is_summaries, live, inserted in connection.execute(_COUNTS):
        name = "messages" if is_messages else "summaries" if is_summaries else "sessions"
        found[name] = TableCounts(int(live), int(inserted))
    return found


def _database_reading(connection: sa.Connection) -> DatabaseReading:
    counts = table_counts(connection)
    total, own, waiting, most = connection.execute(_CONNECTIONS).one()
    has_outbox = connection.execute(_HAS_OUTBOX).scalar_one()
    return DatabaseReading(
        at_seconds=time.monotonic(),
        connections=total,
        own_connections=own,
        waiting_connections=waiting,
        max_connections=most,
        sessions=counts["sessions"].live,
        messages=counts["messages"].live,
        inserted_messages=counts["messages"].inserted,
        inserted_summaries=counts["summaries"].inserted,
        outbox_messages=connection.execute(_OUTBOX, {"most": OUTBOX_ROWS}).scalar_one() if has_outbox else None,
    )
