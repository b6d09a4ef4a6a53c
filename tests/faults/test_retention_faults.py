"""Purges, erasures and archives beside writers, and where they are killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import redis
from canaries import search_of
from memory_contract import PATIENT, Backend, logged, redis_values, row_counts, rows_with, run_threads, say, talk
from server_faults import waited_for
from test_retention import AGE, keys_of, make_old, many_messages

from contract_engine.memory import InvalidInputError, MemoryManager

pytest_plugins = ("memory_fixtures",)

WRITERS, SESSIONS = 8, 160


def begin(backend: Backend, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command as a process of its own."""
    servers = ["--redis-url", backend.redis_url, "--database-url", str(backend.database_url)]
    environment = os.environ | {f"CONTRACT_MEMORY_{name}".upper(): str(value) for name, value in PATIENT.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "contract_engine.cli", *arguments, *servers, "--tenant", backend.tenant],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Kill a process with SIGKILL when a condition holds; it must be at work then."""
    with process:
        assert waited_for(lambda: process.poll() is not None or condition(), 60)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL, process.stderr and process.stderr.read()


def finish(process: subprocess.Popen[bytes]) -> None:
    with process:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err


def old_sessions(backend: Backend, manager: MemoryManager, count: int) -> list[str]:
    """Begin sessions that nobody has touched for long, each with a copy in Redis."""
    names = [f"s{number:03d}" for number in range(count)]
    for name in names:
        manager.add_messages(name, [{**message, "canary": f"canary-{backend.tenant}"} for message in talk(4)])
        manager.get_context(name)
    make_old(backend, *names)
    return names


def test_a_purge_beside_eight_writers_loses_nothing_that_was_said_since(blocking: Backend) -> None:
    """Each writer goes through the old sessions in an order of its own, so that some are touched before their turn."""
    purger, *managers = (blocking.open() for _ in range(3))
    names = old_sessions(blocking, purger, SESSIONS)
    said: dict[str, list[str]] = {name: [] for name in names}
    done: dict[str, int] = {}
    begun = threading.Event()

    def write(writer: int) -> None:
        assert begun.wait(30)
        for number in range(60):
            name = names[-1 - (writer * 37 + number * 11) % (SESSIONS - 10)]
            mark = f"{writer}-{number}"
            managers[writer % 2].append(name, {"role": "user", "content": mark}, message_id=mark)
            said[name].append(mark)  # each writer comes to a session once at most, and lists are appended to at once

    def work(number: int) -> None:
        if number < WRITERS:
            write(number)
            return
        answer = purger.retention.purge(AGE, sessions_per_second=150, progress=lambda _: begun.set())
        done.update(sessions=answer["sessions"], kept=answer["kept"])

    run_threads(WRITERS + 1, work)
    assert sum(map(len, said.values())) == WRITERS * 60
    assert done["sessions"] >= 50, "the purge came too late"
    outcomes = {"kept": 0, "begun anew": 0, "gone": 0}
    for name in names:
        rows = [message for _, message in logged(str(blocking.database_url), blocking.tenant, name)]
        old = [message for message in rows if "canary" in message]
        new = [message["content"] for message in rows if "canary" not in message]
        assert sorted(new) == sorted(said[name]), "what was said since the purge began is there, once"
        assert len(old) in (0, 4), "a session is erased whole, or not at all"
        if old:
            assert rows[:4] == old
            assert new, "nobody had touched it"
        outcomes["kept" if old else "begun anew" if new else "gone"] += 1
        for manager in (purger, managers[0]):
            context = manager.get_context(name)
            assert (context["last_seq"], context["buffer_messages"]) == (len(rows), rows[context["watermark"] :])
    assert outcomes["kept"] >= 10, outcomes
    assert outcomes["gone"] >= 10, outcomes
    left = [name for name in names if logged(str(blocking.database_url), blocking.tenant, name)]
    assert purger.retention.session_ids() == left


def test_a_purge_that_was_killed_is_finished_by_the_next_one(blocking: Backend, raw: redis.Redis) -> None:
    manager = blocking.open()
    names = old_sessions(blocking, manager, SESSIONS)
    manager.add_messages("young", talk(3))
    first = begin(blocking, "purge", "--older-than", "90d", "--yes", "--rate", "100")
    kill_when(first, lambda: len(manager.retention.session_ids()) < SESSIONS)
    left = manager.retention.session_ids()
    assert 1 < len(left) < SESSIONS, "it was to be killed in the middle"
    for name in left[:-1]:
        assert len(logged(str(blocking.database_url), blocking.tenant, name)) in (0, 4)
    finish(begin(blocking, "purge", "--older-than", "90d", "--yes", "--rate", "0"))
    assert manager.retention.session_ids() == ["young"]
    assert {key.split(b"/")[1].split(b"}")[0] for key in keys_of(raw, blocking)} <= {b"young"}
    assert rows_with(str(blocking.database_url), f"canary-{blocking.tenant}") == []
    assert manager.get_context("young")["buffer_messages"] == talk(3)
    assert manager.get_context(names[0])["last_seq"] == 0


DIES = """
import json, os, sys
from datetime import timedelta
from crash_matrix import Fault, Interposition
from contract_engine.memory import MemoryManager

