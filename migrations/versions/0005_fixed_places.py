"""Which messages have their places for good, because they were relayed while Redis could not be asked.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column, which takes no time however many sessions there are."""
    op.add_column(
        "memory_relays",
        sa.Column(
            "fixed_id", sa.Text, comment="up to here messages keep their places: they were relayed without Redis"
        ),
    )


def downgrade() -> None:
    """Drop it: what waited in Redis is put in the order of time again, also where the legacy store has another."""
    op.drop_column("memory_relays", "fixed_id")
