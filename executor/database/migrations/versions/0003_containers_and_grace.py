"""Add the kind of guest of a mapping, and when a VM that is pending deletion may be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward."""
    op.add_column("mappings", sa.Column("kind", sa.String(length=10), server_default="qemu", nullable=False))
    op.add_column("mappings", sa.Column("delete_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Go one step back. A VM that is pending deletion still exists, so the older version sees it as active."""
    op.execute("UPDATE mappings SET state = 'active' WHERE state = 'doomed'")
    op.drop_column("mappings", "delete_at")
    op.drop_column("mappings", "kind")
