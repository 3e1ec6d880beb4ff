"""Add the index with which a claim finds the oldest pending job of a tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. A claim is then as fast with many pending jobs as with few."""
    op.create_index(
        "ix_jobs_to_claim_of_tenant",
        "jobs",
        # `core_created_at` is the time at which FulcrumCore created the job.
        [sa.text("priority DESC"), sa.text("coalesce(tenant_id, '')"), "core_created_at", "id"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_jobs_to_claim_of_tenant", table_name="jobs")
