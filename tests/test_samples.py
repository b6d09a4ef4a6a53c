"""What ``contract-memory top`` works out of two looks, and how it shows it: no server takes part."""

from __future__ import annotations

import bisect
import io
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from contract_engine.cli.frame_view import _duration, _rate, frame_view
from contract_engine.cli.frames import ApplicationFigures, Course, DatabaseFigures, Frame, RedisFigures
from contract_engine.cli.samples import (
    ApplicationReading,
    Away,
    Buckets,
    DatabaseReading,
    Operation,
    RedisCounts,
    RedisReading,
    Tally,
    increase,
    merged,
    operation_increase,
    quantile,
    rate,
)

BOUNDS = (0.001, 0.01, 0.1, 1.0, math.inf)
COUNTS = st.integers(0, 10**12)
DURATIONS = st.lists(st.floats(0, 5), max_size=50)


def counted(durations: list[float], bounds: tuple[float, ...] = BOUNDS) -> Buckets:
    """Return the buckets of these durations, as a histogram counts them."""
    return tuple((bound, float(sum(duration <= bound for duration in durations))) for bound in bounds)


def operation(durations: list[float], errors: float = 0) -> Operation:
    return Operation(len(durations), errors, counted(durations))


def redis_reading(at_seconds: float, *, run_id: str = "a", **counts: Any) -> RedisReading:
    counted = {name: counts.pop(name, 0) for name in RedisCounts._fields}
    return redis_runs(at_seconds, {run_id: RedisCounts(**counted)}, **counts)


def redis_runs(at_seconds: float, runs: dict[str, RedisCounts], **others: Any) -> RedisReading:
    nothing = {"clients": 1, "keys": 0, "used_memory_bytes": 2**20, "max_memory_bytes": 0}
    waiting = {"unlogged_messages": None, "unlogged_sessions": None}
    return RedisReading(at_seconds=at_seconds, runs=runs, **{**nothing, **waiting, **others})


def database_reading(at_seconds: float, *, messages: int = 0, summaries: int = 0) -> DatabaseReading:
    return DatabaseReading(
        at_seconds=at_seconds,
        connections=3,
        own_connections=2,
        waiting_connections=0,
        max_connections=100,
        sessions=1,
        messages=messages,
        inserted_messages=messages,
        inserted_summaries=summaries,
        outbox_messages=None,
    )


def application_reading(at_seconds: float, started: float = 1.0, **told: Any) -> ApplicationReading:
    return ApplicationReading(at_seconds=at_seconds, started=started, **{"operations": {}, "breakers": {}, **told})


def frame(course: Course, at: str, redis: RedisReading | Away, **others: Any) -> Frame:
    return course.frame(at, **{"redis": redis, "postgres": None, "applications": {}, **others})


# -- counters


@given(COUNTS, COUNTS)
def test_a_counter_never_falls(before: int, after: int) -> None:
    grown = increase(before, after)
    assert 0 <= grown <= after
    assert grown == after - before or after < before


@given(st.lists(COUNTS, min_size=1, max_size=8), st.integers(1, 7))
def test_the_increases_over_a_restart_add_up(steps: list[int], restarted_at: int) -> None:
    """What a counter shows is what came since its process began; looked at each time, nothing is counted twice."""
    shown, total, looks = 0, 0, [0]
    for number, step in enumerate(steps):
        shown = step if number == restarted_at else shown + step
        total += step
        looks.append(shown)
    added = sum(increase(before, after) for before, after in itertools.pairwise(looks))
    assert added <= total
    if restarted_at >= len(steps) or looks[restarted_at + 1] < looks[restarted_at]:
        assert added == total


@pytest.mark.parametrize(("amount", "seconds"), [(None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -1.0)])
def test_a_rate_without_time_or_amount_is_not_known(amount: float | None, seconds: float | None) -> None:
    assert rate(amount, seconds) is None


def test_a_rate() -> None:
    assert rate(0.0, 2.0) == 0.0
    assert rate(5.0, 2.0) == 2.5


# -- percentiles


