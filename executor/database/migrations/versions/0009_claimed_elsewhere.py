"""Add an index of the jobs that another installation with this agent's token has claimed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    is_claimed_elsewhere = sa.text("report_state = 'claimed_elsewhere'")
    op.create_index(
        "ix_jobs_claimed_elsewhere",
        "jobs",
        ["finished_at"],
        sqlite_where=is_claimed_elsewhere,
        postgresql_where=is_claimed_elsewhere,
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards. The report state of these jobs becomes `abandoned`."""
    op.drop_index("ix_jobs_claimed_elsewhere", table_name="jobs")
    jobs = sa.table("jobs", sa.column("report_state"))
    is_claimed_elsewhere = jobs.c.report_state == "claimed_elsewhere"
    op.execute(jobs.update().where(is_claimed_elsewhere).values(report_state="abandoned"))
