"""A long run under load with a random fault every few seconds, and the account of it: ``make soak``.

    python tests/faults/soak.py --seconds 600 --seed 7

Two processes, each with threads on a blocking manager and tasks on an asyncio one, talk to a few dozen sessions whose
limits are small, so that much is folded; a few of them through adapters that write to a legacy table too. Meanwhile
servers and processes are killed, stopped, emptied and starved. In the end everything is healed, and what each caller
was told is held against the log, and the legacy table with it. The seed fixes the faults, their order and their
lengths, and what the clients say; how all of it interleaves is up to the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # run as a program, without pytest's path
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import msgspec
import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from server_faults import ServerFaults, waited_for
from soak_client import CLEARED_SESSIONS, DUAL_SESSIONS, Figures, Status
from soak_faults import KINDS, Happened, Injector, counts_of, plan
from soak_history import Rows, context_violations, key_of, range_violations, violations_of
from soak_journal import Fold, Journals
from soak_worker import RELAY, WITH, WITHOUT, Orders, command

from contract_engine.embedded import EmbeddedServers
from contract_engine.memory import MemoryConfig, MemoryManager, StoreUnavailableError
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.migration import EnhancedSessionStore

TENANT = "soak"
SESSIONS = 32
CLEARED = tuple(f"c{number}" for number in range(CLEARED_SESSIONS))
DUAL = tuple(f"d{number}" for number in range(DUAL_SESSIONS))
SHOWN = 40
"""Violations that are printed; ``--json`` has all of them."""

RECOVERY_SECONDS = 60.0
WORKER_SECONDS = 60.0
SLOWEST_CALL = 30.0
"""Seconds no call may take: a dozen of the deadlines below, since a call may have several in turn on a busy machine."""

SETTINGS: dict[str, Any] = {
    "tenant": TENANT,
    "redis_timeout_seconds": 0.5,
    "database_timeout_seconds": 1.0,
    "breaker_failure_threshold": 3,
    "breaker_recovery_seconds": 0.5,
    "fold_lease_seconds": 5.0,
    "redis_pool_size": 10,
    "database_pool_size": 10,
}
THREADS = TASKS = 4

GROWTH = Figures(rss=32 * 2**20, blocks=60_000, sockets=20, files=22, threads=8, tasks=8)
"""How much more of each a worker may have in the end than when it had warmed up.

Both pools of both managers open connections when they are first needed, which a fault may be; so may the threads of
background work. A leak of one kilobyte a call would be over within a minute.
"""

STATUS = msgspec.json.Decoder(Status)
"""Made here: two threads that make what msgspec knows of nested types at once end the process (msgspec 0.22)."""


class Worker:
    """A process under load, and what it said last."""

    def __init__(self, orders: Orders, errors: Path) -> None:
        self.orders = orders
        self.errors = errors
        self.status = Status()
        self.began = time.monotonic()
        with errors.open("ab") as stderr:
            self.process = subprocess.Popen(
                command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self.tell(msgspec.json.encode(orders).decode())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def tell(self, line: str) -> None:
        """Give it one more order."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.status = STATUS.decode(line)

    def kill(self) -> None:
        self.process.kill()
        self._bury()

    def _bury(self) -> int:
        code = self.process.wait(WORKER_SECONDS)
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def end(self) -> int:
        """Have it end in order; answers its exit code."""
        self.tell("end")
        try:
            return self._bury()
        except subprocess.TimeoutExpired:
            self.kill()
            return -1

    def violations(self) -> list[str]:
        """Return what is wrong with an ended worker: figures that grew, calls that hung, words on standard error."""
        name, status = self.orders.name, self.status
        found = []
        if text := self.errors.read_text().strip():
            found.append(f"worker {name} wrote on standard error: {text[-500:]}")
        if status.slowest > SLOWEST_CALL:
            found.append(f"worker {name}: a call took {status.slowest:.1f} s")
        if status.final is None:
            return [*found, f"worker {name} did not end in order"]
        if status.left_open:
            found.append(f"worker {name} had closed its managers and left open: {', '.join(status.left_open)}")
        if status.warm is not None:
            for figure in Figures.__struct_fields__:
                warm, final, more = (getattr(one, figure) for one in (status.warm, status.final, GROWTH))
                if final > warm + more:
                    found.append(f"worker {name}: {figure} grew from {warm:,} to {final:,}, allowed are {more:,} more")
        return found


