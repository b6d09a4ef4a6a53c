"""The soak for a minute, and what its judges find: each kind of violation, planted, and nothing where there is none."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from soak import GROWTH, Worker, soak
from soak_faults import KINDS, plan
from soak_history import Journals, context_violations, range_violations, violations_of
from soak_worker import Figures, Orders, Status

SECONDS = 60.0


@pytest.mark.timeout(300)
def test_a_minute_of_faults_under_load() -> None:
    """Set SOAK_SEED to repeat a run; the seed is printed where it fails."""
    seed = int(os.environ.get("SOAK_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SOAK_SEED={seed}")
    report = soak(SECONDS, seed)
    print(json.dumps(asdict(report), indent=1))
    assert report.violations == []
    assert sum(report.faults.values()) >= len(KINDS)
    assert sum(count > 0 for count in report.faults.values()) >= len(KINDS) - 3
    assert report.faults["redis killed, file kept"] + report.faults["redis killed, file lost"] >= 1
    assert report.faults["postgres killed"] >= 1
    assert report.faults["worker killed"] >= 1
    assert report.acknowledged > 2000
    assert report.degraded > 0
    assert report.reads > 500
    assert report.folds > 100
    assert report.messages >= report.acknowledged


def test_a_plan_is_that_of_its_seed_and_has_every_kind() -> None:
    first, again, other = (list(itertools.islice(plan(seed), 3 * len(KINDS))) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    for start in range(0, len(first), len(KINDS)):
        assert {fault.kind for fault in first[start : start + len(KINDS)]} == set(KINDS)


# -- a history in which everything is right, and what is done to it


def line(*fields: object) -> str:
    return json.dumps(fields) + "\n"


def begin(at: float, call: str, numbers: list[int], session: str = "s") -> str:
    return line("begin", at, session, call, call.partition("-")[0], numbers)


def ok(at: float, call: str, seqs: list[int] | None, *, durable: bool | None = True, degraded: bool = False) -> str:
    return line("ok", at, call, seqs, durable, degraded)


HISTORY = [
    begin(1, "a-1", [1]),
    ok(2, "a-1", [1]),
    begin(3, "b-1", [1, 2]),
    ok(4, "b-1", [2, 3]),
    begin(5, "a-2", [2]),  # nobody knows, and it is there
    begin(6, "a-3", [3]),  # nobody knows, and it is not
    begin(7, "b-3", [3]),
    ok(8, "b-3", None, durable=None),
    begin(7, "d-1", [1, 2]),  # nobody knows, and it is not
    begin(9, "c-1", [1], session="t"),
    ok(10, "c-1", [1]),
]
LOG = {"s": [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3)], "t": [("c", 1)]}


def judged(history: list[str], log: dict[str, list[tuple[str, int]]], numbers: list[int] | None = None) -> list[str]:
    journals = Journals()
    journals.read(history)
    rows: dict[str, Any] = {}
    for session, keys in log.items():
        seqs = numbers if numbers and session == "s" else range(1, len(keys) + 1)
        rows[session] = [(seq, {"writer": writer, "n": n}) for seq, (writer, n) in zip(seqs, keys, strict=True)]
    return violations_of(journals, rows)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert judged(HISTORY, LOG) == []
    assert judged([*HISTORY, line("begin", 11, "s", "a-4", "a", [4])[:9]], LOG) == [], "cut by a SIGKILL"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ([("a", 1), ("b", 1), ("b", 2), ("a", 2)], "b-3, acknowledged (turn)"),
        ([("b", 1), ("b", 2), ("a", 2), ("b", 3)], "a-1, acknowledged (logged)"),
        ([("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("a", 1)], "a-1 is there 2 times"),
        ([("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("c", 1)], "c-1 is there, and nobody said it"),
        ([("a", 1), ("b", 1), ("b", 2), ("a", 2), ("b", 3), ("d", 1)], "half of a batch"),
        ([("a", 1), ("b", 1), ("a", 2), ("b", 2), ("b", 3)], "the batch is torn"),
        ([("b", 1), ("b", 2), ("a", 1), ("a", 2), ("b", 3)], "stands behind"),
        ([("b", 1), ("b", 2), ("a", 1), ("a", 2), ("b", 3)], "the receipt said"),
    ],
)
def test_a_planted_violation_is_found(log: list[tuple[str, int]], words: str) -> None:
    if "nobody said" in words:
        found = judged(HISTORY, {"s": log, "t": [("c", 1)]})
    else:
        found = judged(HISTORY, LOG | {"s": log})
    assert any(words in one for one in found), found


def test_a_gap_in_the_numbers_and_words_of_a_worker_are_found() -> None:
    assert judged(HISTORY, LOG, [1, 2, 3, 5, 6]) == ["s: the numbers are not 1 to 5"]
    assert judged([*HISTORY, line("violation", 12, "a: something")], LOG) == ["a: something"]
    assert any("is lost" in one for one in judged(HISTORY, {"s": LOG["s"]})), "a whole session is missing"


def test_only_who_could_not_see_redis_may_overtake_what_redis_alone_held() -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=False), begin(3, "b-1", [1])]
    log = {"s": [("b", 1), ("a", 1)]}
    assert judged([*history, ok(4, "b-1", [1], degraded=True)], log) == []
    assert any("stands behind" in one for one in judged([*history, ok(4, "b-1", [1])], log))


def test_a_context_is_held_against_the_log() -> None:
    rows = [(seq, {"writer": "a", "n": seq}) for seq in (1, 2, 3)]
    context = {
        "watermark": 1,
        "last_seq": 3,
        "buffer_messages": [message for _, message in rows[1:]],
        "complete": True,
        "current_summary": "of the first",
        "degraded": False,
    }
    assert context_violations("s", context, rows) == []
    changes: tuple[dict[str, Any], ...] = (
        {"watermark": 0},
        {"watermark": 2},
        {"last_seq": 2},
        {"buffer_messages": []},
        {"complete": False},
        {"current_summary": None},
        {"degraded": True},
    )
    for change in changes:
        assert context_violations("s", context | change, rows), change


def test_ranges_go_on_where_the_one_before_ended() -> None:
    assert range_violations("s", [(1, 1, 4), (2, 5, 6)], 8) == []
    for ranges in ([(1, 2, 4)], [(2, 1, 4)], [(1, 1, 4), (2, 4, 6)], [(1, 1, 4), (2, 6, 6)], [(1, 1, 9)], [(1, 1, 0)]):
        assert range_violations("s", ranges, 8), ranges


def test_a_worker_that_grew_or_hung_is_found(tmp_path: Path) -> None:
    orders = Orders("w", 1, 1, 0, 0, 1.0, str(tmp_path / "journal"), {"redis_url": "redis://127.0.0.1:1/0"})
    worker = Worker(orders, tmp_path / "errors")
    assert worker.end() == 0, worker.errors.read_text()
    figures = Figures(rss=10**8, blocks=10**6, sockets=4, files=8, threads=2, tasks=2)
    worker.status = Status(warm=figures, final=figures)
    assert worker.violations() == []
    for name in Figures.__struct_fields__:
        grown = Figures(**{one: getattr(figures, one) for one in Figures.__struct_fields__})
        setattr(grown, name, getattr(figures, name) + getattr(GROWTH, name) + 1)
        worker.status = Status(warm=figures, final=grown)
        assert len(worker.violations()) == 1, name
    for status in (
        Status(warm=figures),
        Status(warm=figures, final=figures, slowest=100.0),
        Status(warm=figures, final=figures, left_open=["ESTABLISHED to 127.0.0.1:1"]),
    ):
        worker.status = status
        assert len(worker.violations()) == 1, status
    worker.errors.write_text("Traceback")
    worker.status = Status(warm=figures, final=figures)
    assert len(worker.violations()) == 1
