"""What is shown at one moment: each server with its rates since the look before, or since when it is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from contract_engine.cli.samples import (
    ApplicationReading,
    Away,
    DatabaseReading,
    Operation,
    RedisReading,
    Tally,
    increase,
    merged,
    operation_increase,
    quantile,
    rate,
    run_increase,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisFigures:
    """A Redis now, and its rates since the look before; ``seconds`` is the time between, None at the first look."""

    seconds: float | None
    used_memory_bytes: int
    max_memory_bytes: int | None
    evicted_keys: int
    evicted_per_second: float | None
    expired_per_second: float | None
    commands_per_second: float | None
    scripts_per_second: float | None
    script_seconds: float | None
    hit_share: float | None
    clients: int
    keys: int
    unlogged_messages: int | None
    unlogged_sessions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFigures:
    """A PostgreSQL now, and its rates since the look before."""

    seconds: float | None
    connections: int
    own_connections: int
    waiting_connections: int
    max_connections: int
    sessions: int
    messages: int
    messages_per_second: float | None
    summaries_per_minute: float | None
    outbox_messages: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationFigures:
    """An application now, and its rates since the look before."""

    seconds: float | None
    operations_per_second: float | None
    breakers: Mapping[str, str]
    fallbacks_per_second: float | None
    folds_per_minute: float | None
    tokens_saved_per_second: float | None
    unlogged_sessions: float | None
    unlogged_oldest_age_seconds: float | None
    outbox_messages: float | None
    outbox_oldest_age_seconds: float | None
    outbox_parked_messages: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFigures:
    """One operation in all applications together; the percentiles are None where it did not run."""

    operation: str
    per_second: float
    errors_per_second: float
    p50_seconds: float | None
    p95_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Everything there is to show at one moment; ``postgres`` is None in ephemeral mode."""

    at: str
    redis: RedisFigures | Away
    postgres: DatabaseFigures | Away | None
    applications: Mapping[str, ApplicationFigures | Away]
    operations: Sequence[OperationFigures]

    def as_json(self) -> dict[str, Any]:
        """Return the same for machines; each server has a ``state`` of its own, ``up`` or ``away``."""
        return {
            "at": self.at,
            "redis": _as_json(self.redis),
            "postgres": None if self.postgres is None else _as_json(self.postgres),
            "applications": {address: _as_json(found) for address, found in self.applications.items()},
            "operations": [asdict(operation) for operation in self.operations],
        }


Reading = TypeVar("Reading", RedisReading, DatabaseReading, ApplicationReading)

Grown = tuple[Operation, float]
"""What came to an operation, and in how many seconds."""


@dataclass(slots=True)
class _Course(Generic[Reading]):
    """One server over time: what it said last, what was folded there, and since when it is away."""

    last: Reading | None = None
    away_since: str | None = None
    tally: Tally = field(default_factory=Tally)

    def away(self, found: Away, at: str) -> Away:
        self.away_since = self.away_since or at
        return Away(found.reason, self.away_since)

    def turn(self, reading: Reading) -> tuple[Reading | None, float | None]:
        """Take in an answer; return the one before it and the seconds between."""
        before, self.last, self.away_since = self.last, reading, None
        return before, None if before is None else reading.at_seconds - before.at_seconds


class Course:
    """Turns what each look has found into frames; it keeps what the last answer of each server said."""

    def __init__(self) -> None:
        self._redis = _Course[RedisReading]()
        self._postgres = _Course[DatabaseReading]()
        self._applications: dict[str, _Course[ApplicationReading]] = {}

    def frame(
        self,
        at: str,
        *,
        redis: RedisReading | Away,
        postgres: DatabaseReading | Away | None,
        applications: Mapping[str, ApplicationReading | Away],
    ) -> Frame:
        """Return the frame of this look at ``at`` (wall clock, as shown); no answer of a server is left out."""
        per_operation: dict[str, list[Grown]] = {}
        found: dict[str, ApplicationFigures | Away] = {}
        for address, answer in applications.items():
            course = self._applications.setdefault(address, _Course())
            if isinstance(answer, Away):
                found[address] = course.away(answer, at)
            else:
                found[address] = _application(course, answer, per_operation)
        return Frame(
            at=at,
            redis=self._redis.away(redis, at) if isinstance(redis, Away) else _redis(self._redis, redis),
            postgres=self._database(postgres, at),
            applications=found,
            operations=_operations(per_operation),
        )

    def _database(self, answer: DatabaseReading | Away | None, at: str) -> DatabaseFigures | Away | None:
        if isinstance(answer, DatabaseReading):
            return _database(self._postgres, answer)
        return answer and self._postgres.away(answer, at)


