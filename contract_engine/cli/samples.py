"""What servers and applications count, and what two looks at it say about the time between: rates and percentiles.

A counter that fell has begun anew, with a restart of its process: what it shows is then the increase. What cannot be
known is None; it is never shown as zero.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, how many were at most that long), ascending, the last bound infinite."""

FOLDS_SECONDS = 60.0
"""Folds are rare: their rate is that of the last minute."""


@dataclass(frozen=True, slots=True)
class Away:
    """A server that gave no answer, why, and since when (wall clock, as shown); None until that is looked up."""

    reason: str
    since: str | None = None


class RedisCounts(NamedTuple):
    """What one run of a Redis has counted since it began, ``uptime_seconds`` ago."""

    uptime_seconds: int
    commands: int
    scripts: int
    script_microseconds: int
    hits: int
    misses: int
    evicted_keys: int
    expired_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisReading:
    """What a Redis, or the primaries of a Cluster together, hold and count.

    ``runs``: the counters by server and run, since they begin anew with each run.
    """

    at_seconds: float
    runs: Mapping[str, RedisCounts]
    used_memory_bytes: int
    max_memory_bytes: int
    clients: int
    keys: int
    unlogged_messages: int | None
    unlogged_sessions: int | None

    def total(self, name: str) -> int:
        """Return the sum of one counter over all servers."""
        return sum(getattr(counts, name) for counts in self.runs.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseReading:
    """What PostgreSQL counts of our tables, about a second late; ``outbox_messages`` is None without an outbox."""

    at_seconds: float
    connections: int
    own_connections: int
    waiting_connections: int
    max_connections: int
    sessions: int
    messages: int
    inserted_messages: int
    inserted_summaries: int
    outbox_messages: int | None


@dataclass(frozen=True, slots=True)
class Operation:
    """How often an operation ran, how often it failed, and how long it took."""

    count: float = 0.0
    errors: float = 0.0
    buckets: Buckets = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationReading:
    """What an application says of itself; what it does not tell is None. ``started`` names the process."""

    at_seconds: float
    started: float | None
    operations: Mapping[str, Operation]
    breakers: Mapping[str, str]
    fallbacks: float | None = None
    folds: float | None = None
    tokens_saved: float | None = None
    unlogged_sessions: float | None = None
    unlogged_oldest_age_seconds: float | None = None
    outbox_messages: float | None = None
    outbox_oldest_age_seconds: float | None = None
    outbox_parked_messages: float | None = None


def increase(before: float, after: float) -> float:
    """Return what a counter has grown by, which is all of it where it began anew."""
    return after - before if after >= before else after


def run_increase(before: RedisReading, after: RedisReading, name: str) -> float:
    """Return what a counter of all servers together has grown by.

    A run that was not there before counts whole where it began since; else it has counted for others until now.
    """
    seconds = after.at_seconds - before.at_seconds
    total = 0
    for run, counts in after.runs.items():
        if run in before.runs:
            total += int(increase(getattr(before.runs[run], name), getattr(counts, name)))
        elif counts.uptime_seconds <= seconds:
            total += getattr(counts, name)
    return float(total)


def rate(amount: float | None, seconds: float | None) -> float | None:
    """Return an amount a second; None where either is not known."""
    return None if amount is None or not seconds or seconds < 0 else amount / seconds


def quantile(share: float, buckets: Buckets) -> float | None:
    """Return the value that ``share`` of what was counted does not exceed, None where nothing was.

    Within its bucket the value is interpolated, as Prometheus does; beyond the last finite bound it is that bound.
    """
    if not buckets or buckets[-1][1] <= 0 or buckets[-1][0] != math.inf:
        return None
    wanted = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            if bound == math.inf:
                break
            start = lower if bound > 0 else bound
            return start + (bound - start) * max(0.0, wanted - below) / (count - below)
        if bound < math.inf:
            lower = bound
        below = count
    return lower if len(buckets) > 1 else None


def operation_increase(before: Operation | None, after: Operation) -> Operation:
    """Return what came to an operation; all of it where its process, or the operation itself, is new."""
    if before is None or after.count < before.count or after.errors < before.errors:
        return after
    if [bound for bound, _ in before.buckets] != [bound for bound, _ in after.buckets]:
        return after
    pairs = zip(before.buckets, after.buckets, strict=True)
    grown = tuple((bound, count - old) for (_, old), (bound, count) in pairs)
    if any(count < 0 for _, count in grown):
        return after
    return Operation(after.count - before.count, after.errors - before.errors, grown)


def merged(operations: Sequence[Operation]) -> Operation:
    """Return the sum; of buckets that are not cut alike, those bounds that all have."""
    bounds = set.intersection(*({bound for bound, _ in one.buckets} for one in operations)) if operations else set()
    counts = [dict(one.buckets) for one in operations]
    buckets = tuple((bound, sum(count[bound] for count in counts)) for bound in sorted(bounds))
    return Operation(sum(one.count for one in operations), sum(one.errors for one in operations), buckets)


class Tally:
    """What was counted in the last minute."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._counts: deque[tuple[float, float]] = deque()

    def add(self, at_seconds: float, count: float | None) -> None:
        """Take in what came since the last call; None at the first look, from which on there is time to count in."""
        if self._began is None or count is None:
            self._began, count = at_seconds if self._began is None else self._began, 0.0
        self._counts.append((at_seconds, count))
        while self._counts[0][0] <= at_seconds - FOLDS_SECONDS:
            self._counts.popleft()

    def per_minute(self) -> float | None:
        """Return the rate over the last minute, or over the time since the first look while that is shorter."""
        if self._began is None or not self._counts:
            return None
        seconds = min(FOLDS_SECONDS, self._counts[-1][0] - self._began)
        amount = rate(sum(count for _, count in self._counts), seconds)
        return None if amount is None else amount * 60
