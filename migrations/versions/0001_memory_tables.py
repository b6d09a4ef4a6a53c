"""Sessions, messages and summaries.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the three tables."""
    op.create_table(
        "memory_sessions",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column(
            "epoch",
            sa.BigInteger,
            nullable=False,
            comment="names this life of the session; a cleared one gets another",
        ),
        sa.Column(
            "revision",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="counts changes that are no append",
        ),
        sa.Column(
            "last_seq", sa.BigInteger, nullable=False, server_default="0", comment="number of the newest message"
        ),
        sa.Column(
            "watermark", sa.BigInteger, nullable=False, server_default="0", comment="last message the summary covers"
        ),
        sa.Column("summary_version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("summary_trigger_tokens", sa.Integer, comment="null: the default of the reader"),
        sa.Column("max_buffer_tokens", sa.Integer),
        sa.Column("max_buffer_messages", sa.Integer),
        sa.Column("context", sa.LargeBinary, comment="the orchestrator's own object, JSON in UTF-8"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    # Every append updates its session's row. Half-empty pages let that happen in place (a HOT update), without touching
    # the index.
    op.execute("ALTER TABLE memory_sessions SET (fillfactor = 50)")
    op.create_table(
        "memory_messages",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False, comment="the message, JSON in UTF-8"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("tenant", "session_id", "message_id", name="memory_messages_message_id"),
    )
    op.create_table(
        "memory_summaries",
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
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    """Drop them, with everything they hold."""
    for table in ("memory_summaries", "memory_messages", "memory_sessions"):
        op.drop_table(table)
