"""Rounds of checks: what others are told who ask while one is under way, and how long they wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract_engine.memory._effects import Flow
from contract_engine.memory._runtime.checkup import CheckResult, Checks, Checkup

Report = Mapping[str, str]


class OneThatHangs(Checks[Report]):
    """One server answers at once, the other one when it is let go; so does the report of the first who asks."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.report_first = threading.Event()
        self._first: int | None = None

    def flows(self) -> Mapping[str, Callable[[], Flow[str]]]:
        self._first = self._first or threading.get_ident()
        return {"instant": self._instant, "hung": self._hung}

    def _instant(self) -> Flow[str]:
        yield from ()
        return "answers"

    def _hung(self) -> Flow[str]:
        yield from ()
        self.answer.wait(60)
        return "answers"

    def report(self, results: Mapping[str, CheckResult]) -> Report:
        if self._first == threading.get_ident():
            self.report_first.wait(60)
        return {name: result.detail or result.error for name, result in results.items()}


def run(flow: Flow[str]) -> str:
    try:
        next(flow)
    except StopIteration as stop:
        return str(stop.value)
    raise AssertionError("nothing is asked for here")


@pytest.fixture
def checks() -> Iterator[OneThatHangs]:
    made = OneThatHangs()
    yield made
    made.answer.set()
    made.report_first.set()


def test_a_round_that_does_not_get_on_hides_nothing_that_is_known(checks: OneThatHangs) -> None:
    """Whoever is at it gets no time, as a thread on a busy machine: all the others still say what has answered."""
    checkup = Checkup[Report](run)
    with ThreadPoolExecutor(33) as pool:
        first = pool.submit(checkup.look, checks)
        others = [pool.submit(checkup.look, checks) for _ in range(32)]
        reports = [other.result(30) for other in others]
        assert not first.done(), "the fault has fired"
        checks.report_first.set()
        reports.append(first.result(30))
    assert {report["instant"] for report in reports} == {"answers"}
    assert all("no answer within" in report["hung"] for report in reports)


def test_who_comes_late_waits_no_longer_than_the_round(checks: OneThatHangs) -> None:
    checks.report_first.set()
    checkup = Checkup[Report](run)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(checkup.look, checks)
        time.sleep(0.3)  # nothing depends on how long it is
        second = pool.submit(checkup.look, checks)
        assert second.result(30) is first.result(30)


def test_a_check_that_hangs_is_waited_for_by_the_next_round(checks: OneThatHangs) -> None:
    checks.report_first.set()
    checkup = Checkup[Report](run)
    before = checkup.look(checks)
    hanging = [thread.name for thread in threading.enumerate()].count("contract-memory-check-hung")
    assert ("no answer within" in before["hung"], hanging) == (True, 1)
    checks.answer.set()
    deadline = time.monotonic() + 30
    while (after := checkup.look(checks)) is before:  # a report is held for a second
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert after == {"instant": "answers", "hung": "answers"}
