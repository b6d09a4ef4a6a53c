"""What many writers tell one session at once, and what must hold for every read and for the log in the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from lost_messages import nothing_lost
from memory_contract import DURABLE, SYNC, Backend, assert_caps, run_threads
from server_faults import waited_for

from contract_engine.memory import MemoryManager
from contract_engine.memory.hooks import Detail, FoldEnded, observers

T = TypeVar("T")


@contextmanager
def sync_backend(redis_url: str, database_url: str | None, tenant: str, mode: str = DURABLE) -> Iterator[Backend]:
    """Lend managers that threads may share."""
    with closing(Backend(SYNC, mode, redis_url, database_url if mode == DURABLE else None, tenant)) as backend:
        yield backend


def told(writer: int, number: int) -> dict[str, Any]:
    return {"role": "user", "writer": writer, "n": number, "content": f"Writer {writer} says its sentence {number}."}


def assert_read(context: Mapping[str, Any]) -> None:
    """What must hold for a read at any moment: no gap, no overlap, caps, each writer's order."""
    kept = context["buffer_messages"]
    assert context["complete"] is True
    with nothing_lost():
        assert context["watermark"] + len(kept) == context["last_seq"]
    assert bool(context["current_summary"]) == (context["watermark"] > 0)
    assert_caps(context)
    last: dict[int, int] = {}
    for message in kept:
        with nothing_lost():
            assert message["n"] > last.get(message["writer"], -1)
        last[message["writer"]] = message["n"]


def run_programs(source: str, *arguments: Sequence[str]) -> list[str]:
    """Run one Python program per list of arguments, all from the moment when each has said that it is ready.

    Answers what each wrote after that; they must end well, and in silence on stderr.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", source, *own],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outputs = [process.communicate("go\n", timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = [(process.returncode, errors) for process, (_, errors) in zip(processes, outputs, strict=True)]
    assert ends == [(0, "")] * len(processes)
    return [output for output, _ in outputs]


@nothing_lost()
def assert_all_kept(rows: list[tuple[int, dict[str, Any]]], *, writers: int, each: int) -> None:
    """What must hold in the end: numbers 1..N, each message once, each writer's order."""
    assert [seq for seq, _ in rows] == list(range(1, writers * each + 1))
    count = Counter((message["writer"], message["n"]) for _, message in rows)
    assert count == {(writer, number): 1 for writer in range(writers) for number in range(each)}
    for writer in range(writers):
        assert [message["n"] for _, message in rows if message["writer"] == writer] == list(range(each))


class Acknowledged:
    """The newest number that any writer got a receipt for."""

    def __init__(self) -> None:
        self.newest = 0
        self._lock = threading.Lock()

    def note(self, seq: int) -> None:
        with self._lock:
            self.newest = max(self.newest, seq)


class Commits(Generic[T]):
    """The folds that are committed while a ``with`` block lasts: of each, what ``note`` answers when it is told."""

    def __init__(self, note: Callable[[], T]) -> None:
        self.found: list[T] = []
        self._note = note

    def _hear(self, detail: Detail) -> None:
        if isinstance(detail, FoldEnded):
            self.found.append(self._note())

    def __enter__(self) -> Self:
        self._stop = observers.add(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


class Background:
    """Threads that take ``step`` after ``step`` while a ``with`` block lasts; the first error is raised at its end."""

    def __init__(self, count: int, step: Callable[[int], object]) -> None:
        self.errors: list[BaseException] = []
        self._step = step
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def _run(self, number: int) -> None:
        try:
            while not self._end.is_set():
                self._step(number)
        except BaseException as exc:  # noqa: BLE001  # raised again in the thread of the test
            self.errors.append(exc)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


class Readers(Background):
    """Two threads that read one session and check every read."""

    def __init__(self, read: Callable[[], Mapping[str, Any]], acknowledged: Acknowledged) -> None:
        super().__init__(2, self._check)
        self.reads = 0
        self._read = read
        self._acknowledged = acknowledged
        self._watermarks = [0, 0]

    def _check(self, reader: int) -> None:
        newest = self._acknowledged.newest
        context = self._read()
        assert_read(context)
        with nothing_lost():
            assert context["last_seq"] >= newest, "acknowledged before the read began"
        assert context["watermark"] >= self._watermarks[reader]
        self._watermarks[reader] = context["watermark"]
        self.reads += 1
        time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        # A busy machine may have let the writers finish before anybody could read.
        waited_for(lambda: self.reads > 10 or bool(self.errors))
        super().__exit__()
        assert self.reads > 10


def run_beside_readers(
    managers: Sequence[MemoryManager],
    write: Callable[[int], object],
    seqs: Sequence[Sequence[int]],
    acknowledged: Acknowledged,
) -> None:
    """Run each writer of session ``s`` in a thread, beside readers, and all folds; each was given growing numbers."""
    with Readers(lambda: managers[0].get_context("s"), acknowledged):
        run_threads(len(seqs), write)
    for manager in managers:
        manager.wait_for_folds()
    assert all(found == sorted(found) for found in seqs)
