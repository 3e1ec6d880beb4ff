"""Add `jobs.report_claimed_until`: before this time, only the agent process that claimed a report sends it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. No report is claimed."""
    op.add_column("jobs", sa.Column("report_claimed_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards. Several agents may then send the report of a job at the same time."""
    op.drop_column("jobs", "report_claimed_until")
