"""Dual writing beside a legacy store: its phase, what it has not been given yet, and who is giving it.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the three tables; none of the others is touched."""
    op.create_table(
        "memory_outbox",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("message_id", sa.Text, primary_key=True, comment="a message the legacy store does not have yet"),
        sa.Column("seq", sa.BigInteger, nullable=False, comment="its place in the session"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "memory_relays",
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
    )
    op.create_index(
        "memory_relays_due", "memory_relays", ["tenant", "due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.create_table(
        "memory_phases",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("phase", sa.Text, nullable=False, comment="coexistence, gradual or full"),
        sa.Column(
            "percentage", sa.Float, nullable=False, comment="of sessions that the new store serves while gradual"
        ),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    """Drop them; what the legacy store has not been given by then it will not be given."""
    for table in ("memory_phases", "memory_relays", "memory_outbox"):
        op.drop_table(table)