def _redis(course: _Course[RedisReading], reading: RedisReading) -> RedisFigures:
    before, seconds = course.turn(reading)

    def grown(name: str) -> float | None:
        return None if before is None else run_increase(before, reading, name)

    scripts, microseconds, hits, misses = map(grown, ("scripts", "script_microseconds", "hits", "misses"))
    looked_up = None if hits is None or misses is None else hits + misses
    return RedisFigures(
        seconds=seconds,
        used_memory_bytes=reading.used_memory_bytes,
        max_memory_bytes=reading.max_memory_bytes or None,
        evicted_keys=reading.total("evicted_keys"),
        evicted_per_second=rate(grown("evicted_keys"), seconds),
        expired_per_second=rate(grown("expired_keys"), seconds),
        commands_per_second=rate(grown("commands"), seconds),
        scripts_per_second=rate(scripts, seconds),
        script_seconds=rate(None if microseconds is None else microseconds / 1e6, scripts),
        hit_share=rate(hits, looked_up),
        clients=reading.clients,
        keys=reading.keys,
        unlogged_messages=reading.unlogged_messages,
        unlogged_sessions=reading.unlogged_sessions,
    )


def _database(course: _Course[DatabaseReading], reading: DatabaseReading) -> DatabaseFigures:
    before, seconds = course.turn(reading)
    appended = None if before is None else increase(before.inserted_messages, reading.inserted_messages)
    summaries = None if before is None else increase(before.inserted_summaries, reading.inserted_summaries)
    course.tally.add(reading.at_seconds, summaries)
    return DatabaseFigures(
        seconds=seconds,
        connections=reading.connections,
        own_connections=reading.own_connections,
        waiting_connections=reading.waiting_connections,
        max_connections=reading.max_connections,
        sessions=reading.sessions,
        messages=reading.messages,
        messages_per_second=rate(appended, seconds),
        summaries_per_minute=course.tally.per_minute(),
        outbox_messages=reading.outbox_messages,
    )


def _application(
    course: _Course[ApplicationReading],
    reading: ApplicationReading,
    per_operation: dict[str, list[Grown]],
) -> ApplicationFigures:
    """Return the figures of one application, and add what its operations did to ``per_operation``."""
    before, seconds = course.turn(reading)
    is_same_run = before is not None and before.started == reading.started

    def grown(name: str) -> float | None:
        after: float | None = getattr(reading, name)
        if before is None or after is None:
            return None
        return increase(getattr(before, name) or 0.0, after) if is_same_run else after

    count = None
    if before is not None and seconds:
        count = 0.0
        for name, operation in reading.operations.items():
            more = operation_increase(before.operations.get(name) if is_same_run else None, operation)
            per_operation.setdefault(name, []).append((more, seconds))
            count += more.count
    # From the first look on: a counter with labels is not there before it counts.
    course.tally.add(reading.at_seconds, grown("folds"))
    return ApplicationFigures(
        seconds=seconds,
        operations_per_second=rate(count, seconds),
        breakers=reading.breakers,
        fallbacks_per_second=rate(grown("fallbacks"), seconds),
        folds_per_minute=None if reading.folds is None else course.tally.per_minute(),
        tokens_saved_per_second=rate(grown("tokens_saved"), seconds),
        unlogged_sessions=reading.unlogged_sessions,
        unlogged_oldest_age_seconds=reading.unlogged_oldest_age_seconds,
        outbox_messages=reading.outbox_messages,
        outbox_oldest_age_seconds=reading.outbox_oldest_age_seconds,
        outbox_parked_messages=reading.outbox_parked_messages,
    )


def _operations(found: Mapping[str, Sequence[Grown]]) -> list[OperationFigures]:
    """Return the operations, the busiest first."""
    figures = []
    for name, pairs in found.items():
        together = merged([operation for operation, _ in pairs])
        figures.append(
            OperationFigures(
                operation=name,
                per_second=sum(operation.count / seconds for operation, seconds in pairs),
                errors_per_second=sum(operation.errors / seconds for operation, seconds in pairs),
                p50_seconds=quantile(0.5, together.buckets),
                p95_seconds=quantile(0.95, together.buckets),
            )
        )
    return sorted(figures, key=lambda one: (-one.per_second, one.operation))


def _as_json(found: RedisFigures | DatabaseFigures | ApplicationFigures | Away) -> dict[str, Any]:
    return {"state": "away" if isinstance(found, Away) else "up"} | asdict(found)
