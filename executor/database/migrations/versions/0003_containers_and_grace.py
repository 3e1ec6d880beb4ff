"""Add to mappings the kind of the guest (VM or container), and the time from which the guest may be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    op.add_column("mappings", sa.Column("kind", sa.String(length=10), server_default="qemu", nullable=False))
    op.add_column("mappings", sa.Column("delete_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards. A mapping that is pending deletion (`doomed`) becomes active."""
    op.execute("UPDATE mappings SET state = 'active' WHERE state = 'doomed'")
    op.drop_column("mappings", "delete_at")
    op.drop_column("mappings", "kind")