@given(DURATIONS, st.floats(0.01, 1))
@example([0.1], 0.5)
@example([5.0], 0.95)
def test_a_percentile_lies_in_the_bucket_of_the_true_one(durations: list[float], share: float) -> None:
    found = quantile(share, counted(durations))
    if not durations:
        assert found is None
        return
    assert found is not None
    true = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
    at = bisect.bisect_left(BOUNDS, true)
    lower, upper = (0.0, *BOUNDS)[at], BOUNDS[at]
    assert lower <= found <= (lower if upper == math.inf else upper) * (1 + 1e-9)


@given(DURATIONS.filter(bool))
def test_percentiles_rise(durations: list[float]) -> None:
    found = [quantile(share, counted(durations)) for share in (0.1, 0.5, 0.9, 0.95, 1.0)]
    assert all(one is not None for one in found)
    assert found == sorted(found, key=lambda one: one or 0.0)


@pytest.mark.parametrize(
    "buckets",
    [
        (),
        ((math.inf, 0.0),),
        ((math.inf, 7.0),),  # only that there were some is known
        ((0.1, 0.0), (math.inf, 0.0)),
        ((0.1, 7.0),),  # what has no infinite bucket is no histogram
    ],
)
def test_no_percentile_is_made_up(buckets: Buckets) -> None:
    assert quantile(0.95, buckets) is None


def test_percentiles_are_those_of_prometheus() -> None:
    """The figures that `promtool test rules` finds for the same buckets: see deploy/prometheus/rules_test.yml."""
    assert quantile(0.95, ((0.1, 135.0), (0.25, 135.0), (0.5, 150.0), (math.inf, 150.0))) == pytest.approx(0.375)
    assert quantile(0.95, ((0.25, 0.0), (0.5, 3.0), (math.inf, 3.0))) == pytest.approx(0.4875)
    assert quantile(0.95, ((0.25, 1.0), (0.5, 2.0), (math.inf, 100.0))) == 0.5  # beyond the last finite bound


# -- operations


@given(DURATIONS, DURATIONS)
def test_what_came_to_an_operation(before: list[float], more: list[float]) -> None:
    assert operation_increase(operation(before), operation(before + more)) == operation(more)


@given(DURATIONS.filter(bool), DURATIONS)
def test_an_operation_that_began_anew_is_counted_whole(before: list[float], after: list[float]) -> None:
    found = operation_increase(operation(before, errors=len(before)), operation(after))
    assert found == operation(after)
    assert operation_increase(None, operation(after)) == operation(after)


def test_a_restart_is_seen_in_the_buckets_and_the_bounds_too() -> None:
    before = Operation(2, 0, ((0.1, 2.0), (math.inf, 2.0)))
    other_bounds = Operation(5, 0, ((0.2, 5.0), (math.inf, 5.0)))
    slower = Operation(3, 0, ((0.1, 0.0), (math.inf, 3.0)))
    assert operation_increase(before, other_bounds) == other_bounds
    assert operation_increase(before, slower) == slower


@given(DURATIONS, DURATIONS)
def test_operations_of_two_applications_add_up(first: list[float], second: list[float]) -> None:
    assert merged([operation(first), operation(second)]) == operation(first + second)


def test_buckets_that_are_cut_otherwise_share_what_they_have_in_common() -> None:
    fine, coarse = counted([0.005, 0.5]), counted([0.05, 0.7], (0.1, math.inf))
    found = merged([Operation(2, 0, fine), Operation(2, 0, coarse)])
    assert found == Operation(4, 0, ((0.1, 2.0), (math.inf, 4.0)))


# -- folds


def test_folds_are_those_of_the_last_minute() -> None:
    tally = Tally()
    assert tally.per_minute() is None
    tally.add(100.0, None)
    assert tally.per_minute() is None  # no time to count in yet
    tally.add(110.0, 2.0)
    assert tally.per_minute() == pytest.approx(12.0)
    for second in range(111, 171):
        tally.add(float(second), 1.0)
    assert tally.per_minute() == pytest.approx(60.0)
    for second in range(171, 240):
        tally.add(float(second), 0.0)
    assert tally.per_minute() == 0.0


# -- frames


def test_the_first_look_knows_no_rates() -> None:
    found = frame(Course(), "now", redis_reading(5.0, scripts=7), postgres=database_reading(5.0, messages=3)).as_json()
    assert found["redis"]["state"] == found["postgres"]["state"] == "up"
    for name in ("scripts_per_second", "commands_per_second", "evicted_per_second", "hit_share", "seconds"):
        assert found["redis"][name] is None
    assert found["postgres"]["messages_per_second"] is None
    assert found["postgres"]["messages"] == 3


