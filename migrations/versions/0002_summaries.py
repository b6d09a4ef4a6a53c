"""What a summary was made of and by whom, what a session wants kept, and how far its messages are indexed.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_OF_SESSIONS = ("pinned", "summary_instructions", "indexed_seq")
_OF_SUMMARIES = ("parent", "model", "prompt_hash", "tokens_in", "tokens_out", "quarantined_at")


def upgrade() -> None:
    """Add the columns, none of which rewrites a table, and the table that messages are searched by."""
    op.add_column(
        "memory_sessions",
        sa.Column("pinned", sa.ARRAY(sa.Text), comment="ids of the messages that survive folds word for word"),
    )
    op.add_column(
        "memory_sessions",
        sa.Column("summary_instructions", sa.LargeBinary, comment="what summaries are to keep, UTF-8"),
    )
    op.add_column(
        "memory_sessions",
        sa.Column(
            "indexed_seq",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="every message up to here can be searched",
        ),
    )
    op.add_column(
        "memory_summaries", sa.Column("parent", sa.Integer, comment="the version whose text this one goes on from")
    )
    op.add_column("memory_summaries", sa.Column("model", sa.Text, comment="the language model that wrote it"))
    op.add_column("memory_summaries", sa.Column("prompt_hash", sa.Text, comment="names the prompt it was asked with"))
    op.add_column("memory_summaries", sa.Column("tokens_in", sa.Integer, comment="read to write this version"))
    op.add_column("memory_summaries", sa.Column("tokens_out", sa.Integer, comment="written by the model"))
    op.add_column(
        "memory_summaries",
        sa.Column("quarantined_at", sa.DateTime(timezone=True), comment="not to be built on any more"),
    )
    op.create_table(
        "memory_recall",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("length", sa.Integer, nullable=False, comment="how many terms the message has"),
        sa.Column(
            "terms",
            postgresql.TSVECTOR,
            nullable=False,
            comment="what it is found by, each as often as it stands there",
        ),
    )


def downgrade() -> None:
    """Drop them, with everything they hold."""
    op.drop_table("memory_recall")
    for column in _OF_SUMMARIES:
        op.drop_column("memory_summaries", column)
    for column in _OF_SESSIONS:
        op.drop_column("memory_sessions", column)
