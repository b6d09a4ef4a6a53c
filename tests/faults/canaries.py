"""A text that is put wherever a caller can put something, and looked for wherever something is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import redis
from lost_messages import nothing_lost
from memory_contract import TABLES, Backend, redis_values

from contract_engine.memory import MemoryManager


def canary_of(tenant: str) -> str:
    return f"canary-{tenant}"


def fill(manager: MemoryManager, session_id: str, canary: str) -> None:
    """Put the canary wherever a caller can put something."""
    for number in range(12):
        message = {"role": "user", "content": f"I said {canary} {number}.", f"{canary}": [canary]}
        manager.append(session_id, message, message_id=f"{canary}-{number}")
        manager.wait_for_folds()
        if number == 0:
            assert manager.pin(session_id, f"{canary}-0")
    manager.set_summary_instructions(session_id, f"Keep what {canary} says.")
    assert manager.summary_store.add_summary(session_id, f"About {canary}.", {canary: canary})
    assert manager.save_context(session_id, {"session_id": session_id, "note": canary})
    context = manager.get_context(session_id)
    assert canary in context["current_summary"]
    assert canary in str(context["buffer_messages"])
    assert canary in str(context["pinned_messages"])


class Search:
    """Looks for a text in every key of Redis and in every column of every table there is."""

    def __init__(self, raw: redis.Redis, connection: psycopg.Connection[Any] | None) -> None:
        self._raw = raw
        self._connection = connection
        self._query = b""
        if connection is not None:
            columns = connection.execute(
                "SELECT table_name, column_name, data_type FROM information_schema.columns"
                " WHERE table_schema = 'public'"
            ).fetchall()
            assert {table for table, _, _ in columns} >= set(TABLES)
            self._query = " UNION ALL ".join(
                f"SELECT '{table}.{name}' FROM {table} WHERE strpos("
                + (f"encode({name}, 'escape')" if kind == "bytea" else f"{name}::text")
                + ", %(text)s) > 0"
                for table, name, kind in columns
            ).encode()

    def keys(self, text: str) -> list[bytes]:
        """Return the keys whose name or value holds the text."""
        return [key for key, data in redis_values(self._raw).items() if text.encode() in data]

    def columns(self, text: str) -> set[str]:
        """Return the columns that hold the text in any row; bytes are looked into as text."""
        if self._connection is None:
            return set()
        return {name for (name,) in self._connection.execute(self._query, {"text": text})}

    @nothing_lost()
    def assert_erased(self, text: str) -> None:
        assert self.keys(text) == []
        assert self.columns(text) == set()


@contextmanager
def search_of(raw: redis.Redis, backend: Backend) -> Iterator[Search]:
    if backend.database_url is None:
        yield Search(raw, None)
        return
    with psycopg.connect(backend.database_url, autocommit=True) as connection:
        yield Search(raw, connection)
