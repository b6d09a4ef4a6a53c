"""A store in a table of a database, and the only place here that knows what the errors of databases mean.

Every operation is one statement for each 10,000 names. What has expired is not seen, and those who write delete it
little by little, in a statement of its own.
Times are those of the writing process: hosts whose clocks differ see a record expire by so much sooner or later.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import sqlalchemy.exc as sa_exc
from sqlalchemy.dialects import postgresql, sqlite

from contract_engine.memory._runtime.database_connections import NoAnswerError
from contract_engine.memory._runtime.failures import database_failure
from contract_engine.memory.errors import (
    CorruptDataError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    MemoryServiceError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from contract_engine.working_memory.patterns import literal_head, matcher
from contract_engine.working_memory.records import Ttl
from contract_engine.working_memory.stores import SCAN_BATCH, Batch, Entry, HasTtl, TimeToLive, seconds_to_live

T = TypeVar("T")

logger = logging.getLogger(__name__)

CLEAR_EVERY = 16
CLEARED_AT_ONCE = 256
"""Every sixteenth write, and every batch of as many records, deletes up to so many that have expired, or twice as many
as it wrote: more than were written meanwhile."""

MAX_NAMES = 10_000
"""How many names one statement may ask for; SQLite takes 32,766 parameters, PostgreSQL 65,535."""


class SQLiteUnavailableError(DatabaseUnavailableError):
    """The file of a SQLite database cannot be read or written now."""

    store = "sqlite"


def memory_table(name: str) -> sa.Table:
    """Return the table of records: a name, the bytes under it, and when they expire (seconds since 1970, or never)."""
    table = sa.Table(
        name,
        sa.MetaData(),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=True),
    )
    sa.Index(f"{name}_expires_at", table.c.expires_at)
    return table


class SQLStore:
    """A store in a table, safe to share between threads. ``clock`` gives seconds since 1970."""

    def __init__(
        self, owner: HasTtl, engine: sa.Engine, table: sa.Table, *, create_table: bool, clock: Callable[[], float]
    ) -> None:
        self._owner = owner
        self._engine = engine
        self._statements = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._table = table
        self._clock = clock
        self._is_missing = create_table
        self._writes = itertools.count(1)
        insert = sqlite.insert(table) if engine.dialect.name == "sqlite" else postgresql.insert(table)
        new = _replacement(insert)
        self._upsert = insert.on_conflict_do_update(index_elements=["name"], set_=new)
        self._upsert_many = None if engine.dialect.name == "sqlite" else _upsert_many(table)
        is_free = sa.or_(table.c.expires_at <= sa.bindparam("now"), table.c.body == insert.excluded.body)
        self._insert = insert.on_conflict_do_update(index_elements=["name"], set_=new, where=is_free).returning(
            table.c.name
        )

    def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Answer what is kept under the names."""
        columns = self._table.c
        found: dict[str, bytes] = {}
        for start in range(0, len(names), MAX_NAMES):
            wanted = columns.name.in_(names[start : start + MAX_NAMES])
            query = sa.select(columns.name, columns.body).where(wanted, self._is_live())
            rows = self._ask(lambda connection, query=query: connection.execute(query).all())  # type: ignore[misc]
            found.update((name, bytes(body)) for name, body in rows)
        return [found.get(name) for name in names]

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep all of them, or none."""
        # In the order of their names, so that two who write the same ones do not wait for each other.
        rows = {name: {"name": name, "body": body, "expires_at": self._deadline(ttl)} for name, body, ttl in entries}
        ordered = [rows[name] for name in sorted(rows)]
        if len(ordered) > 1 and self._upsert_many is not None:
            statement, columns = self._upsert_many, {key: [row[key] for row in ordered] for key in ordered[0]}
            self._ask(lambda connection: connection.execute(statement, columns))
        else:
            self._ask(lambda connection: connection.execute(self._upsert, ordered), is_many=len(ordered) > 1)
        self._wrote(len(ordered))

    def exchange(self, name: str, old: bytes | None, new: bytes | None, ttl_seconds: TimeToLive) -> bool:
        """Put ``new`` in place of ``old`` if that is what is there.

        Done, too, where ``new`` is there: sent again after its answer was lost.
        """
        table = self._table
        values: dict[str, Any] = {"body": new}
        if ttl_seconds is not Ttl.AS_BEFORE:
            values["expires_at"] = self._deadline(ttl_seconds)
        statement: sa.Executable
        if old is None and new is None:
            return self.get([name]) == [None]
        if old is None:
            statement, values = self._insert, {"expires_at": None} | values | {"name": name, "now": self._clock()}
        else:
            found = [old] if new is None else [old, new]
            is_same = sa.and_(table.c.name == name, table.c.body.in_(found), self._is_live())
            delete = sa.delete(table).where(is_same).returning(table.c.name)
            update = sa.update(table).where(is_same).values(values).returning(table.c.name)
            statement, values = (delete if new is None else update), {}
        if self._ask(lambda connection: connection.execute(statement, values).first()) is None:
            return new is None and self.get([name]) == [None]
        self._wrote(1)
        return True

    def remove(self, names: Sequence[str]) -> int:
        """Remove what is kept under the names."""
        columns, now, count = self._table.c, self._clock(), 0
        for start in range(0, len(names), MAX_NAMES):
            wanted = columns.name.in_(names[start : start + MAX_NAMES])
            statement = sa.delete(self._table).where(wanted).returning(columns.expires_at)
            gone = self._ask(lambda connection, it=statement: connection.execute(it).scalars().all())  # type: ignore[misc]
            count += sum(deadline is None or deadline > now for deadline in gone)
        return count

    def scan(self, pattern: str, cursor: str | None) -> Batch:
        """Answer some of the names, in their order."""
        columns, head = self._table.c, literal_head(pattern)
        query = sa.select(columns.name).where(self._is_live()).order_by(columns.name).limit(SCAN_BATCH)
        if head:
            query = query.where(columns.name.startswith(head, autoescape=True))
        if cursor is not None:
            query = query.where(columns.name > cursor)
        names = self._ask(lambda connection: connection.execute(query).scalars().all())
        matches = matcher(pattern)
        return Batch([name for name in names if matches(name)], names[-1] if len(names) == SCAN_BATCH else None)

    def facts(self) -> dict[str, Any]:
        """Answer how many bytes there are, and how many records have expired and are still to be deleted."""
        columns = self._table.c
        query = sa.select(
            sa.func.coalesce(sa.func.sum(sa.func.length(columns.body)), 0),
            sa.func.count().filter(columns.expires_at <= self._clock()),
        )
        size, expired = self._ask(lambda connection: connection.execute(query).one())
        return {"total_bytes": int(size), "expired_entries": int(expired), "backend": self._engine.dialect.name}

    def clear_expired(self, *, most: int) -> int:
        """Delete records that have expired, and answer how many."""
        columns = self._table.c
        # Those that somebody else is deleting or replacing are not waited for.
        due = sa.select(columns.name).where(columns.expires_at <= self._clock()).limit(most)
        due = due.with_for_update(skip_locked=True)  # means nothing to SQLite, which has one writer
        statement = sa.delete(self._table).where(columns.name.in_(due))
        return self._ask(lambda connection: connection.execute(statement).rowcount)

    def _wrote(self, rows: int) -> None:
        """Clear up after a write, now and then; the write has been done, whatever comes of this."""
        if next(self._writes) % CLEAR_EVERY and rows < CLEAR_EVERY:
            return
        try:
            self.clear_expired(most=max(CLEARED_AT_ONCE, 2 * rows))
        except StoreUnavailableError as exc:
            logger.warning("expired records are left to a later write: %s", type(exc).__name__)

    def _is_live(self) -> sa.ColumnElement[bool]:
        deadline = self._table.c.expires_at
        return sa.or_(deadline.is_(None), deadline > self._clock())

    def _deadline(self, ttl: TimeToLive) -> float | None:
        seconds = seconds_to_live(ttl, self._owner)
        return None if seconds is None else self._clock() + seconds

    def _ask(self, body: Callable[[sa.Connection], T], *, is_many: bool = False) -> T:
        """Run a statement, or ``is_many`` as one transaction.

        Twice, where an idle connection turned out to be dead, or two transactions waited for each other.
        """
        try:
            if self._is_missing:
                self._create_table()
            try:
                return self._run(body, is_many=is_many)
            except sa_exc.DBAPIError as exc:
                if not _is_worth_repeating(exc):
                    raise
                return self._run(body, is_many=is_many)
        except (sa_exc.SQLAlchemyError, sqlite3.Error) as exc:
            error = self._failure(exc)
            if error is None:
                raise
            raise error from exc

    def _run(self, body: Callable[[sa.Connection], T], *, is_many: bool) -> T:
        with (self._engine if is_many else self._statements).begin() as connection:
            return body(connection)

    def _create_table(self) -> None:
        try:
            self._table.metadata.create_all(self._engine)
        except (sa_exc.IntegrityError, sa_exc.ProgrammingError, sa_exc.OperationalError):
            # Two that begin at once may both find no table. Whoever was later sees that it is there now.
            if not sa.inspect(self._engine).has_table(self._table.name):
                raise
        self._is_missing = False

    def _failure(self, exc: Exception) -> MemoryServiceError | None:
        """Return our error; None where the failure is a fault in this package and should be seen as it is."""
        cause = exc.orig if isinstance(exc, sa_exc.DBAPIError) else exc
        if not isinstance(cause, sqlite3.Error):
            if isinstance(cause, NoAnswerError):
                return DeadlineExceededError(str(cause))
            if getattr(cause, "sqlstate", None) in ("42P01", "42703"):
                return self._table_missing("postgres")
            return database_failure(exc)
        words = str(cause)
        if "no such table" in words or "no such column" in words or "has no column" in words:
            return self._table_missing("sqlite")
        if isinstance(cause, sqlite3.OperationalError):
            return SQLiteUnavailableError(words[:200])
        if type(cause) is sqlite3.DatabaseError:
            return CorruptDataError("the file is not a SQLite database, or is damaged")
        return None

    def _table_missing(self, store: str) -> StoreMisconfiguredError:
        hint = "let create_table be True, or create it with the columns name, body and expires_at"
        return StoreMisconfiguredError(store, f"there is no table {self._table.name!r} as needed", hint=hint)


def _upsert_many(table: sa.Table) -> sa.Executable:
    """Return the statement for PostgreSQL that keeps any number of records: each column comes as one array."""
    arrays = (sa.bindparam(column.name, type_=postgresql.ARRAY(column.type)) for column in table.columns)
    given = sa.func.unnest(*arrays).table_valued(*table.columns.keys()).render_derived()
    insert = postgresql.insert(table).from_select(table.columns.keys(), sa.select(*given.columns))
    return insert.on_conflict_do_update(index_elements=["name"], set_=_replacement(insert))


def _replacement(insert: sqlite.Insert | postgresql.Insert) -> dict[str, Any]:
    """Return what a record is given that is there already."""
    return {"body": insert.excluded.body, "expires_at": insert.excluded.expires_at}


def _is_worth_repeating(exc: sa_exc.DBAPIError) -> bool:
    if getattr(exc.orig, "sqlstate", None) in ("40P01", "40001"):
        return True
    return exc.connection_invalidated and not isinstance(exc.orig, NoAnswerError)