def test_rates_are_of_the_time_between_two_answers() -> None:
    course = Course()
    frame(
        course, "1", redis_reading(10.0, scripts=100, script_microseconds=500, hits=1), postgres=database_reading(10.0)
    )
    later = redis_reading(12.0, scripts=140, script_microseconds=2500, hits=4, misses=1, evicted_keys=6)
    found = frame(course, "2", later, postgres=database_reading(14.0, messages=8, summaries=2))
    assert isinstance(found.redis, RedisFigures)
    assert isinstance(found.postgres, DatabaseFigures)
    assert (found.redis.seconds, found.redis.scripts_per_second, found.redis.evicted_per_second) == (2.0, 20.0, 3.0)
    assert found.redis.script_seconds == pytest.approx(50e-6)
    assert found.redis.hit_share == 0.75
    assert (found.postgres.messages_per_second, found.postgres.summaries_per_minute) == (2.0, 30.0)


def test_a_redis_that_began_anew_is_known_by_its_run() -> None:
    """Its counters may have passed what they were before; the difference would be too little."""
    course = Course()
    frame(course, "1", redis_reading(10.0, scripts=100))
    found = frame(course, "2", redis_reading(11.0, run_id="b", scripts=130)).redis
    assert isinstance(found, RedisFigures)
    assert found.scripts_per_second == 130.0


def test_servers_of_a_cluster_are_counted_apart() -> None:
    """One is restarted, one takes the place of another and has counted for its own since long: neither is a burst."""
    course = Course()
    nothing = dict.fromkeys(RedisCounts._fields, 0)

    def counts(scripts: int, uptime_seconds: int) -> RedisCounts:
        return RedisCounts(**{**nothing, "scripts": scripts, "uptime_seconds": uptime_seconds})

    frame(course, "1", redis_runs(10.0, {"a 1": counts(1000, 500), "b 1": counts(2000, 500), "c 1": counts(7, 500)}))
    after = {"a 1": counts(1010, 502), "b 2": counts(20, 1), "d 1": counts(90_000, 600)}
    found = frame(course, "2", redis_runs(12.0, after)).redis
    assert isinstance(found, RedisFigures)
    assert found.scripts_per_second == 15.0


def test_a_server_that_is_away_is_no_zero_and_says_since_when() -> None:
    course = Course()
    frame(course, "1", redis_reading(10.0, scripts=100))
    for at in ("2", "3"):
        found = frame(course, at, Away("no answer")).as_json()["redis"]
        assert found == {"state": "away", "reason": "no answer", "since": "2"}
    back = frame(course, "4", redis_reading(20.0, scripts=150)).redis
    assert isinstance(back, RedisFigures)
    assert (back.seconds, back.scripts_per_second) == (10.0, 5.0)
    assert frame(course, "5", Away("again")).redis == Away("again", "5")


def test_applications_are_counted_apart_and_shown_together() -> None:
    course = Course()
    first = {"append": operation([0.005] * 10), "idle": operation([0.5])}
    frame(course, "1", Away("x"), applications={
        "one": application_reading(0.0, operations=first, folds=5.0),
        "two": application_reading(0.0, operations={"append": operation([0.05] * 100)}),
    })  # fmt: skip
    found = frame(course, "2", Away("x"), applications={
        "one": application_reading(2.0, operations={**first, "append": operation([0.005] * 20)}, folds=6.0),
        # Began anew, and has more than before all the same.
        "two": application_reading(4.0, started=2.0, operations={"append": operation([0.05] * 120, errors=4)}),
    })  # fmt: skip
    append, idle = found.operations
    assert (append.operation, append.per_second, append.errors_per_second) == ("append", 10 / 2 + 120 / 4, 1.0)
    assert append.p50_seconds is not None
    assert 0.01 < append.p50_seconds <= 0.1
    assert (idle.per_second, idle.p95_seconds) == (0.0, None)
    one = found.applications["one"]
    assert isinstance(one, ApplicationFigures)
    assert (one.operations_per_second, one.folds_per_minute) == (5.0, 30.0)
    two = found.applications["two"]
    assert isinstance(two, ApplicationFigures)
    assert two.folds_per_minute is None


