"""The tables. ``migrations/env.py`` compares them with the database; nothing else defines a column.

Every primary key begins with (tenant, session_id) and no constraint crosses sessions, so the tables can be distributed
by session. There are no foreign keys: all of them are written and cleared in transactions that lock the session's row.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


class Tsvector(sa.types.UserDefinedType[str]):
    """PostgreSQL's type of lexemes with positions; its own dialect takes a tenth of a second to import."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the name of the type in SQL."""
        return "TSVECTOR"


sessions = sa.Table(
    "memory_sessions",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column(
        "epoch", sa.BigInteger, nullable=False, comment="names this life of the session; a cleared one gets another"
    ),
    sa.Column(
        "revision", sa.BigInteger, nullable=False, server_default="0", comment="counts changes that are no append"
    ),
    sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0", comment="number of the newest message"),
    sa.Column(
        "watermark", sa.BigInteger, nullable=False, server_default="0", comment="last message the summary covers"
    ),
    sa.Column("summary_version", sa.Integer, nullable=False, server_default="0"),
    sa.Column("summary_trigger_tokens", sa.Integer, comment="null: the default of the reader"),
    sa.Column("max_buffer_tokens", sa.Integer),
    sa.Column("max_buffer_messages", sa.Integer),
    sa.Column("context", sa.LargeBinary, comment="the orchestrator's own object, JSON in UTF-8"),
    sa.Column("pinned", sa.ARRAY(sa.Text), comment="ids of the messages that survive folds word for word"),
    sa.Column("summary_instructions", sa.LargeBinary, comment="what summaries are to keep, UTF-8"),
    sa.Column(
        "indexed_seq",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="every message up to here can be searched",
    ),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    # Moved by whatever a caller writes: a message, a text for the summary, the context object, limits, a pin, wishes.
    # Not by reads, folds, and what an operator does. Retention goes by it.
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

messages = sa.Table(
    "memory_messages",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="the message, JSON in UTF-8"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("tenant", "session_id", "message_id", name="memory_messages_message_id"),
)

summaries = sa.Table(
    "memory_summaries",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False, comment="first message this version added"),
    sa.Column("last_seq", sa.BigInteger, nullable=False, comment="watermark: the text covers messages 1 to here"),
    sa.Column("segment", sa.LargeBinary, comment="what a caller added to the text; null where a fold wrote it"),
    sa.Column("text", sa.LargeBinary, nullable=False, comment="the whole summary, UTF-8"),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("method", sa.Text, nullable=False, comment="extractive, or supplied by the caller"),
    sa.Column("metadata", sa.LargeBinary, comment="of the caller, JSON in UTF-8"),
    sa.Column("parent", sa.Integer, comment="the version whose text this one goes on from"),
    sa.Column("model", sa.Text, comment="the language model that wrote it"),
    sa.Column("prompt_hash", sa.Text, comment="names the prompt it was asked with"),
    sa.Column("tokens_in", sa.Integer, comment="read to write this version"),
    sa.Column("tokens_out", sa.Integer, comment="written by the model"),
    sa.Column("quarantined_at", sa.DateTime(timezone=True), comment="not to be built on any more"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

recall = sa.Table(
    "memory_recall",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("length", sa.Integer, nullable=False, comment="how many terms the message has"),
    sa.Column("terms", Tsvector, nullable=False, comment="what it is found by, each as often as it stands there"),
)

outbox = sa.Table(
    "memory_outbox",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, primary_key=True, comment="a message the legacy store does not have yet"),
    sa.Column("seq", sa.BigInteger, nullable=False, comment="its place in the session"),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)
sa.Index("memory_outbox_oldest", outbox.c.tenant, outbox.c.created_at)

relays = sa.Table(
    "memory_relays",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("pending", sa.BigInteger, nullable=False, comment="rows of the outbox"),
    sa.Column("due_at", sa.DateTime(timezone=True), comment="when to relay; null: nothing is pending"),
    sa.Column("lease", sa.Text, comment="names who is relaying"),
    sa.Column("leased_until", sa.DateTime(timezone=True)),
    sa.Column(
        "in_doubt",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="a relay has begun, and nobody has noted its end",
    ),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="failures in a row"),
    sa.Column("parked_at", sa.DateTime(timezone=True), comment="waits for somebody to look at it"),
    sa.Column("error", sa.Text, comment="class of the last failure"),
    sa.Column("fixed_id", sa.Text, comment="up to here messages keep their places: they were relayed without Redis"),
)
sa.Index("memory_relays_due", relays.c.tenant, relays.c.due_at, postgresql_where=relays.c.due_at.is_not(None))

phases = sa.Table(
    "memory_phases",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("phase", sa.Text, nullable=False, comment="coexistence, gradual or full"),
    sa.Column("percentage", sa.Float, nullable=False, comment="of sessions that the new store serves while gradual"),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)


def tables_of_sessions() -> list[sa.Table]:
    """Return every table that has rows of sessions; first the one whose row is the session's lock.

    What erases a session goes by this list, so a table that is added above is erased from without further ado.
    """
    others = [table for table in metadata.sorted_tables if {"tenant", "session_id"} <= set(table.c.keys())]
    others.remove(sessions)
    return [sessions, *others]
