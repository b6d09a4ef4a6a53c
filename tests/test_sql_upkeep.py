"""What a table of records needs beside its statements: expired rows deleted, lost answers, forks, settings."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from working_memory_contract import PATIENCE_SECONDS, POSTGRES, SQLITE, ManualClock, ask, say, texts_of

from contract_engine.memory import ConfigurationError
from contract_engine.working_memory import RichMemory, SQLiteMemoryManager, SQLMemoryManager, Versioned


@pytest.fixture(params=[SQLITE, POSTGRES])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == SQLITE:
        return f"sqlite:///{tmp_path / 'memory.db'}"
    return cast("str", request.getfixturevalue("database_url"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def manager(url: str, clock: ManualClock, tenant: str) -> Iterator[SQLMemoryManager]:
    """A manager with a table of its own, whose records live ten seconds."""
    table = f"memories_{tenant}"
    with SQLMemoryManager(url, 10, table=table, timeout_seconds=PATIENCE_SECONDS, wall_clock=clock) as found:
        yield found
        found.store_of_records._table.drop(found._engine, checkfirst=True)


# -- what has expired


def test_changes_delete_expired_rows_too(manager: SQLMemoryManager, clock: ManualClock) -> None:
    versioned = Versioned(manager)  # whose every write is an exchange
    for number in range(40):
        versioned.store(say(f"c{number}", "x"))
        clock.seconds += 20
    assert manager.storage_stats()["expired_entries"] <= 16


def test_batches_delete_as_much_as_they_write(manager: SQLMemoryManager, clock: ManualClock) -> None:
    for batch in range(16):
        manager.store_many([say(f"c{batch}-{number}", "x") for number in range(300)])
        clock.seconds += 20
    assert manager.storage_stats()["expired_entries"] <= 2 * 300


def test_what_was_written_is_written_also_where_clearing_up_fails(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory.db"
    with SQLiteMemoryManager(path, 10, wall_clock=clock, timeout_seconds=0.1) as manager:
        manager.store(say("old", "x"))
        clock.seconds += 20
        with closing(sqlite3.connect(path)) as connection:  # a trigger stands for whatever may go wrong there
            connection.execute(
                "CREATE TRIGGER t BEFORE DELETE ON working_memories BEGIN SELECT RAISE(FAIL, 'disk I/O error'); END"
            )
        caplog.set_level(logging.WARNING)
        with _as_operational(manager):
            assert len(manager.store_many([say(f"c{number}", "x") for number in range(20)])) == 20
        assert "left to a later write: SQLiteUnavailableError" in caplog.text
        assert manager.storage_stats()["total_entries"] == 20


@contextmanager
def _as_operational(manager: SQLMemoryManager) -> Iterator[None]:
    """Have a trigger's error be told as one of the file, which it is in earnest."""

    def told(context: Any) -> None:
        if isinstance(context.original_exception, sqlite3.IntegrityError):
            raise sa.exc.OperationalError("", {}, sqlite3.OperationalError("disk I/O error"))

    sa.event.listen(manager._engine, "handle_error", told)
    yield
    sa.event.remove(manager._engine, "handle_error", told)


# -- an answer that was lost


class LostAnswers:
    """Ends the connection once a statement of this kind has been committed, before its answer is read."""

    def __init__(self, manager: SQLMemoryManager, verb: str) -> None:
        self._engine = manager._engine
        self._verb = verb
        self.count = 0

    def __enter__(self) -> LostAnswers:
        sa.event.listen(self._engine, "after_cursor_execute", self._lose)
        return self

    def __exit__(self, *_: object) -> None:
        sa.event.remove(self._engine, "after_cursor_execute", self._lose)

    def _lose(self, connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if self.count == 0 and statement.startswith(self._verb):
            self.count += 1
            ended = psycopg.OperationalError("server closed the connection unexpectedly")
            connection.invalidate()
            raise sa.exc.DBAPIError(statement, {}, ended, connection_invalidated=True)


@pytest.mark.parametrize("url", [POSTGRES], indirect=True)
class TestALostAnswer:
    """Each statement is a transaction of its own, and has been committed when its answer is lost."""

    def test_of_the_first_memory(self, manager: SQLMemoryManager) -> None:
        manager.retrieve(ask("c1"))
        with LostAnswers(manager, "INSERT") as lost:
            manager.store_rich("c1", RichMemory("once"))
        assert lost.count == 1
        assert texts_of(manager.retrieve(ask("c1"))) == ["once"]

    def test_of_one_more(self, manager: SQLMemoryManager) -> None:
        manager.store_rich("c1", RichMemory("first"))
        with LostAnswers(manager, "UPDATE") as lost:
            manager.store_rich("c1", RichMemory("once"))
        assert lost.count == 1
        assert texts_of(manager.retrieve(ask("c1"))) == ["first", "once"]

    def test_of_a_version(self, manager: SQLMemoryManager) -> None:
        versioned = Versioned(manager)
        versioned.store(say("c1", "first"))
        with LostAnswers(manager, "UPDATE") as lost:
            versioned.store(say("c1", "second"))
        assert lost.count == 1
        assert [version["content"] for version in versioned.get_memory_history("c1")] == ["first"]

    def test_of_the_last_memory_that_was_deleted(self, manager: SQLMemoryManager) -> None:
        store = manager.store_of_records
        store.put([("name", b"body", None)])
        with LostAnswers(manager, "DELETE") as lost:
            assert store.exchange("name", b"body", None, None)
        assert lost.count == 1
        assert store.get(["name"]) == [None]


# -- forks


def test_a_forked_child_and_its_parent_go_on(url: str, tenant: str) -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
from contract_engine.working_memory import ConversationMemoryType, IMemoryInput, IWorkingMemory, SQLMemoryManager
manager = SQLMemoryManager(sys.argv[1], table=sys.argv[2], timeout_seconds=30, prefix=sys.argv[2])
opened = []
import sqlalchemy as sa
sa.event.listen(manager._engine.pool, "connect", lambda *_: opened.append(os.getpid()))
def say(name, text):
    manager.store(IMemoryInput(name, ConversationMemoryType.WORKING_MEMORY, [IWorkingMemory(text)]))
    (found,) = manager.retrieve(IMemoryInput(name, ConversationMemoryType.WORKING_MEMORY))
    assert found.working_memory == text, (name, text, found)
say("before", "both")
pool = manager._engine.pool
pid = os.fork()
assert (manager._engine.pool is pool) == bool(pid), "a child has connections of its own"
for number in range(100):
    say("parent" if pid else "child", f"text {number}")
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert opened and set(opened) == {os.getpid()}
assert len(manager.retrieve_many([IMemoryInput("child", ConversationMemoryType.WORKING_MEMORY)])[0]) == 1
manager.store_of_records._table.drop(manager._engine)
manager.close()
print("both are well")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, url, f"memories_{tenant}"],
        env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "both are well\n", done.stderr


# -- settings


@pytest.mark.parametrize(
    "settings",
    [
        *({"pool_size": value} for value in (0, -1, True, "5", 1.5, None)),
        *({"timeout_seconds": value} for value in (0, -1, True, "x", None, float("nan"), float("inf"), 1e300)),
    ],
    ids=repr,
)
def test_bad_settings_are_refused(url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SQLMemoryManager(url, **settings)
    assert caught.value.field == next(iter(settings))
