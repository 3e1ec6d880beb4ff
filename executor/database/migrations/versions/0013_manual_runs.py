"""Add the table of the playbook runs that operators start with commands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards.

    An agent of an earlier version does not read this table, so it may run a job of a service while an operator's
    playbook run changes the service's VM. `reason` is the error message of a run that failed.
    """
    op.create_table(
        "manual_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ident", sa.String(length=64), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("vmid", sa.Integer(), nullable=True),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("upids", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("ident"),
    )
    op.create_index("ix_manual_runs_started", "manual_runs", ["started_at"])
    op.create_index(
        "ix_manual_runs_one_open_per_service",
        "manual_runs",
        ["service_id"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_manual_runs_one_open_per_service", table_name="manual_runs")
    op.drop_index("ix_manual_runs_started", table_name="manual_runs")
    op.drop_table("manual_runs")
