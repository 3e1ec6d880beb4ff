"""Add to each agent process whether it fences its runs, and the installation to which it belongs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward. An earlier version does not store that it fences, so others wait for its jobs' deadlines."""
    op.add_column("nodes", sa.Column("fences", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("nodes", sa.Column("installation_id", sa.String(length=32), nullable=True))


def downgrade() -> None:
    """Go one step back."""
    op.drop_column("nodes", "installation_id")
    op.drop_column("nodes", "fences")
