"""Whose job it is, so that a burst of one consumer does not hold up the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward."""
    op.add_column("jobs", sa.Column("tenant_id", sa.String(length=36), nullable=True))


def downgrade() -> None:
    """Go one step back."""
    op.drop_column("jobs", "tenant_id")
