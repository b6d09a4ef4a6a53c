"""How long the oldest message of an outbox has been waiting: an index by which that is looked up.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the index; while that takes, which is about as long as the outbox is, dual writes wait."""
    op.create_index("memory_outbox_oldest", "memory_outbox", ["tenant", "created_at"])


def downgrade() -> None:
    """Drop it; the age is found by looking through the outbox then."""
    op.drop_index("memory_outbox_oldest", "memory_outbox")
