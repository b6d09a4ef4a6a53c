"""What each call costs, as a ratio to a PING in the same run: ``make bench``.

Machines differ and are noisy, so calls to a server are judged by their ratio. Every measurement goes in rounds, each of
which times the call and its reference one after the other; what is printed is the median of the rounds' ratios, or of
their differences where a few microseconds are added to something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil
from plugin_scenario import PLUGIN_SCENARIOS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenario import Bench
from scenarios import SCENARIOS

from contract_engine.embedded import EmbeddedServers


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table: medians over all rounds."""

    operation: str
    microseconds: float
    reference: str
    reference_microseconds: float
    ratio: float
    added: float
    reach: float | None
    most_added: float | None

    @property
    def is_reached(self) -> bool:
        is_ratio_reached = self.reach is None or self.ratio <= self.reach
        return is_ratio_reached and (self.most_added is None or self.added <= self.most_added)


@contextmanager
def one_core(servers: EmbeddedServers) -> Iterator[str]:
    """Pin this process and the servers to one core where the system allows it; unpinned runs are bimodal."""
    me = psutil.Process()
    if not hasattr(me, "cpu_affinity"):
        yield "not pinned (this system cannot)"
        return
    before = me.cpu_affinity()
    core = before[-1]
    servers_of_bench = (psutil.Process(servers.redis_pid), psutil.Process(servers.postgres_pid))
    for process in (me, *servers_of_bench):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # PostgreSQL's autovacuum workers come and go
                one.cpu_affinity([core])
    yield f"client and servers pinned to core {core}"
    me.cpu_affinity(before)


def measure(rounds: int, call: Callable[[], float], reference: Callable[[], float]) -> tuple[float, ...]:
    """Return the medians of both times (microseconds), of their ratio and of their difference, round by round."""
    times, references = [], []
    for number in range(rounds + 1):
        first, second = (call, reference) if number % 2 else (reference, call)
        one, two = first(), second()
        taken, unit = (one, two) if number % 2 else (two, one)
        if number:  # the first round warms up
            times.append(taken)
            references.append(unit)
    pairs = list(zip(times, references, strict=True))
    ratio = statistics.median(taken / unit for taken, unit in pairs)
    added = statistics.median(taken - unit for taken, unit in pairs)
    return statistics.median(times) * 1e6, statistics.median(references) * 1e6, ratio, added * 1e6


def run(rounds: int, wanted: Sequence[str], *, history: int, is_quiet: bool) -> tuple[list[Result], str]:
    """Run the scenarios whose name contains any of ``wanted``; all of them where nothing is named."""
    with EmbeddedServers() as servers, one_core(servers) as pinning, Bench(servers, history) as bench:
        results = []
        every = (*SCENARIOS, *PLUGIN_SCENARIOS)
        chosen = [scenario for scenario in every if not wanted or any(part in scenario.name for part in wanted)]
        for scenario in track(chosen, description="measuring", disable=is_quiet, console=Console(stderr=True)):
            with scenario.prepare(bench) as (call, reference):
                times = min(rounds, scenario.rounds or rounds) * scenario.rounds_of_each
                taken, unit, ratio, added = measure(times, call, reference)
            reach = scenario.reach, scenario.most_added
            results.append(Result(scenario.name, taken, scenario.reference, unit, ratio, added, *reach))
    return results, pinning


def main() -> int:
    """Print the table; exit code 1 where a figure is not within its reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="rounds per measurement (default 25)")
    parser.add_argument("--only", action="append", default=[], help="only operations whose name contains this; again")
    parser.add_argument("--history", type=int, default=30_000, help="messages of the long session (default 30,000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results, pinning = run(options.rounds, options.only, history=options.history, is_quiet=options.json)
    if options.json:
        print(json.dumps({"pinning": pinning, "results": [asdict(result) for result in results]}, indent=2))
    else:
        table = Table(title=f"Cost of a call ({pinning}; {os.cpu_count()} cores; medians of {options.rounds} rounds)")
        for name in ("operation", "us", "reference", "us", "ratio", "reach"):
            table.add_column(name, justify="left" if name in ("operation", "reference") else "right")
        for result in results:
            figure, reach = f"{result.ratio:.2f}", "" if result.reach is None else f"{result.reach:.2f}"
            if result.most_added is not None:
                figure, reach = f"{result.added:+.2f} us", f"{result.most_added:+.2f} us"
            table.add_row(
                result.operation,
                f"{result.microseconds:,.2f}",
                result.reference,
                f"{result.reference_microseconds:,.2f}",
                f"[{'green' if result.is_reached else 'red'}]{figure}[/]",
                reach,
            )
        Console().print(table)
    return 0 if all(result.is_reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
