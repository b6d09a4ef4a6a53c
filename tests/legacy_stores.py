"""Legacy stores as programs have them: a list in the process, a table, and such that fail when they are told to."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

Messages = list[dict[str, Any]]


class LegacyError(Exception):
    """What a driver nobody here knows would raise."""


class ListStore:
    """The smallest there is: a list per session, without ids or limits.

    ``fails``: what to raise on a write; ``fails_reads`` on a read. ``loses_answers``: a write takes effect and raises.
    ``poison``: a content that it refuses.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Messages] = {}
        self.fails = self.fails_reads = self.loses_answers = False
        self.poison: str | None = None
        self.calls = 0
        self._lock = threading.Lock()

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        with self._lock:
            self.calls += 1
            if self.fails or (self.poison is not None and message["content"] == self.poison):
                raise LegacyError
            self.sessions.setdefault(session_id, []).append(dict(message))
            if self.loses_answers:
                raise LegacyError

    def get_chat_history(self, session_id: str) -> Messages:
        with self._lock:
            if self.fails_reads:
                raise LegacyError
            return [dict(one) for one in self.sessions.get(session_id, ())]

    def contents(self, session_id: str) -> list[str]:
        return [one["content"] for one in self.sessions.get(session_id, ())]


class AsyncListStore:
    """The same with coroutines."""

    def __init__(self) -> None:
        self.inner = ListStore()

    async def add_chat_message(self, session_id: str, message: dict[str, Any]) -> None:
        self.inner.add_chat_message(session_id, message)

    async def get_chat_history(self, session_id: str) -> Messages:
        return self.inner.get_chat_history(session_id)

    def contents(self, session_id: str) -> list[str]:
        return self.inner.contents(session_id)


class KnowingStore(ListStore):
    """One that keeps the ids it is given, and can be asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[tuple[str, str]] = set()

    def add_chat_message(self, session_id: str, message: dict[str, Any], *, message_id: str = "") -> None:
        self.ids.add((session_id, message_id))
        super().add_chat_message(session_id, message)

    def has_message(self, session_id: str, message_id: str) -> bool:
        return (session_id, message_id) in self.ids


class TableStore:
    """A table of one's own with a row per message, and a connection per thread."""

    def __init__(self, url: str, table: str) -> None:
        self._url, self._table = url, table
        self._local = threading.local()
        self._opened: list[psycopg.Connection[Any]] = []
        self._run(
            f"CREATE TABLE IF NOT EXISTS {table} (id bigserial PRIMARY KEY, session_id text NOT NULL,"
            " message jsonb NOT NULL)"
        )
        self._run(f"CREATE INDEX IF NOT EXISTS {table}_session ON {table} (session_id, id)")

    def _run(self, sql: str, parameters: tuple[Any, ...] = ()) -> psycopg.Cursor[Any]:
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self._local.connection = psycopg.connect(self._url, autocommit=True)
            self._opened.append(connection)
        return connection.execute(sql, parameters)

    def add_chat_message(self, session_id: str, message: dict[str, Any]) -> bool:
        self._run(f"INSERT INTO {self._table} (session_id, message) VALUES (%s, %s)", (session_id, Jsonb(message)))
        return True

    def get_chat_history(self, session_id: str, limit: int | None = None) -> Messages:
        rows = self._run(
            f"SELECT message FROM {self._table} WHERE session_id = %s ORDER BY id DESC LIMIT %s", (session_id, limit)
        )
        return [row[0] for row in reversed(rows.fetchall())]

    def contents(self, session_id: str) -> list[str]:
        return [one["content"] for one in self.get_chat_history(session_id)]

    def close(self) -> None:
        self._run(f"DROP TABLE {self._table}")
        for connection in self._opened:
            connection.close()


class BatchStore(TableStore):
    """One that takes several messages at once, all of them or none."""

    def add_chat_messages(self, session_id: str, messages: Messages) -> None:
        self._run(
            f"INSERT INTO {self._table} (session_id, message) SELECT %s, item.message"
            " FROM unnest(%s::jsonb[]) WITH ORDINALITY AS item(message, place) ORDER BY place",
            (session_id, [Jsonb(one) for one in messages]),
        )
