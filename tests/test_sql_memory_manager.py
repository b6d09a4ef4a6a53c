"""What is particular to working memory in a table: the file or the server, its schema, its statements, its outages."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from working_memory_contract import (
    PATIENCE_SECONDS,
    POSTGRES,
    SQLITE,
    ManualClock,
    ask,
    say,
    texts_of,
)

from contract_engine.memory import ConfigurationError, MemoryServiceError
from contract_engine.memory.errors import CorruptDataError, StoreMisconfiguredError
from contract_engine.working_memory import (
    AsyncSQLiteMemoryManager,
    AsyncSQLMemoryManager,
    SQLiteMemoryManager,
    SQLMemoryManager,
)
from contract_engine.working_memory.sql_store import CLEAR_EVERY, SQLiteUnavailableError


@pytest.fixture(params=[SQLITE, POSTGRES])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == SQLITE:
        return f"sqlite:///{tmp_path / 'memory.db'}"
    return cast("str", request.getfixturevalue("database_url"))


@pytest.fixture
def table(url: str, tenant: str) -> Iterator[str]:
    """A table that no other test has."""
    name = f"memories_{tenant}"
    yield name
    with SQLMemoryManager(url, table=name, timeout_seconds=PATIENCE_SECONDS) as manager:
        manager.store_of_records._table.drop(manager._engine, checkfirst=True)


Open = Callable[..., SQLMemoryManager]


@pytest.fixture
def open_manager(url: str, table: str) -> Iterator[Open]:
    opened: list[SQLMemoryManager] = []

    def open_one(**settings: Any) -> SQLMemoryManager:
        given: dict[str, Any] = {"table": table, "timeout_seconds": PATIENCE_SECONDS} | settings
        opened.append(SQLMemoryManager(url, **given))
        return opened[-1]

    yield open_one
    for manager in opened:
        manager.close()


def test_a_database_keeps_records_for_ever_by_default(open_manager: Open) -> None:
    clock = ManualClock()
    open_manager(wall_clock=clock).store(say("c1", "text"))
    clock.seconds += 10**9
    assert texts_of(open_manager(wall_clock=clock).retrieve(ask("c1"))) == ["text"]


def test_each_operation_is_one_statement(open_manager: Open) -> None:
    manager = open_manager()
    manager.retrieve(ask("c1"))  # creates the table
    statements: list[str] = []
    alone: list[bool] = []

    def note(connection: sa.Connection, _cursor: object, statement: str, *rest: Any) -> None:
        statements.append(statement.split(maxsplit=1)[0])
        alone.append(not rest[-1] and getattr(connection.connection.driver_connection, "autocommit", False))

    sa.event.listen(manager._engine, "before_cursor_execute", note)
    manager.store(say("c1", "a", "b"))
    manager.retrieve(ask("c1"))
    manager.store_many([say(f"c{number}", "x") for number in range(2, 200)])
    manager.retrieve_many([ask(f"c{number}") for number in range(200)])
    manager.delete(ask("c2"))
    # The first of the deletions is of what has expired, after a batch of more than a few.
    assert statements == ["INSERT", "SELECT", "INSERT", "DELETE", "SELECT", "DELETE"]
    if manager._engine.dialect.name == "postgresql":
        assert all(alone), "each is one round trip, without a transaction around it"
    statements.clear()
    manager.update(say("c1", "A", memory_id="1"))
    manager.delete(ask("c1", memory_id="2"))
    manager.delete(ask("c1", memory_id="1"))
    assert statements == ["SELECT", "UPDATE", "SELECT", "UPDATE", "SELECT", "DELETE"]


def test_expired_records_are_deleted_by_those_who_write(open_manager: Open) -> None:
    clock = ManualClock()
    manager = open_manager(ttl=10, wall_clock=clock)
    manager.store_many([say(f"old-{number}", "x") for number in range(300)])
    clock.seconds += 10
    assert manager.storage_stats()["total_entries"] == 0
    assert manager.storage_stats()["expired_entries"] == 300
    for number in range(2 * CLEAR_EVERY):
        manager.store(say(f"new-{number}", "x"))
    stats = manager.storage_stats()
    assert (stats["expired_entries"], stats["total_entries"]) == (0, 2 * CLEAR_EVERY)


def test_an_expired_record_can_be_created_again(open_manager: Open) -> None:
    clock = ManualClock()
    store = open_manager(ttl=10, wall_clock=clock).store_of_records
    assert store.exchange("x", None, b"a", 10)
    assert not store.exchange("x", None, b"b", 10)
    clock.seconds += 10
    assert not store.exchange("x", b"a", b"b", 10)
    assert store.exchange("x", None, b"c", None)
    clock.seconds += 10**9
    assert store.get(["x"]) == [b"c"]
    assert store.remove(["x"]) == 1


def test_many_that_begin_at_once_find_one_table(open_manager: Open) -> None:
    managers = [open_manager() for _ in range(8)]
    failures: list[MemoryServiceError] = []
    ready = threading.Barrier(8)

    def work(number: int) -> None:
        ready.wait()
        try:
            managers[number].store(say(f"c{number}", "x"))
        except MemoryServiceError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert managers[0].storage_stats()["total_entries"] == 8


def test_a_missing_table_is_a_misconfiguration(open_manager: Open) -> None:
    manager = open_manager(create_table=False)
    for call in (manager.retrieve, manager.store, manager.update, manager.retrieve_safe):
        with pytest.raises(StoreMisconfiguredError, match="create_table"):
            call(say("c1", "x"))


def test_bodies_of_any_size_and_thousands_of_names(open_manager: Open) -> None:
    manager = open_manager()
    manager.store(say("big", "x" * 1_000_000))
    assert len(manager.retrieve(ask("big"))[0].working_memory) == 1_000_000
    requests = [say(f"c{number}", str(number)) for number in range(12_000)]
    manager.store_many(requests)
    found = manager.retrieve_many(requests)
    assert [memories[0].working_memory for memories in found] == [str(number) for number in range(12_000)]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite:///x.db",
        "mysql://u:sesame@h/d",
        "u:sesame@h",
        "postgresql://u:sesame@h:port/d",
        "",
        5,
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: Any) -> None:
    for kind in (SQLMemoryManager, AsyncSQLMemoryManager):
        with pytest.raises(ConfigurationError) as caught:
            kind(url)
        assert "sesame" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("name", ["", "a b", "x;drop", "1a", "x" * 60, 5, None])
def test_a_bad_table_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError):
        SQLMemoryManager(table=name)


# -- SQLite


def test_a_file_of_any_name_is_shared_by_its_managers(tmp_path: Path) -> None:
    path = tmp_path / "what? a #name%20 & ü.db"
    with SQLiteMemoryManager(path) as one, SQLiteMemoryManager(str(path)) as other:
        assert not path.exists(), "nothing is opened by construction"
        one.store(say("c1", "text"))
        assert texts_of(other.retrieve(ask("c1"))) == ["text"]
    assert path.exists()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_may_be_named_by_its_url(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with SQLiteMemoryManager(f"sqlite:///{path}") as one, SQLiteMemoryManager(path) as other:
        one.store(say("c1", "text"))
        assert texts_of(other.retrieve(ask("c1"))) == ["text"]


@pytest.mark.parametrize("url", ["postgresql://u:sesame@h/d", "redis://:sesame@h/1", "file:///tmp/sesame.db", "://"])
def test_an_url_of_something_else_is_refused(url: str) -> None:
    for kind in (SQLiteMemoryManager, AsyncSQLiteMemoryManager):
        with pytest.raises(ConfigurationError, match=r"db_path.*SQLMemoryManager") as caught:
            kind(url)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///x.db"])
def test_an_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        SQLiteMemoryManager(url)


def test_a_file_that_somebody_else_is_writing_is_an_outage(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with (
        SQLiteMemoryManager(path, timeout_seconds=0.1) as manager,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        manager.store(say("c1", "old"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SQLiteUnavailableError):
            manager.store(say("c1", "new"))
        assert texts_of(manager.retrieve(ask("c1"))) == ["old"], "readers do not wait"
        other.execute("ROLLBACK")
        manager.store(say("c1", "new"))
        assert texts_of(manager.retrieve(ask("c1"))) == ["new"]


def test_a_file_that_is_none_or_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(b"this is not a database" * 100)
    with SQLiteMemoryManager(path) as manager, pytest.raises(CorruptDataError):
        manager.retrieve(ask("c1"))
    with SQLiteMemoryManager(tmp_path / "none" / "memory.db") as manager, pytest.raises(SQLiteUnavailableError):
        manager.store(say("c1", "x"))


# -- PostgreSQL


def test_a_wrong_password_is_a_misconfiguration(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        user = connection.info.user
    wrong = f"postgresql://{user}:sesame@{database_url.rpartition('@')[2]}"
    with SQLMemoryManager(wrong, timeout_seconds=PATIENCE_SECONDS) as manager:
        with pytest.raises(StoreMisconfiguredError) as caught:
            manager.retrieve(ask("c1"))
        assert "sesame" not in str(caught.value)
