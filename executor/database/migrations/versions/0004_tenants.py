"""Add `jobs.tenant_id`, so that many jobs of one tenant do not delay the jobs of other tenants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    op.add_column("jobs", sa.Column("tenant_id", sa.String(length=36), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_column("jobs", "tenant_id")
