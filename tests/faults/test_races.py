"""Races: many writers, many processes, many hands on one session at once. Exact counts, never times."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from many_writers import Acknowledged, Commits, assert_all_kept, assert_read, run_beside_readers, sync_backend, told
from memory_contract import (
    ASYNC,
    DURABLE,
    EPHEMERAL,
    SYNC,
    Backend,
    assert_context,
    logged,
    row_counts,
    run_threads,
    talk,
)

from contract_engine.memory import AsyncMemoryManager, MemoryManager

pytest_plugins = ("memory_fixtures",)

TESTS = Path(__file__).parent.parent
PATIENT: dict[str, Any] = {"redis_timeout_seconds": 5.0, "database_timeout_seconds": 30.0}
"""Settings for crowds: what is counted here is effects, and nobody is to give up for want of a processor."""


def settings_of(backend: Backend, **more: Any) -> dict[str, Any]:
    given = {"redis_url": backend.redis_url, "database_url": backend.database_url, "tenant": backend.tenant}
    return given | PATIENT | more


MEMBER = """
import json, os, sys
import psutil
from contract_engine.memory import MemoryConfig, MemoryManager, MessageConflictError
from memory_contract import run_threads
from many_writers import assert_read, told

def begin():
    print("ready", flush=True)
    assert sys.stdin.readline() == "go\\n"

def end(answer):
    manager.close()
    print(json.dumps(answer), flush=True)

while line := sys.stdin.readline():
    given = json.loads(line)
    number = given["number"]
    manager = MemoryManager(config=MemoryConfig(**given["settings"]), **given["limits"])
    exec(given["code"])
"""
"""A process of the crowd: for each job a manager, the moment when all of them begin, and an answer."""


class Crowd:
    """Processes that do the same work at the same moment; they stay for the next test: starting takes a second."""

    def __init__(self, count: int, errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as stderr:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", MEMBER],
                    cwd=TESTS,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
                for _ in range(count)
            ]

    def run(
        self, code: str, backend: Backend, *, count: int, limits: Mapping[str, int] | None = None, **more: object
    ) -> list[Any]:
        """Run ``code`` in ``count`` of the processes and return what each answered."""
        processes = self._processes[:count]
        common = {"code": code, "count": count, "settings": settings_of(backend), "limits": limits or {}} | more
        for number, process in enumerate(processes):
            self._tell(process, json.dumps({"number": number} | common))
        for process in processes:
            assert self._hear(process) == "ready"
        for process in processes:
            self._tell(process, "go")
        answers = [json.loads(self._hear(process)) for process in processes]
        assert self.errors.read_text() == "", "a process of the crowd has complained"
        return answers

    @staticmethod
    def _tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.errors.read_text()
        return line.rstrip("\n")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """Four processes."""
    found = Crowd(4, tmp_path_factory.mktemp("crowd") / "errors")
    yield found
    found.close()


Ranges = list[tuple[int, int, int]]
"""Version, first and last message of summaries."""


def ranges_of_all(backend: Backend) -> dict[str, Ranges]:
    """Return the range of every summary in the log, by session."""
    assert backend.database_url is not None
    found: dict[str, Ranges] = {}
    with psycopg.connect(backend.database_url) as connection:
        for session_id, *one in connection.execute(
            "SELECT session_id, version, first_seq, last_seq FROM memory_summaries WHERE tenant = %s ORDER BY version",
            (backend.tenant,),
        ):
            found.setdefault(session_id, []).append((one[0], one[1], one[2]))
    return found


def summary_ranges(backend: Backend) -> Ranges:
    return ranges_of_all(backend).get("s", [])


def assert_one_version_per_range(ranges: Sequence[tuple[int, int, int]]) -> None:
    assert [version for version, _, _ in ranges] == list(range(1, len(ranges) + 1))
    assert ranges[0][1] == 1
    assert all(later[1] == earlier[2] + 1 for earlier, later in pairwise(ranges))
    assert all(first <= last for _, first, last in ranges)


# -- many writers on one session


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
def test_sixty_four_threads_on_one_session(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    """Three managers, so that the places of their pools are fought for too; two readers hold the caps to every read."""
    writers, each = 64, 8 if mode == DURABLE else 4
    acknowledged = Acknowledged()
    seqs: list[list[int]] = [[] for _ in range(writers)]
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        managers = [backend.open(max_buffer_messages=10, **PATIENT) for _ in range(3)]

        def write(writer: int) -> None:
            manager = managers[writer % 3]
            for number in range(each):
                receipt = manager.append("s", told(writer, number), message_id=f"{writer}-{number}")
                assert receipt.degraded is False
                seqs[writer].append(receipt.seq)
                acknowledged.note(receipt.seq)

        run_beside_readers(managers, write, seqs, acknowledged)
        assert sorted(seq for found in seqs for seq in found) == list(range(1, writers * each + 1))
        context = managers[1].get_context("s")
        assert_read(context)
        assert context["last_seq"] == writers * each
        if mode == DURABLE:
            rows = logged(database_url, tenant, "s")
            assert_all_kept(rows, writers=writers, each=each)
            assert [(message["writer"], message["n"]) for _, message in rows] == [
                position
                for _, position in sorted(
                    (seq, (writer, n)) for writer, found in enumerate(seqs) for n, seq in enumerate(found)
                )
            ], "the numbers of the receipts are those of the log"
            assert_one_version_per_range(summary_ranges(backend))


# -- many sessions in several processes

SESSIONS, PROCESSES = 10_000, 4
LONG_EVERY, LONG_TURNS = 50, 4
"""Each of the processes adds to each of the sessions, to every 50th of them four messages: 42,400 messages."""

MANY = """
import gc
import random
import sys
import threading

