"""Rounds of checks: what others are told who ask while one is under way, and how long they wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_faults import waited_for

from contract_engine.memory._effects import Flow
from contract_engine.memory._runtime.checkup import AsyncCheckup, CheckResult, Checks, Checkup

Report = Mapping[str, str]


class OneThatHangs(Checks[Report]):
    """One server answers at once, the other one when it is let go; so does the report of the first who asks."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.report_first = threading.Event()
        self.says = "answers"
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
        return self.says

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


def hanging() -> int:
    return [thread.name for thread in threading.enumerate()].count("contract-memory-check-hung")


def next_report(checkup: Checkup[Report], checks: OneThatHangs, before: Report) -> Report:
    """Return the report of another round; one is held for a second."""
    deadline = time.monotonic() + 30
    while (after := checkup.look(checks)) is before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return after


def test_a_check_that_hangs_is_waited_for_by_the_next_round(checks: OneThatHangs) -> None:
    checks.report_first.set()
    checkup = Checkup[Report](run)
    first = checkup.look(checks)
    assert ("no answer within" in first["hung"], hanging()) == (True, 1)
    second = next_report(checkup, checks, first)
    assert ("no answer within" in second["hung"], hanging()) == (True, 1)
    checks.answer.set()
    assert next_report(checkup, checks, second) == {"instant": "answers", "hung": "answers"}


def test_what_a_late_check_has_found_is_not_told_of_a_later_moment(checks: OneThatHangs) -> None:
    checks.report_first.set()
    checkup = Checkup[Report](run)
    before = checkup.look(checks)
    checks.answer.set()
    assert waited_for(lambda: hanging() == 0)
    checks.says = "answers again"
    assert next_report(checkup, checks, before)["hung"] == "answers again"


async def test_what_a_late_task_has_found_is_not_told_of_a_later_moment(checks: OneThatHangs) -> None:
    checks.report_first.set()
    checks.answer.set()
    goes_on, ended = asyncio.Event(), asyncio.Event()

    async def run_late(flow: Flow[str]) -> str:
        answer = run(flow)
        await goes_on.wait()
        ended.set()
        return answer

    checkup = AsyncCheckup[Report](run_late)
    before = await checkup.look(checks)
    assert "no answer within" in before["hung"]
    goes_on.set()
    await ended.wait()
    checks.says = "answers again"
    deadline = time.monotonic() + 30
    while (after := await checkup.look(checks)) is before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert after["hung"] == "answers again"
