"""The soak for a minute, its plan, and what it finds in a worker; what it finds in a history: ``test_history``."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from lost_messages import nothing_lost
from soak import GROWTH, Worker, difference, soak
from soak_client import Figures, Status
from soak_faults import KINDS, plan
from soak_worker import Orders

SECONDS = 60.0
TURNS = 2 * len(KINDS)
"""Each kind of fault has its turn twice; a machine that others use too needs longer for that."""


@pytest.mark.timeout(600)
def test_a_minute_of_faults_under_load() -> None:
    """Set SOAK_SEED to repeat a run; the seed is printed where it fails."""
    seed = int(os.environ.get("SOAK_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SOAK_SEED={seed}")
    report = soak(SECONDS, seed, turns=TURNS)
    print(json.dumps(asdict(report), indent=1))
    with nothing_lost():
        assert not report.lost, "\n".join(report.lost)
    assert not report.violations, "\n".join(report.violations)
    assert sum(report.faults.values()) >= len(KINDS)
    assert sum(count > 0 for count in report.faults.values()) >= len(KINDS) - 3
    assert report.faults["redis killed, file kept"] + report.faults["redis killed, file lost"] >= 1
    assert report.faults["postgres killed"] >= 1
    assert report.faults["worker killed"] >= 1
    assert report.acknowledged > 2000
    assert report.degraded > 0
    assert report.reads > 500
    assert report.folds > 100
    assert report.messages > 1000
    assert report.cleared > 0
    assert report.relayed > 100


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ([2, 1, 3], "first at 1"),
        ([1, 3], "missing [('w', 2)], too many []"),
        ([1, 2, 2, 3], "missing [], too many [('w', 2)]"),
        ([1, 2, 4], "missing [('w', 3)], too many [('w', 4)]"),
    ],
)
def test_a_legacy_store_that_differs_from_the_log_is_found(there: list[int], told: str) -> None:
    def said(numbers: list[int]) -> list[dict[str, Any]]:
        return [{"writer": "w", "n": number} for number in numbers]

    assert difference("d0", said([1, 2, 3]), said([1, 2, 3])) == []
    (found,) = difference("d0", said([1, 2, 3]), said(there))
    assert told in found
    assert difference("d0", said([1]), [{"writer": "w", "n": 1, "content": "another"}])


def test_a_plan_is_that_of_its_seed_and_has_every_kind() -> None:
    first, again, other = (list(itertools.islice(plan(seed), 3 * len(KINDS))) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    for start in range(0, len(first), len(KINDS)):
        assert {fault.kind for fault in first[start : start + len(KINDS)]} == set(KINDS)


def test_a_worker_that_grew_or_hung_is_found(tmp_path: Path) -> None:
    nowhere = {"redis_url": "redis://127.0.0.1:1/0", "database_url": "postgresql://nobody@127.0.0.1:1/none"}
    orders = Orders("w", 1, 1, 0, 0, 1.0, str(tmp_path / "journal"), nowhere)
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
