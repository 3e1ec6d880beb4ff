"""Add to `nodes` whether an agent process fences (ends its runs before its leases expire), and its installation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. `fences` is false for an agent of an earlier version."""
    op.add_column("nodes", sa.Column("fences", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("nodes", sa.Column("installation_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_column("nodes", "installation_id")
    op.drop_column("nodes", "fences")
