"""Add until when an agent process is sending the report of a job, so that no other agent sends it at the same time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward. No report is claimed."""
    op.add_column("jobs", sa.Column("report_claimed_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Go one step back. Several agents may then send a report at the same time, and FulcrumCore accepts one of them."""
    op.drop_column("jobs", "report_claimed_until")