@dataclass
class Report:
    """The account of one run; ``violations`` is empty where every promise held, and ``lost`` those about messages."""

    seed: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    withheld: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    unlogged: int = 0
    refused: int = 0
    cleared: int = 0
    reads: int = 0
    degraded: int = 0
    slowest_call: float = 0.0
    messages: int = 0
    relayed: int = 0
    folds: int = 0
    recovery_seconds: float = 0.0
    warm: list[dict[str, int]] = field(default_factory=list)
    final: list[dict[str, int]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)


class Soak:
    """One run: servers, workers, faults, and the account. It goes on until there was time for ``turns`` faults."""

    def __init__(self, seed: int, seconds: float, home: Path, *, turns: int = 0) -> None:
        self.report = Report(seed, seconds)
        self._turns = turns
        self._home = home
        self._dead: list[Worker] = []
        self.workers: list[Worker] = []
        self._stack = ExitStack()
        self.injector: Injector | None = None

    def __enter__(self) -> Soak:
        redis_server = self._stack.enter_context(EmbeddedServers(postgres=False, persist_redis=True))
        database = self._stack.enter_context(EmbeddedServers(redis=False, durable=False))
        faults = ServerFaults(redis_server=redis_server, database=database)
        faults.write_before_answering()
        self._stack.callback(faults.go_on)
        self._faults = faults
        self._settings = SETTINGS | {"redis_url": redis_server.redis_url, "database_url": database.database_url}
        with LegacySwisperStore(database.database_url) as legacy:
            legacy.create_table()
        self.injector = Injector(faults, self._kill_worker, self._cut_off)
        self.workers = [self._start(number, 0) for number in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.process.returncode is None:
                worker.kill()
        self._stack.close()

    def _start(self, number: int, life: int) -> Worker:
        name = f"w{number}.{life}"
        orders = Orders(
            name=name,
            seed=self.report.seed,
            sessions=SESSIONS,
            threads=THREADS,
            tasks=TASKS,
            warm_seconds=min(30.0, self.report.seconds / 3),
            journal=str(self._home / f"{name}.journal"),
            settings=self._settings,
        )
        return Worker(orders, self._home / f"{name}.errors")

    def _kill_worker(self) -> str:
        """Kill the second worker with SIGKILL and start another in its place; the first lives for the whole run."""
        worker = self.workers[1]
        worker.kill()
        self._dead.append(worker)
        self.workers[1] = self._start(1, len(self._dead))
        return f"pid {worker.process.pid}, exit code {worker.process.returncode}"

    def _cut_off(self, server: str) -> Callable[[], int]:
        """Take PostgreSQL from the first worker, or Redis from the second, while the other has it."""
        worker = self.workers[0 if server == "postgres" else 1]
        before = worker.status.rejected
        worker.tell(f"{WITHOUT} {server}")

        def give_back() -> int:
            waited_for(lambda: worker.status.rejected > before, WORKER_SECONDS)
            worker.tell(f"{WITH} {server}")
            return worker.status.rejected - before

        return give_back

    def run(self, watch: Callable[[Soak, float], None]) -> Report:
        """Run to the end and return the account; ``watch`` is called several times a second with the seconds left."""
        injector = self.injector
        assert injector is not None, "enter it first"
        end = time.monotonic() + self.report.seconds

        def sleep(seconds: float) -> None:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                watch(self, max(0.0, end - time.monotonic()))
                time.sleep(min(0.2, left))

        injector.sleep = sleep
        if not waited_for(lambda: all(worker.status.acknowledged for worker in self.workers), WORKER_SECONDS):
            self.report.violations.append("the workers do not begin")
        for turn, fault in enumerate(plan(self.report.seed)):
            sleep(fault.pause)
            if time.monotonic() >= end and turn >= self._turns:
                break
            injector.cause(fault)
        injector.heal()
        self._recover(injector)
        for worker in self.workers:
            code = worker.end()
            if code:
                self.report.violations.append(f"worker {worker.orders.name} ended with exit code {code}")
            self.report.violations += worker.violations()
        self._account(injector)
        return self.report

    def _recover(self, injector: Injector) -> None:
        """Wait, under load, until everybody is served by both servers again and no message waits for the log."""
        began = time.monotonic()
        counts = {worker.orders.name: worker.status.acknowledged for worker in self.workers}
        trouble = (-1, -1)

        def recovered() -> bool:
            nonlocal trouble
            time.sleep(1.0)
            before = trouble
            statuses = [worker.status for worker in self.workers]
            trouble = sum(one.refused for one in statuses), sum(one.degraded for one in statuses)
            return (
                trouble == before
                and injector.unlogged() == 0
                and all(worker.status.acknowledged > counts[worker.orders.name] for worker in self.workers)
            )

        if not waited_for(recovered, RECOVERY_SECONDS):
            self.report.violations.append(
                f"not recovered after {RECOVERY_SECONDS:.0f} s: {injector.unlogged()} sessions with unlogged messages, "
                f"{trouble[0]} refusals and {trouble[1]} degraded answers, and counting"
            )
        self.report.recovery_seconds = time.monotonic() - began

    def _account(self, injector: Injector) -> None:
        report = self.report
        journals = Journals()
        for path in sorted(self._home.glob("*.journal")):
            with path.open() as lines:
                journals.read(lines)
        everybody = [*self._dead, *self.workers]
        report.happened = injector.happened
        report.faults, report.withheld = counts_of(injector.happened), dict(injector.withheld)
        report.acknowledged = journals.acknowledged
        for name in ("unlogged", "refused", "cleared", "reads", "degraded"):
            setattr(report, name, sum(getattr(worker.status, name) for worker in everybody))
        report.slowest_call = max(worker.status.slowest for worker in everybody)
        measured = [worker for worker in self.workers if worker.status.warm and worker.status.final]
        report.warm = [msgspec.to_builtins(worker.status.warm) for worker in measured]
        report.final = [msgspec.to_builtins(worker.status.final) for worker in measured]
        if not measured:
            report.violations.append("no worker lived long enough to be measured")
        journals.folds, journals.relayed = self._folds(), list(DUAL)
        rows = self._rows()
        report.messages = sum(len(found) for found in rows.values())
        report.lost = violations_of(journals, rows)
        report.violations += report.lost
        report.violations += self._context_violations()

    def _folds(self) -> dict[str, list[Fold]]:
        """Read when which part of the log was folded, by the clock of the journals."""
        found: dict[str, list[Fold]] = defaultdict(list)
        ahead = time.time() - time.monotonic()
        with psycopg.connect(self._faults.database.database_url) as connection:
            for session, last_seq, at in connection.execute(
                "SELECT session_id, last_seq, extract(epoch FROM created_at)::float8 FROM memory_summaries"
                " WHERE tenant = %s",
                (TENANT,),
            ):
                found[session].append(Fold(last_seq, at - ahead))
        return found

    def _rows(self) -> Rows:
        found: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        with psycopg.connect(self._faults.database.database_url) as connection:
            for session, seq, body in connection.execute(
                "SELECT session_id, seq, body FROM memory_messages WHERE tenant = %s ORDER BY session_id, seq",
                (TENANT,),
            ):
                found[session].append((seq, json.loads(body)))
        return found

    def _context_violations(self) -> list[str]:
        """Read every session with a fresh manager, after one more message: a worker that was killed told nobody."""
        found = []
        closing = {"role": "user", "writer": "end", "n": 1, "content": "That was all."}
        with (
            MemoryManager(config=MemoryConfig(**self._settings)) as manager,
            LegacySwisperStore(self._faults.database.database_url) as legacy,
            EnhancedSessionStore(manager, legacy, relay=RELAY) as adapter,
        ):
            for session in (*(f"s{number}" for number in range(SESSIONS)), *CLEARED, *DUAL):
                try:
                    writer = adapter if session in DUAL else manager
                    receipt = writer.append(session, closing, message_id="end")
                    if not receipt.durable or receipt.degraded:
                        found.append(f"{session}: {receipt} after everything was healed")
                except StoreUnavailableError as exc:
                    found.append(f"{session}: {exc} after everything was healed")
            manager.wait_for_folds(30)
            rows = self._rows()
            if not adapter.settle(RECOVERY_SECONDS):
                found.append(f"not relayed after {RECOVERY_SECONDS:.0f} s: {adapter.waiting_sessions()}")
            self.report.relayed = sum(len(rows[session]) for session in DUAL)
            for session in DUAL:
                found += difference(session, [one for _, one in rows[session]], legacy.get_chat_history(session))
            with psycopg.connect(self._faults.database.database_url) as connection:
                summaries = connection.execute(
                    "SELECT session_id, version, first_seq, last_seq FROM memory_summaries WHERE tenant = %s"
                    " ORDER BY session_id, version",
                    (TENANT,),
                ).fetchall()
            self.report.folds = len(summaries)
            for session, logged in rows.items():
                astray = [seq for seq, message in logged if message.get("session", session) != session]
                found += [f"{session}: message {seq} was said in another session" for seq in astray]
                ranges = [(version, first, last) for name, version, first, last in summaries if name == session]
                found += range_violations(session, ranges, len(logged))
                for _ in range(2):  # the second time from Redis
                    found += context_violations(session, manager.get_context(session), logged)
        return found


def difference(session: str, logged: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how a conversation of the legacy store differs from the log; nothing where it does not."""
    if logged == there:
        return []
    ours, theirs = ([key_of(one) for one in messages] for messages in (logged, there))
    first = next((place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    where = "" if first is None else f"; first at {first + 1}: {ours[first : first + 4]}, {theirs[first : first + 4]}"
    return [
        f"{session}: {len(ours)} messages in the log, {len(theirs)} in the legacy store;"
        f" missing {list((Counter(ours) - Counter(theirs)).elements())[:5]},"
        f" too many {list((Counter(theirs) - Counter(ours)).elements())[:5]}{where}"
    ]


def soak(
    seconds: float, seed: int, watch: Callable[[Soak, float], None] = lambda _soak, _left: None, *, turns: int = 0
) -> Report:
    """Run for ``seconds``, or longer until there was time for ``turns`` faults, and return the account.

    What was written down stays where there are violations.
    """
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    with Soak(seed, seconds, home, turns=turns) as run:
        report = run.run(watch)
    if report.violations:
        report.violations.append(f"the journals of the workers are in {home}")
    else:
        shutil.rmtree(home)
    return report


@contextmanager
def watching(console: Console, seconds: float) -> Iterator[Callable[[Soak, float], None]]:
    """Show how far the run is, on a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=seconds)

        def watch(run: Soak, left: float) -> None:
            assert run.injector is not None
            statuses = [worker.status for worker in run.workers]
            counts = {kind: count for kind, count in counts_of(run.injector.happened).items() if count}
            faults = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none yet"
            progress.update(
                task,
                completed=seconds - left,
                description=f"{sum(one.acknowledged for one in statuses):,} acknowledged, "
                f"{sum(one.refused for one in statuses):,} refused\nfaults: {faults}\n",
            )

        yield watch


def table(report: Report) -> Table:
    """Show the account."""
    found = Table("", "", box=None, show_header=False, padding=(0, 2))
    found.add_row("seed", str(report.seed))
    for kind in KINDS:
        withheld = report.withheld.get(kind, 0)
        found.add_row(kind, f"{report.faults[kind]}" + (f", and {withheld} withheld" if withheld else ""))
    found.add_row(
        "acknowledged", f"{report.acknowledged:,} messages, {report.unlogged:,} of them while Redis alone held"
    )
    found.add_row("refused", f"{report.refused:,} calls")
    found.add_row("erased", f"{report.cleared:,} sessions")
    found.add_row("reads", f"{report.reads:,}; {report.degraded:,} answers were degraded")
    found.add_row("in the log", f"{report.messages:,} messages, {report.folds:,} folds")
    found.add_row("in both stores", f"{report.relayed:,} messages")
    found.add_row("slowest call", f"{report.slowest_call:.2f} s")
    found.add_row("recovered", f"{report.recovery_seconds:.1f} s after the last fault")
    for warm, final in zip(report.warm, report.final, strict=True):
        figures = (f"{name} {warm[name]:,} → {final[name]:,}" for name in warm if name != "rss")
        found.add_row("a worker", f"{warm['rss'] / 2**20:.1f} → {final['rss'] / 2**20:.1f} MiB, {', '.join(figures)}")
    return found


def main(
    *,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the faults go on.")] = 600.0,
    seed: Annotated[int | None, typer.Option(help="Of a run to repeat; by default a new one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")] = False,
) -> None:
    """Load two processes, harm their servers every few seconds, and hold what they were told against the log."""
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    console = Console(stderr=True, highlight=False)
    console.print(f"-- soak: {seconds:.0f} s of faults, seed {seed}")
    with watching(console, seconds) as watch:
        report = soak(seconds, seed, watch)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        output = Console(highlight=False)
        output.print(table(report))
        for violation in report.violations[:SHOWN]:
            output.print(f"✗ {violation}", style="red", markup=False)
        verdict = f"✗ {len(report.violations)} violations; again with --seed {seed}"
        output.print(verdict if report.violations else "✓ every promise was kept", style="bold")
    raise typer.Exit(1 if report.violations else 0)


if __name__ == "__main__":
    program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    program.command()(main)
    program()