def test_a_counter_that_appears_between_two_looks_has_counted_since_the_first() -> None:
    course = Course()
    frame(course, "1", Away("x"), applications={"one": application_reading(0.0)})
    told = application_reading(30.0, folds=3.0, fallbacks=6.0, operations={"append": operation([0.05] * 9)})
    found = frame(course, "2", Away("x"), applications={"one": told})
    one = found.applications["one"]
    assert isinstance(one, ApplicationFigures)
    assert (one.folds_per_minute, one.fallbacks_per_second, one.operations_per_second) == (6.0, 0.2, 0.3)


# -- what it looks like

LONG = "a very long reason that no narrow terminal has room for \x1b[2J\n" * 3


def full_frame() -> Frame:
    """Return a frame with everything in it, each as long as it gets."""
    course = Course()
    names = [f"operation-{number}-{'long' * 12}" for number in range(20)]
    for at, factor in ((10.0, 1), (11.0, 10**6)):
        told = application_reading(
            at,
            operations={name: Operation(factor, factor / 2, counted([0.5] * 3)) for name in names},
            breakers={"redis": "open", "postgres": "closed", "redis 10.0.0.1:7000": "half_open"},
            fallbacks=factor * 1.0,
            folds=factor * 1.0,
            tokens_saved=factor * 1.0,
            unlogged_oldest_age_seconds=1e5,
            outbox_messages=1e6,
            outbox_oldest_age_seconds=1e5,
            outbox_parked_messages=1e3,
        )
        counts: dict[str, Any] = dict.fromkeys(("commands", "scripts", "evicted_keys", "hits"), factor * 10**6)
        counts |= {"unlogged_messages": 10**6, "unlogged_sessions": 10**5}
        found = frame(
            course,
            "2026-01-01 00:00:00+00:00",
            redis_reading(at, max_memory_bytes=2**40, used_memory_bytes=2**41, **counts),
            postgres=replace(database_reading(at, messages=factor * 10**6), outbox_messages=10_000),
            applications={"http://somewhere.example.org:9464/metrics": told, "http://away:1/metrics": Away(LONG)},
        )
    return found


def drawn(found: Frame, width: int, *, is_terminal: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=is_terminal, color_system=None)
    address = "redis.somewhere.example.org:6379/0"
    console.print(frame_view(found, redis_address=address, database_address=address))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


FRAMES = {
    "full": full_frame(),
    "first": frame(Course(), "at", redis_reading(1.0), postgres=database_reading(1.0)),
    "away": frame(Course(), "at", Away(LONG), postgres=Away(LONG)),
    "ephemeral": frame(Course(), "at", redis_reading(1.0)),
}


@pytest.mark.parametrize("name", FRAMES)
@given(width=st.integers(40, 200))
@example(width=40)
@example(width=200)
def test_no_line_is_wrapped_at_any_width(name: str, width: int) -> None:
    lines = drawn(FRAMES[name], width)
    assert len(lines) == len(drawn(FRAMES[name], 500)), "a fact takes more than its line"
    assert max(map(cell_len, lines)) <= width
    assert not any("\x1b" in line for line in lines)


def test_what_matters_is_seen_on_a_narrow_terminal() -> None:
    text = "\n".join(drawn(FRAMES["full"], 40))
    for words in ("redis", "postgres", "breakers", "unlogged", "away since", "p95", "and 5 more"):
        assert words in text
    assert "redis         away since at" in "\n".join(drawn(FRAMES["away"], 40))
    assert "– messages/s" in "\n".join(drawn(FRAMES["first"], 40))
    assert "0 messages" not in "\n".join(drawn(FRAMES["away"], 200))


@given(st.floats(0, 9.99e11))
@example(99_999.5)
@example(999_999.0)
@example(999_999_999.0)
def test_a_rate_fits_its_column(number: float) -> None:
    assert len(_rate(number)) <= 8
    assert "e+" not in _rate(number)


@given(st.floats(0, 119))
@example(0.9996)
@example(0.00099996)
def test_a_duration_fits_its_column(seconds: float) -> None:
    assert len(_duration(seconds)) <= 8
    assert "e" not in _duration(seconds)