def say(session, turn):
    return {"role": "user", "session": session, "writer": number, "n": turn, "content": f"{session} says {turn}."}

begin()
sessions = list(range(given["sessions"]))
random.Random(number).shuffle(sessions)
reads = 0
own = psutil.Process()

def work(thread):
    global reads
    for session in sessions[start + thread : end_of_half : 4]:
        is_long = session % given["long_every"] == 0
        for turn in range(given["long_turns"] if is_long else 1):
            manager.append(f"s{session}", say(session, turn), message_id=f"{number}-{turn}")
        if is_long or session % 25 == number:
            context = manager.get_context(f"s{session}")
            assert_read(context)
            assert context["session_id"] == f"s{session}"
            assert {message["session"] for message in context["buffer_messages"]} == {session}
            reads += 1

blocks = []
for start, end_of_half in ((0, len(sessions) // 2), (len(sessions) // 2, len(sessions))):
    run_threads(4, work)
    manager.wait_for_folds()
    gc.collect()
    blocks.append(sys.getallocatedblocks())
sockets = len(own.net_connections("tcp"))
manager.close()
answer = {"reads": reads, "sockets": sockets, "grown": blocks[1] - blocks[0]}
end(answer | {"left": len(own.net_connections("tcp")), "threads": [one.name for one in threading.enumerate()]})
"""


def turns_of(session: int) -> int:
    return 1 if session % LONG_EVERY else LONG_TURNS


def test_many_sessions_in_four_processes(
    crowd: Crowd, redis_url: str, database_url: str, tenant: str, raw: redis.Redis
) -> None:
    limits: dict[str, Any] = {"max_buffer_messages": 6}
    with sync_backend(redis_url, database_url, tenant) as backend:
        found = crowd.run(
            MANY,
            backend,
            count=PROCESSES,
            limits=limits,
            sessions=SESSIONS,
            long_every=LONG_EVERY,
            long_turns=LONG_TURNS,
        )
        print(found)
        for number, one in enumerate(found):
            assert one["reads"] == sum(s % LONG_EVERY == 0 or s % 25 == number for s in range(SESSIONS))
            assert 0 < one["sockets"] <= 2 * (4 + 2)
            assert (one["left"], one["threads"]) == (0, ["MainThread"])
            assert one["grown"] < SESSIONS // 2, (
                "not a block for each session of the second half: all caches have an end"
            )
        long = SESSIONS // LONG_EVERY
        counts = row_counts(database_url, tenant)
        assert counts["memory_sessions"] == SESSIONS
        assert counts["memory_messages"] == PROCESSES * (SESSIONS - long + long * LONG_TURNS)
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT session_id, array_agg(seq ORDER BY seq), array_agg(convert_from(body, 'UTF8') ORDER BY seq)"
                " FROM memory_messages WHERE tenant = %s GROUP BY session_id",
                (tenant,),
            ).fetchall()
        assert {session_id for session_id, _, _ in rows} == {f"s{number}" for number in range(SESSIONS)}
        ranges = ranges_of_all(backend)
        assert set(ranges) == {f"s{number}" for number in range(0, SESSIONS, LONG_EVERY)}
        manager = backend.open(**limits, **PATIENT)
        for place, (session_id, seqs, bodies) in enumerate(rows):
            messages = [json.loads(body) for body in bodies]
            turns = turns_of(int(session_id[1:]))
            assert seqs == list(range(1, PROCESSES * turns + 1)), session_id
            expected = {(writer, n): 1 for writer in range(PROCESSES) for n in range(turns)}
            assert Counter((message["writer"], message["n"]) for message in messages) == expected, session_id
            assert {f"s{message['session']}" for message in messages} == {session_id}, "a message of another session"
            if turns == LONG_TURNS or place % 50 == 0:
                context = manager.get_context(session_id)
                assert_context(context, messages)
                if turns == LONG_TURNS:
                    assert_one_version_per_range(ranges[session_id])
                    assert ranges[session_id][-1][2] == context["watermark"] >= PROCESSES * turns - 6
        # One that was overtaken while it rebuilt a copy leaves that to the next reader: now every session has one.
        rebuilt = sum(manager.get_context(f"s{number}")["source"] == "postgres" for number in range(SESSIONS))
        assert rebuilt < SESSIONS / 10, "copies are kept by writers, not by readers"
        sources = Counter(manager.get_context(f"s{number}")["source"] for number in range(SESSIONS))
        assert sources == {"redis": SESSIONS}
        buffers = sum(1 for _ in raw.scan_iter(match=f"contract:{{{tenant}/*}}:buffer", count=1000))
        assert buffers == SESSIONS


# -- everything at once on one session


@dataclass
class Interval:
    """One call as it was seen from outside: which message, begun and answered at which tick."""

    key: tuple[int, int]
    begun: int
    answered: int


@dataclass
class Ticks:
    """A clock that only counts; a tick is one moment for all threads."""

    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tick(self) -> int:
        with self.lock:
            self.now += 1
            return self.now


WRITERS = 6
EACH = 40
CLEARINGS = 8


def assert_only_what_was_said_since(
    rows: Sequence[tuple[int, Mapping[str, Any]]], said: Sequence[Interval], cleared: Interval
) -> None:
    """Hold the log against the last clearing: what was answered before it is gone, what began after it is there."""
    keys = [(message["writer"], message["n"]) for _, message in rows]
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    assert len(set(keys)) == len(keys)
    assert {one.key for one in said if one.answered < cleared.begun}.isdisjoint(keys)
    since = [one.key for one in said if one.begun > cleared.answered]
    assert set(since) <= set(keys)
    assert len(since) >= WRITERS, "the clearings were over while the writers were at it"


def test_folds_appends_clearings_and_rebuilds_at_once_in_threads(
    redis_url: str, database_url: str, tenant: str, raw: redis.Redis
) -> None:
    with sync_backend(redis_url, database_url, tenant) as backend:
        managers = [backend.open(max_buffer_messages=6, **PATIENT) for _ in range(2)]
        ticks, said, clearings = Ticks(), [], []
        written = threading.Semaphore(0)
        writers_left = threading.Semaphore(0)
        done = threading.Event()
        rebuilt = folds = 0
        keys = backend.keys("s")
        commits = Commits(threading.get_ident)

        def write(writer: int) -> None:
            for number in range(EACH):
                begun = ticks.tick()
                managers[writer % 2].append("s", told(writer, number), message_id=f"{writer}-{number}")
                said.append(Interval((writer, number), begun, ticks.tick()))
                written.release()
            writers_left.release()

        def clear(_: int) -> None:
            for number in range(CLEARINGS):
                for _ in range(WRITERS * EACH // (CLEARINGS + 2)):
                    written.acquire()
                begun = ticks.tick()
                assert managers[0].clear_session_memory("s")
                clearings.append(Interval((-1, number), begun, ticks.tick()))
            for _ in range(WRITERS):
                writers_left.acquire()
            done.set()

        def fold(_: int) -> None:
            nonlocal folds
            manager = managers[1]
            while not done.is_set():
                manager._runtime.run(manager._flows._sessions.folding.fold_when_due("s"))
            folds = commits.found.count(threading.get_ident())

        def rebuild(reader: int) -> None:
            nonlocal rebuilt
            while not done.is_set():
                rebuilt += raw.delete(keys.buffer) == 1
                assert_read(managers[reader % 2].get_context("s"))

        work: list[Callable[[int], None]] = [*[write] * WRITERS, clear, fold, rebuild, rebuild]
        with commits:
            run_threads(len(work), lambda number: work[number](number))
        for manager in managers:
            manager.wait_for_folds()
        assert rebuilt >= 2, "it was lost beside the others"
        print(f"{folds} of {len(commits.found)} folds")
        assert folds >= 5, "of those who hold no lease"
        rows = logged(database_url, tenant, "s")
        assert_only_what_was_said_since(rows, said, clearings[-1])
        for manager in managers:
            assert_context(manager.get_context("s"), [message for _, message in rows])
        assert_one_version_per_range(summary_ranges(backend))


async def test_folds_appends_clearings_and_rebuilds_at_once_in_tasks(
    redis_url: str, database_url: str, tenant: str, raw: redis.Redis
) -> None:
    backend = Backend(ASYNC, DURABLE, redis_url, database_url, tenant)
    config = backend.config(**PATIENT)
    keys = backend.keys("s")
    ticks, said, clearings = Ticks(), [], []
    written = asyncio.Semaphore(0)
    done = asyncio.Event()
    rebuilt = folds = 0
    commits = Commits(asyncio.current_task)
    async with (
        AsyncMemoryManager(max_buffer_messages=6, config=config) as one,
        AsyncMemoryManager(max_buffer_messages=6, config=config) as other,
    ):

        async def write(writer: int) -> None:
            for number in range(EACH):
                begun = ticks.tick()
                await (one, other)[writer % 2].append("s", told(writer, number), message_id=f"{writer}-{number}")
                said.append(Interval((writer, number), begun, ticks.tick()))
                written.release()

        async def clear() -> None:
            for number in range(CLEARINGS):
                for _ in range(WRITERS * EACH // (CLEARINGS + 2)):
                    await written.acquire()
                begun = ticks.tick()
                assert await one.clear_session_memory("s")
                clearings.append(Interval((-1, number), begun, ticks.tick()))

        async def fold() -> None:
            nonlocal folds
            while not done.is_set():
                await other._runtime.run(other._flows._sessions.folding.fold_when_due("s"))
            folds = commits.found.count(asyncio.current_task())

        async def rebuild(manager: AsyncMemoryManager) -> None:
            nonlocal rebuilt
            while not done.is_set():
                rebuilt += await asyncio.to_thread(raw.delete, keys.buffer) == 1
                assert_read(await manager.get_context("s"))

        with commits:
            others = [asyncio.create_task(task) for task in (fold(), rebuild(one), rebuild(other))]
            await asyncio.gather(*(write(writer) for writer in range(WRITERS)), clear())
            done.set()
            await asyncio.gather(*others)
        for manager in (one, other):
            await manager.wait_for_folds()
        assert rebuilt >= 2, "it was lost beside the others"
        print(f"{folds} of {len(commits.found)} folds")
        assert folds >= 5, "of those who hold no lease"
        rows = logged(database_url, tenant, "s")
        assert_only_what_was_said_since(rows, said, clearings[-1])
        for manager in (one, other):
            assert_context(await manager.get_context("s"), [message for _, message in rows])
    assert_one_version_per_range(summary_ranges(backend))


# -- fifty triggers, one fold

TRIGGERS = """
import threading
import time
from servers import redis_client
from contract_engine.memory.hooks import FoldEnded, observers

committed = []
observers.add(lambda detail: committed.append(detail) if isinstance(detail, FoldEnded) else None)
manager.get_context("s")
begun = 0

def wait_for_all(place, count):
    "Wait until this many are here, of each process."
    with redis_client(manager.config.redis_url) as client:
        here = client.incrby(place, count)
        deadline = time.monotonic() + 30
        while here < count * given["count"]:
            assert time.monotonic() < deadline, here
            time.sleep(0.01)
            here = int(client.get(place))

def all_are_here():
    "Every fold of every process has read the session and is about to write its summary."
    global begun
    begun += given["threads"]
    wait_for_all(given["meeting"], given["threads"])

meeting = threading.Barrier(given["threads"], action=all_are_here, timeout=40)

class Summarizer:
    def __init__(self, summarizer):
        self.summarizer = summarizer

    def summarize(self, request):
        text = self.summarizer.summarize(request)
        meeting.wait()
        return text

manager._runtime._summarizer = Summarizer(manager._runtime._summarizer)
begin()
folding = manager._flows._sessions.folding
run_threads(given["threads"], lambda _: manager._runtime.run(folding.fold_when_due("s")))
manager.wait_for_folds()
wait_for_all(given["meeting"] + ":folded", 1)  # until whoever was first has told Redis too
end([manager.get_context("s")["summary_version"], begun, len(committed)])
"""


def test_fifty_triggers_from_four_processes_are_one_fold(
    crowd: Crowd, redis_url: str, database_url: str, tenant: str, raw: redis.Redis
) -> None:
    """The triggers hold no lease, and none commits before all have read: the compare-and-set alone stops 51."""
    threads = 13
    meeting = f"meeting:{tenant}"
    with sync_backend(redis_url, database_url, tenant) as backend:
        manager = backend.open(**PATIENT)
        said = talk(20)
        manager.add_messages("s", said)
        assert summary_ranges(backend) == []
        manager.set_session_config("s", {"summary_trigger_tokens": 200})
        answers = crowd.run(TRIGGERS, backend, count=PROCESSES, threads=threads, meeting=meeting)
        assert raw.getdel(meeting) == b"%d" % (threads * PROCESSES), "all of them were about to write"
        assert raw.getdel(f"{meeting}:folded") == b"%d" % PROCESSES
        versions, begun, committed = zip(*answers, strict=True)
        assert versions == (1,) * PROCESSES
        assert begun == (threads,) * PROCESSES, "each has folded, once"
        assert sum(committed) == 1
        ranges = summary_ranges(backend)
        assert len(ranges) == 1
        context = manager.get_context("s")
        assert_context(context, said)
        assert ranges == [(1, 1, context["watermark"])]


FOLDING_WRITERS = """
begin()

def write(thread):
    for turn in range(given["each"]):
        manager.append("s", told(number * 4 + thread, turn), message_id=f"{number}-{thread}-{turn}")
        assert_read(manager.get_context("s"))

run_threads(4, write)
manager.wait_for_folds()
end(None)
"""


def test_writers_in_four_processes_fold_each_range_once(
    crowd: Crowd, redis_url: str, database_url: str, tenant: str
) -> None:
    each = 8
    with sync_backend(redis_url, database_url, tenant) as backend:
        crowd.run(FOLDING_WRITERS, backend, count=4, limits={"max_buffer_messages": 4}, each=each)
        rows = logged(database_url, tenant, "s")
        assert_all_kept(rows, writers=16, each=each)
        context = backend.open(max_buffer_messages=4, **PATIENT).get_context("s")
        assert_context(context, [message for _, message in rows])
        ranges = summary_ranges(backend)
        assert_one_version_per_range(ranges)
        assert len(ranges) >= each, "there was much to fold"
        assert ranges[-1][2] == context["watermark"]


# -- the same append, several times at once

SENDERS = """
import random
begin()
answers = {}

def send(thread):
    for name in given["names"]:
        for copy in range(given["copies"][name]):
            if (number + copy) % given["count"] == 0 or thread == copy:
                text = given["texts"][thread % len(given["texts"])]
                try:
                    receipt = manager.append("s", told(int(name), 0) | {"text": text}, message_id=f"id{name}")
                    answer = [text, receipt.seq, receipt.message_id]
                except MessageConflictError:
                    answer = [text, None, f"id{name}"]
                answers.setdefault(name, []).append(answer)

run_threads(3, send)
manager.wait_for_folds()
end(answers)
"""


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
@pytest.mark.parametrize("texts", [("same",), ("this", "that")], ids=["equal", "other content"])
def test_the_same_append_from_several_processes_has_one_effect(
    crowd: Crowd, *, redis_url: str, database_url: str, tenant: str, mode: str, texts: tuple[str, ...]
) -> None:
    """Each id is sent one to five times by each of several threads; where the content differs, one of them wins.

    In ephemeral mode an id is known while its message is in the buffer, so nothing is folded here.
    """
    names = [str(number) for number in range(30)]
    dice = random.Random(11)
    copies = {name: 1 + number % 5 for number, name in enumerate(names)}
    dice.shuffle(names)
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        limits: dict[str, Any] = {"max_buffer_messages": 6 if mode == DURABLE else 100}
        found = crowd.run(SENDERS, backend, count=3, limits=limits, names=names, copies=copies, texts=texts)
        answers: dict[str, list[tuple[str, int | None, str]]] = {
            name: [tuple(answer) for one in found for answer in one.get(name, ())] for name in names
        }
        assert sum(len(sent) for sent in answers.values()) > 3 * len(names)
        manager = backend.open(**limits, **PATIENT)
        if mode == DURABLE:
            rows = logged(database_url, tenant, "s")
        else:
            rows = list(enumerate(manager.get_context("s")["buffer_messages"], start=1))
        assert [seq for seq, _ in rows] == list(range(1, len(names) + 1))
        stored = {str(message["writer"]): (seq, message["text"]) for seq, message in rows}
        assert set(stored) == set(names)
        for name, sent in answers.items():
            seq, text = stored[name]
            right, wrong = (text, seq, f"id{name}"), {(other, None, f"id{name}") for other in texts if other != text}
            assert set(sent) <= {right} | wrong, "one effect, the same answer, and other content refused"
            assert right in sent
        refused = sum(seq is None for sent in answers.values() for _, seq, _ in sent)
        assert refused > 0 if len(texts) > 1 else refused == 0
        assert_context(manager.get_context("s"), [message for _, message in rows])


# -- forks


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """One process that forks; its children inherit nothing of the crowd."""
    found = Crowd(1, tmp_path_factory.mktemp("forker") / "errors")
    yield found
    found.close()


FORK = """
import signal, threading, warnings
from multiprocessing import get_context
import sqlalchemy as sa
from contract_engine.memory._effects import Command, Statement, query, redis_call

# From Python 3.12 on a fork beside threads is warned of; that it goes well here is what this shows.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
# A child drops the connections of its parent without closing them.
warnings.filterwarnings("ignore", ".*was deleted while still open", ResourceWarning)
warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
backend_pid = Statement("backend_pid", lambda: sa.text("SELECT pg_backend_pid()"))
backend_of = Statement("backend_of", lambda: sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"))

def who():
    "Who the servers think we are."
    client = manager._runtime.run(redis_call(Command(("CLIENT", "ID"))))[0]
    return [client, manager._runtime.run(query(backend_pid, {}))[0][0] if manager.config.is_durable else 0]

def write(writer, each):
    for turn in range(each):
        manager.append("s", told(writer, turn), message_id=f"{writer}-{turn}")
        assert_read(manager.get_context("s"))

def child(writer, pipe):
    signal.alarm(60)
    write(writer, given["each"])
    manager.wait_for_folds()
    os.write(pipe, (json.dumps(who()) + chr(10)).encode())

manager.append("warm", told(0, 0))
ours = who()
begin()
stop = threading.Event()
busy = [0]

def keep_busy(thread):
    "Calls at the moment of the fork, so that whatever can be held is held."
    while not stop.is_set():
        manager.append(f"busy{thread}", told(thread, busy[0]))
        manager.get_context(f"busy{thread}")
        busy[0] += 1

threads = [threading.Thread(target=keep_busy, args=(thread,)) for thread in range(given["busy"])]
for thread in threads:
    thread.start()
reading, writing = os.pipe()
children, codes = [], []
for writer in range(1, given["children"] + 1):
    if given["by"] == "os.fork":
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(writer, writing)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    else:
        process = get_context("fork").Process(target=child, args=(writer, writing))
        process.start()
        children.append(process)
write(0, given["each"])
for one in children:
    if given["by"] == "os.fork":
        codes.append(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]))
    else:
        one.join()
        codes.append(one.exitcode)
stop.set()
for thread in threads:
    thread.join()
os.close(writing)
theirs = [json.loads(line) for line in os.fdopen(reading)]
manager.wait_for_folds()
now = who()
clients = manager._runtime.run(redis_call(Command(("CLIENT", "LIST"))))[0].decode()
kept = f"id={ours[0]} " in clients
if manager.config.is_durable:
    kept = kept and manager._runtime.run(query(backend_of, {"pid": ours[1]}))[0][0] == 1
end({"ours": ours, "now": now, "theirs": theirs, "codes": codes, "busy": busy[0], "kept": kept})
"""


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
@pytest.mark.parametrize("by", ["os.fork", "multiprocessing"])
def test_parent_and_forked_children_go_on(
    forker: Crowd, *, redis_url: str, database_url: str, tenant: str, mode: str, by: str
) -> None:
    each, children = 12, 3
    with sync_backend(redis_url, database_url, tenant, mode) as backend:
        (found,) = forker.run(
            FORK, backend, count=1, limits={"max_buffer_messages": 6}, by=by, children=children, each=each, busy=0
        )
        assert found["codes"] == [0] * children
        assert found["kept"], "the parent keeps its connections"
        assert found["now"] not in found["theirs"]
        everybody = [found["ours"], *found["theirs"]]
        assert len({redis_client for redis_client, _ in everybody}) == 1 + children, "a socket is shared"
        if mode == DURABLE:
            assert len({backend_pid for _, backend_pid in everybody}) == 1 + children, "a socket is shared"
        assert_everybody_was_heard(backend, writers=1 + children, each=each)


def test_forks_in_the_middle_of_calls(forker: Crowd, redis_url: str, database_url: str, tenant: str) -> None:
    """Other threads of the parent hold whatever a call holds: no child may wait for one of them."""
    each, children = 4, 12
    with sync_backend(redis_url, database_url, tenant) as backend:
        (found,) = forker.run(
            FORK,
            backend,
            count=1,
            limits={"max_buffer_messages": 6},
            by="os.fork",
            children=children,
            each=each,
            busy=4,
        )
        assert found["codes"] == [0] * children
        assert found["busy"] >= children, "the threads were at it"
        assert len({tuple(one) for one in [found["ours"], *found["theirs"]]}) == 1 + children
        assert_everybody_was_heard(backend, writers=1 + children, each=each)


def assert_everybody_was_heard(backend: Backend, *, writers: int, each: int) -> None:
    manager = backend.open(max_buffer_messages=6, **PATIENT)
    context = manager.get_context("s")
    assert_read(context)
    assert context["last_seq"] == writers * each
    if backend.is_durable:
        assert backend.database_url is not None
        rows = logged(backend.database_url, backend.tenant, "s")
        assert_all_kept(rows, writers=writers, each=each)
        assert_context(context, [message for _, message in rows])


# -- blocking calls beside an event loop


@pytest.mark.parametrize("mode", [DURABLE, EPHEMERAL])
async def test_both_colours_side_by_side(redis_url: str, database_url: str, tenant: str, mode: str) -> None:
    """One session, one loop: its own tasks, blocking calls in ``to_thread``, plain threads, a call in a coroutine."""
    each = 15
    backend = Backend(SYNC, mode, redis_url, database_url if mode == DURABLE else None, tenant)
    config = backend.config(**PATIENT)
    beats = 0
    done = asyncio.Event()
    with MemoryManager(max_buffer_messages=8, config=config) as blocking:
        async with AsyncMemoryManager(max_buffer_messages=8, config=config) as manager:

            def write(writer: int) -> None:
                for number in range(each):
                    blocking.append("s", told(writer, number), message_id=f"{writer}-{number}")
                    assert_read(blocking.get_context("s"))

            async def write_async(writer: int) -> None:
                for number in range(each):
                    await manager.append("s", told(writer, number), message_id=f"{writer}-{number}")
                    assert_read(await manager.get_context("s"))

            async def write_in_the_loop(writer: int) -> None:
                for number in range(each):
                    blocking.append("s", told(writer, number), message_id=f"{writer}-{number}")
                    await asyncio.sleep(0)

            async def beat() -> None:
                nonlocal beats
                while not done.is_set():
                    beats += 1
                    await asyncio.sleep(0.001)

            heart = asyncio.create_task(beat())
            threads = [threading.Thread(target=write, args=(writer,)) for writer in (0, 1)]
            for thread in threads:
                thread.start()
            await asyncio.gather(
                *(asyncio.to_thread(write, writer) for writer in (2, 3, 4)),
                *(write_async(writer) for writer in (5, 6, 7)),
                write_in_the_loop(8),
            )
            for thread in threads:
                await asyncio.to_thread(thread.join)
            done.set()
            await heart
            assert beats > each, "the loop went on meanwhile"
            await manager.wait_for_folds()
            blocking.wait_for_folds()
            ours, theirs = await manager.get_context("s"), blocking.get_context("s")
            for key in ("buffer_messages", "current_summary", "watermark", "last_seq"):
                assert ours[key] == theirs[key]
            assert ours["last_seq"] == 9 * each
            assert_read(ours)
    if mode == DURABLE:
        rows = logged(database_url, tenant, "s")
        assert_all_kept(rows, writers=9, each=each)
        assert_context(ours, [message for _, message in rows])
