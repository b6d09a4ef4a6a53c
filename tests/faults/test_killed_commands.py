"""Commands that die in the middle of their work, without a word: what is done stays, and a second run does the rest.

A lock on one row, or on a table that is written last, holds the command where some of its work is done; it is killed
there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from dual_stores import open_store
from legacy_tables import Older, said
from memory_contract import Backend, logged, talk
from server_faults import blocked_by, waited_for

pytest_plugins = ("memory_fixtures",)

PATIENCE = 60.0


class Killed:
    """A command line, run until a lock holds it, and run again."""

    def __init__(self, backend: Backend, *arguments: str) -> None:
        assert backend.database_url is not None
        self._database_url = backend.database_url
        servers = ["--redis-url", backend.redis_url, "--database-url", backend.database_url]
        self._command = [sys.executable, "-m", "contract_engine.cli", *arguments]
        self._command += [*servers, "--tenant", backend.tenant, "--json"]

    @contextmanager
    def held_by(self, lock: str, parameters: tuple[Any, ...] = ()) -> Iterator[None]:
        """Kill the command while the lock holds it; within the block it is dead and the lock still there."""
        with psycopg.connect(self._database_url) as holder:
            holder.execute(lock.encode(), parameters)
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                is_held = waited_for(lambda: process.poll() is not None or bool(blocked_by(holder)), PATIENCE)
                assert is_held, "nobody waits for the lock"
                assert process.poll() is None, process.communicate()
            finally:
                process.kill()
                out, err = process.communicate()
            assert process.returncode == -9, err
            assert out == ""
            yield
            # What it has asked for may still wait there, and goes on once the lock is gone.
            waiting = blocked_by(holder)
        with psycopg.connect(self._database_url, autocommit=True) as watcher:
            assert waited_for(lambda: not self._alive(watcher, waiting), PATIENCE)

    def again(self) -> dict[str, Any]:
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @staticmethod
    def _alive(watcher: psycopg.Connection, pids: list[int]) -> bool:
        found = watcher.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", (pids,)).fetchone()
        return bool(found and found[0])


def contents(backend: Backend, session_id: str) -> list[str]:
    assert backend.database_url is not None
    return [message["content"] for _, message in logged(backend.database_url, backend.tenant, session_id)]


ROW = "SELECT 1 FROM memory_sessions WHERE tenant = %s AND session_id = %s FOR UPDATE"


def test_an_erasure_that_is_killed_is_taken_up_again(blocking: Backend) -> None:
    manager = blocking.open()
    names = [f"s{number}" for number in range(8)]
    for name in names:
        manager.add_messages(name, talk(3))
    command = Killed(blocking, "erase", *names, "--yes")
    with command.held_by(ROW, (blocking.tenant, "s5")):
        assert manager.retention.session_ids() == names[5:], "the first five are gone, and nothing else"
    for name in names[5:]:
        assert len(contents(blocking, name)) == 3, "what was not erased is whole"
    answer = command.again()
    assert answer["proven"] is True
    assert [report["tables"].get("memory_messages", 0) for report in answer["sessions"]] == [0] * 5 + [3] * 3
    assert manager.retention.session_ids() == []


def test_a_drain_that_is_killed_is_taken_up_again(blocking: Backend) -> None:
    manager = blocking.open()
    for number in range(8):
        manager.add_messages(f"s{number}", talk(2))
    away = Backend(blocking.colour, blocking.mode, blocking.redis_url, "postgresql://127.0.0.1:1/x", blocking.tenant)
    writer = away.open()
    for number in range(8):
        for message in talk(5)[2:]:
            assert writer.append(f"s{number}", message).durable is False
    away.close()
    waiting = manager.unlogged_sessions()
    assert len(waiting) == 8
    command = Killed(blocking, "drain")
    with command.held_by(ROW, (blocking.tenant, waiting[4])):
        left = set(manager.unlogged_sessions())
        assert {waiting[4]} < left < set(waiting), "some are logged, some wait"
    answer = command.again()
    assert answer["failed"] == {}
    assert set(answer["sessions"]) == left
    assert manager.unlogged_sessions() == []
    for number in range(8):
        assert contents(blocking, f"s{number}") == [one["content"] for one in talk(5)]


def test_a_summary_that_is_killed_while_it_is_written_again_is_written_by_the_next(blocking: Backend) -> None:
    manager = blocking.open(max_buffer_messages=6)
    manager.add_messages("s", talk(12, words=40))
    manager.get_context("s")
    manager.wait_for_folds()
    before = manager.summary_store.get_summary_history("s", 100)
    assert before
    command = Killed(blocking, "resummarize", "s")
    with command.held_by("LOCK TABLE memory_summaries IN SHARE MODE"):  # which lets others read
        assert manager.summary_store.get_summary_history("s", 100) == before
    committed = manager.summary_store.get_summary_history("s", 100)
    assert committed[: len(before)] == before
    assert len(committed) - len(before) in (0, 1), "the statement it died with may take effect, as a whole"
    answer = command.again()
    assert answer["version"] == committed[-1]["version"] + 1
    after = manager.summary_store.get_summary_history("s", 100)
    assert after[:-1] == committed
    assert manager.get_context("s")["summary_version"] == answer["version"]


@pytest.fixture
def older(redis_url: str, database_url: str, tenant: str) -> Iterator[Older]:
    with ExitStack() as stack:
        yield Older(database_url, redis_url, tenant, stack)


def test_a_relay_that_is_killed_is_taken_up_again(blocking: Backend, older: Older) -> None:
    """The statement it dies with may take effect all the same; the message is given once."""
    names = [f"s{number}" for number in range(6)]
    store = open_store(blocking, older.store)
    for name in names:
        older.fill(name, [said(0)])
    with older.read_only():
        for name in names:
            for number in range(1, 4):
                store.add_chat_message(name, said(number))
    command = Killed(blocking, "relay", "--legacy-url", older.url, "--table", older.table, "--workers", "2", "--retry")
    whole = [said(number)["content"] for number in range(4)]
    row = f"SELECT 1 FROM {older.table} WHERE session_id = 's3' FOR UPDATE"

    def given(name: str) -> list[str]:
        return [one["content"] for one in older.store.get_chat_history(name)]

    with command.held_by(row):
        assert given("s3") == whole[:1]
    answer = command.again()
    assert answer["left"]["messages"] == 0
    for name in names:
        assert given(name) == whole, name