settings = json.loads(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if not child:
        manager = MemoryManager(**settings)
        at_work = Interposition(manager, Fault("kill before", int(line)))
        manager.retention.purge(timedelta(days=90))
        os._exit(3 if at_work.fired is None else 4)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Purges in one child per line of input, which says before which effect the child is killed."""


def test_a_purge_that_dies_between_any_two_steps_is_finished_by_the_next_one(
    blocking: Backend, raw: redis.Redis
) -> None:
    """A reader puts the session in place in Redis again, as far as it finds it, before the next purge."""
    maker, reader = blocking.open(), blocking.open()
    settings = {
        "redis_url": blocking.redis_url,
        "database_url": blocking.database_url,
        "tenant": blocking.tenant,
        **PATIENT,
    }
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}

    command = [sys.executable, "-c", DIES, json.dumps(settings)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for steps in range(40):
            old_sessions(blocking, maker, 2)
            print(steps + 1, file=nursery.stdin, flush=True)
            ended = int(nursery.stdout.readline())
            reader.get_context("s000")
            if ended != -signal.SIGKILL:
                break
            assert reader.retention.purge(AGE)["kept"] == 0
            assert keys_of(raw, blocking) == [], steps
            assert rows_with(str(blocking.database_url), f"canary-{blocking.tenant}") == []
            assert reader.retention.session_ids() == [], steps
        nursery.stdin.close()
    assert ended == 3
    assert steps >= 10


def test_an_import_that_was_killed_has_done_nothing_and_can_be_sent_again(blocking: Backend, tmp_path: Path) -> None:
    manager = blocking.open()
    many_messages(blocking, "s", 30_000)
    path = tmp_path / "s.jsonl"
    with path.open("wb") as file:
        manager.retention.export_session("s", file.write)
    manager.append("t", say(1))
    with psycopg.connect(str(blocking.database_url), autocommit=True) as connection:

        def is_inserting() -> bool:
            query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO memory_messages%unnest%'"
            row = connection.execute(query + " AND state <> 'idle'").fetchone()
            assert row is not None
            return bool(row[0])

        for name, more in (("new", ()), ("t", ("--replace",))):
            kill_when(begin(blocking, "import", str(path), "--session", name, *more), is_inserting)
            assert waited_for(lambda: not is_inserting(), 30)
    assert manager.retention.session_ids() == ["s", "t"]
    assert manager.get_context("t")["buffer_messages"] == [say(1)]
    assert logged(str(blocking.database_url), blocking.tenant, "t") == [(1, say(1))]
    assert row_counts(str(blocking.database_url), blocking.tenant)["memory_messages"] == 30_001
    for name, more in (("new", ()), ("t", ("--replace",))):
        finish(begin(blocking, "import", str(path), "--session", name, *more))
        out = io.BytesIO()
        manager.retention.export_session(name, out.write)
        assert out.getvalue().splitlines()[1:-1] == path.read_bytes().splitlines()[1:-1]


def test_an_export_that_was_killed_leaves_nothing_under_its_name(blocking: Backend, tmp_path: Path) -> None:
    many_messages(blocking, "s", 30_000)
    path = tmp_path / "s.jsonl"

    def has_begun() -> bool:
        return any(found.stat().st_size > 0 for found in tmp_path.iterdir())

    kill_when(begin(blocking, "export", "s", "-o", str(path)), has_begun)
    assert [found.suffix for found in tmp_path.iterdir()] == [".part"]
    assert not path.exists()
    interrupted = begin(blocking, "export", "s", "-o", str(path))
    parts = set(tmp_path.iterdir())
    assert waited_for(lambda: any(found.stat().st_size > 0 for found in set(tmp_path.iterdir()) - parts), 60)
    interrupted.send_signal(signal.SIGTERM)
    with interrupted:
        assert interrupted.wait(30) == 128 + signal.SIGTERM
    assert set(tmp_path.iterdir()) == parts, "in order, it takes its own part with it"
    finish(begin(blocking, "export", "s", "-o", str(path)))
    assert path.read_bytes().count(b"\n") == 30_002


def test_an_erasure_beside_writers(blocking: Backend, raw: redis.Redis) -> None:
    """What was acknowledged before it began has no hit anywhere after it; what was begun after it is all there."""
    managers = [blocking.open() for _ in range(2)]
    lock = threading.Lock()
    marks: dict[str, tuple[float, float]] = {}
    halfway = threading.Semaphore(0)
    moments: list[float] = []
    rest = threading.Event()

    def write(writer: int) -> None:
        for number in range(40):
            if number == 30:
                assert rest.wait(60)
            mark = f"mark-{blocking.tenant}-{writer:02d}-{number:02d}-"
            begun = time.monotonic()
            managers[writer % 2].append("s", {"role": "user", "content": mark}, message_id=mark)
            with lock:
                marks[mark] = (begun, time.monotonic())
            halfway.release()

    def erase() -> None:
        try:
            for _ in range(WRITERS * 10):
                assert halfway.acquire(timeout=60)
            moments.append(time.monotonic())
            (report,) = managers[0].retention.erase(["s"])
            moments.append(time.monotonic())
            assert (report["left_rows"], report["left_keys"]) == ({}, [])
            assert report["tables"]["memory_messages"] >= WRITERS * 10
        finally:
            rest.set()

    run_threads(WRITERS + 1, lambda number: write(number) if number < WRITERS else erase())
    for manager in managers:
        manager.wait_for_folds()
    gone = [mark for mark, (_, answered) in marks.items() if answered < moments[0]]
    kept = [mark for mark, (begun, _) in marks.items() if begun > moments[1]]
    assert len(gone) >= WRITERS * 10 - WRITERS
    assert len(kept) >= WRITERS * 5
    with search_of(raw, blocking) as search:
        for mark in gone:
            assert search.columns(mark) == set(), mark
        values = b"\n".join(redis_values(raw).values())
        assert [mark for mark in gone if mark.encode() in values] == []
    there = {message["content"] for _, message in logged(str(blocking.database_url), blocking.tenant, "s")}
    assert set(kept) <= there


def test_an_import_beside_a_writer_of_the_same_name(blocking: Backend) -> None:
    """Whoever is first has the session; the import is refused, or the message comes behind what was imported.

    Each has a start before the other in turn, a longer one each time, until both have been first.
    """
    manager = blocking.open()
    manager.add_messages("s", talk(5))
    out = io.BytesIO()
    manager.retention.export_session("s", out.write)
    outcomes: set[str] = set()
    for number in range(60):
        if number >= 12 and len(outcomes) == 2:
            break
        name = f"t{number}"
        others: Sequence[MemoryManager] = [blocking.open() for _ in range(2)]
        refused: list[InvalidInputError] = []

        def work(
            which: int,
            name: str = name,
            late: tuple[int, float] = (number % 2, number * 0.002),
            others: Sequence[MemoryManager] = others,
            refused: list[InvalidInputError] = refused,
        ) -> None:
            if which == late[0]:
                time.sleep(late[1])
            if which:
                others[0].append(name, say(99))
                return
            try:
                others[1].retention.import_sessions(io.BytesIO(out.getvalue()), session_id=name)
            except InvalidInputError as exc:
                refused.append(exc)

        run_threads(2, work)
        rows = [message for _, message in logged(str(blocking.database_url), blocking.tenant, name)]
        assert rows == ([say(99)] if refused else [*talk(5), say(99)])
        outcomes.add("refused" if refused else "imported")
        for reader in others:
            assert reader.get_context(name)["buffer_messages"] == rows
    assert outcomes == {"refused", "imported"}
