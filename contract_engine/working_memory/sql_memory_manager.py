"""Working memory in a table: a SQLite file, or PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc as sa_exc

from contract_engine.memory._runtime.database_connections import connector
from contract_engine.memory.config import psycopg_url
from contract_engine.memory.errors import ConfigurationError
from contract_engine.working_memory.intake import MAX_BYTES
from contract_engine.working_memory.manager import (
    DEFAULT_PREFIX,
    AsyncWorkingMemoryManager,
    Shell,
    WorkingMemoryManager,
)
from contract_engine.working_memory.settings import check_count, check_timeout
from contract_engine.working_memory.sql_store import SQLStore, memory_table
from contract_engine.working_memory.stores import AwaitedStore

DEFAULT_TABLE = "working_memories"
TIMEOUT_SECONDS = 5.0
POOL_SIZE = 20


def _engine(url: object, *, timeout_seconds: float, pool_size: int) -> sa.Engine:
    """Return an engine that has opened nothing; no error carries the URL, which may have a password."""
    if not isinstance(url, str) or "://" not in url:
        raise ConfigurationError("url", "expected sqlite:///path/to/file.db or postgresql://user:password@host/name")
    check_count("pool_size", pool_size, least=1, most=10_000)
    check_timeout("timeout_seconds", timeout_seconds)
    pool: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeout_seconds}
    if not url.startswith("sqlite"):
        url = psycopg_url(url)
        connect = connector(url, timeout=timeout_seconds, check=lambda: None)
        return _noted(sa.create_engine(url, creator=connect, **pool))
    try:
        parsed = sa.make_url(url)
        if parsed.database in (None, "", ":memory:"):
            raise ConfigurationError("url", "a SQLite database without a file is lost at once; use InMemoryManager")
        engine = sa.create_engine(parsed, connect_args={"timeout": timeout_seconds}, **pool)
    except (sa_exc.ArgumentError, sa_exc.NoSuchModuleError, ImportError):
        raise ConfigurationError("url", "expected sqlite:///path/to/file.db") from None
    if engine.dialect.driver != "pysqlite":
        raise ConfigurationError("url", "expected sqlite:///path/to/file.db, without another driver")
    sa.event.listen(engine, "connect", _prepare_sqlite)
    return _noted(engine)


def _noted(engine: sa.Engine) -> sa.Engine:
    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
_of_the_parent: list[sa.Pool] = []


def _after_fork() -> None:
    # The parent goes on with these connections. A child opens its own, and keeps the parent's only so that nothing
    # closes them: SQLite would do so as if it were the last to have the file open.
    for engine in list(_engines):
        _of_the_parent.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Readers and the writer do not wait for each other then. The file remembers it; while others are opening it for the
    # first time too, one of them will have done it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode=WAL")


class _SQL(Shell):
    """What both colours have."""

    def __init__(
        self,
        url: str = "sqlite:///memory.db",
        ttl: float | None = None,
        *,
        prefix: str = DEFAULT_PREFIX,
        table: str = DEFAULT_TABLE,
        create_table: bool = True,
        max_bytes: int = MAX_BYTES,
        timeout_seconds: float = TIMEOUT_SECONDS,
        pool_size: int = POOL_SIZE,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._set(ttl=ttl, prefix=prefix, max_bytes=max_bytes, wall_clock=wall_clock)
        given: object = table
        if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,47}", given):
            raise ConfigurationError("table", "expected at most 48 letters, digits and underscores")
        self._engine = _engine(url, timeout_seconds=timeout_seconds, pool_size=pool_size)
        self._records = SQLStore(self, self._engine, memory_table(table), create_table=create_table, clock=wall_clock)


class SQLMemoryManager(_SQL, WorkingMemoryManager):
    """Working memory in a table of a SQLite file or of PostgreSQL, as ``url`` says.

    ``ttl``: the seconds a record lives after it was last written; by default for ever, as a database is expected to.
    ``table`` is created by the first call unless ``create_table`` is False. A call waits ``timeout_seconds`` for an
    answer, and for one of ``pool_size`` connections; SQLite lets one write at a time, and the others wait as long.

    When the database is away a call raises :class:`DatabaseUnavailableError`; the next one tries anew. Safe to share
    between threads.
    """

    @cached_property
    def store_of_records(self) -> SQLStore:
        """Where the records are."""
        return self._records

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


class AsyncSQLMemoryManager(_SQL, AsyncWorkingMemoryManager):
    """:class:`SQLMemoryManager` for an event loop; the database is talked to in threads.

    SQLite has no other way, and a second set of statements for PostgreSQL alone would not be worth its while.
    """

    @cached_property
    def store_of_records(self) -> AwaitedStore:
        """Where the records are."""
        return AwaitedStore(self._records, asyncio.to_thread)

    async def aclose(self) -> None:
        """:meth:`SQLMemoryManager.close`."""
        await asyncio.to_thread(self._engine.dispose)


class SQLiteMemoryManager(SQLMemoryManager):
    """:class:`SQLMemoryManager` on a file, named by its path or a ``sqlite:`` URL; it is made if it is not there."""

    def __init__(self, db_path: str | Path = "memory.db", ttl: float | None = None, **settings: Any) -> None:
        super().__init__(_file_url(db_path), ttl, **settings)


class AsyncSQLiteMemoryManager(AsyncSQLMemoryManager):
    """:class:`SQLiteMemoryManager` for an event loop."""

    def __init__(self, db_path: str | Path = "memory.db", ttl: float | None = None, **settings: Any) -> None:
        super().__init__(_file_url(db_path), ttl, **settings)


def _file_url(path: object) -> str:
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigurationError("db_path", "expected the path of a file")
    if isinstance(path, str) and "://" in path:
        if path.startswith(("sqlite://", "sqlite+")):
            return path
        raise ConfigurationError("db_path", "expected the path of a file; other databases are for SQLMemoryManager")
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
