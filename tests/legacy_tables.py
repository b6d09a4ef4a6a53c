"""Tables as the original session store makes and fills them, for the tests of moving out of one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from contract_engine.memory import MemoryConfig
from contract_engine.memory.backfill import Backfill, Outcome
from contract_engine.memory.legacy_source import table_history
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.log_writer import LogWriter

# What SQLAlchemy makes of the original's declarations.
SCRIPT = """
CREATE TABLE {table} (
    session_id VARCHAR NOT NULL,
    title VARCHAR(64),
    created_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
    message_count INTEGER,
    last_user_text TEXT,
    last_user_ts TIMESTAMP WITHOUT TIME ZONE,
    short_summary TEXT,
    chat_history JSONB NOT NULL,
    session_metadata JSONB NOT NULL,
    has_contract BOOLEAN,
    PRIMARY KEY (session_id)
)"""

PATIENT_SECONDS = 30.0


def said(number: int, **fields: Any) -> dict[str, Any]:
    """Return a message that no other number has."""
    role = "user" if number % 2 else "assistant"
    return {"role": role, "content": f"message {number} about order {number * 7919 % 1000}", **fields}


class Older:
    """A table with the original's schema, the store that reads it, and backfills out of it."""

    def __init__(self, database_url: str, redis_url: str, tenant: str, stack: ExitStack, *, table: str = "") -> None:
        self.url = database_url
        self.table = table or f"legacy_{uuid.uuid4().hex[:12]}"
        self.config = MemoryConfig(
            redis_url=redis_url,
            database_url=database_url,
            tenant=tenant,
            redis_timeout_seconds=5.0,
            database_timeout_seconds=PATIENT_SECONDS,
        )
        self.execute(SCRIPT)
        stack.callback(self.execute, "DROP TABLE {table}")
        self.store = LegacySwisperStore(database_url, table=self.table, timeout_seconds=PATIENT_SECONDS)
        stack.callback(self.store.close)
        self.log = stack.enter_context(LogWriter(self.config))

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run SQL as anybody else does; ``{table}`` is this table."""
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(sql.replace("{table}", self.table).encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def fill(self, session_id: str, history: Any, *, summary: str | None = None) -> None:
        """Put a row in place, as the original's save does: the whole list at once."""
        count = len(history) if isinstance(history, list) else 0
        self.execute(
            "INSERT INTO {table} VALUES (%s, NULL, '2025-03-01 10:00', '2025-03-02 10:00', %s, NULL, NULL, %s, %s,"
            " '{}', false) ON CONFLICT (session_id) DO UPDATE SET chat_history = excluded.chat_history",
            (session_id, count, summary, json.dumps(history)),
        )

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Have PostgreSQL refuse every write to the table, as on a full disk."""
        name = f"refuse_{self.table}"
        body = "BEGIN RAISE 'the disk is full' USING ERRCODE = 'disk_full'; END"
        self.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
        self.execute(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {{table}} EXECUTE FUNCTION {name}()")
        try:
            yield
        finally:
            self.execute(f"DROP FUNCTION {name} CASCADE")

    def backfill(self, session_id: str, **settings: Any) -> Outcome:
        """Import one session."""
        history = table_history(self.store, session_id)
        assert history is not None
        return Backfill(self.log, **settings).import_session(history)

    def rest(self) -> None:
        """Close the connections; a later call opens them again."""
        self.store.close()
        self.log.close()

    def logged(self, session_id: str) -> list[dict[str, Any]]:
        """Return what the log has, after a look at its numbers."""
        found = list(self.log.messages(session_id))
        assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
        return [message for _, _, message in found]
