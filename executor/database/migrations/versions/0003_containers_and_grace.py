"""What kind of guest a mapping leads to, and when a doomed one may be destroyed."""

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
    """Go one step back. A VM that waits for its destruction is there, so to the older version it is active."""
    op.execute("UPDATE mappings SET state = 'active' WHERE state = 'doomed'")
    op.drop_column("mappings", "delete_at")
    op.drop_column("mappings", "kind")
