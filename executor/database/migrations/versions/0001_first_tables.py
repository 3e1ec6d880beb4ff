"""Create the tables of critical jobs, jobs, mappings, agent processes (`nodes`) and runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    op.create_table(
        "critical_jobs",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("interval_s", sa.Double(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_ok_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        # The executions of the critical job: how many have failed since the last success, and how many there were.
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fulcrum_id", sa.String(length=36), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=True),
        sa.Column("group_id", sa.String(length=36), nullable=True),  # the id of the service's group in FulcrumCore
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("params", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("service", sa.JSON(none_as_null=True), nullable=True),  # JSON from FulcrumCore's API
        sa.Column("defect", sa.Text(), nullable=True),  # what is invalid in the job that FulcrumCore sent
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),  # the number of attempts whose result was not stored
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), nullable=True),
        # When FulcrumCore created the job.
        sa.Column("core_created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("claim_sent_at", sa.DateTime(timezone=True), nullable=True),  # when the claim was sent to FulcrumCore
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),  # when FulcrumCore accepted the claim
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report_state", sa.String(length=20), nullable=False),
        sa.Column("report_attempts", sa.Integer(), nullable=False),
        sa.Column("report_after", sa.DateTime(timezone=True), nullable=True),
        # While the report is retried: why it failed. Afterwards: why report_state has its value; NULL if not explained.
        sa.Column("report_note", sa.Text(), nullable=True),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("run_ident", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fulcrum_id"),
    )
    op.create_index(
        "ix_jobs_one_processing_per_service",
        "jobs",
        ["service_id"],
        unique=True,
        sqlite_where=sa.text("status = 'processing'"),
        postgresql_where=sa.text("status = 'processing'"),
    )
    op.create_index(
        "ix_jobs_to_claim",
        "jobs",
        [sa.text("priority DESC"), "core_created_at", "id"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_jobs_service", "jobs", ["service_id"], unique=False)
    op.create_index(
        "ix_jobs_ended",
        "jobs",
        ["finished_at", "status"],
        unique=False,
        sqlite_where=sa.text("status IN ('completed', 'failed')"),
        postgresql_where=sa.text("status IN ('completed', 'failed')"),
    )
    op.create_index(
        "ix_jobs_to_report",
        "jobs",
        ["finished_at"],
        unique=False,
        sqlite_where=sa.text("report_state = 'due'"),
        postgresql_where=sa.text("report_state = 'due'"),
    )

    op.create_table(
        "mappings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("cluster", sa.String(length=100), nullable=False),
        sa.Column("vmid", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(length=100), nullable=True),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("marker", sa.String(length=100), nullable=False),
        sa.Column("mac_address", sa.String(length=20), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        # The reason for `state`, or the volumes that Proxmox did not delete with the VM.
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_mappings_one_per_service",
        "mappings",
        ["service_id"],
        unique=True,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )
    op.create_index(
        "ix_mappings_one_per_vmid",
        "mappings",
        ["cluster", "vmid"],
        unique=True,
        sqlite_where=sa.text("state != 'deleted'"),
        postgresql_where=sa.text("state != 'deleted'"),
    )

    op.create_table(
        "nodes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_reason", sa.String(length=40), nullable=True),
        # How many jobs the process may run in parallel now. An operator can set it lower than `concurrency`.
        sa.Column("concurrency_wanted", sa.Integer(), nullable=False),
        # The configured maximum number of jobs that the process runs in parallel.
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("ident", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("playbook", sa.String(length=100), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rc", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),  # the error message of the run
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("upids", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("ident"),
    )
    op.create_index("ix_runs_job", "runs", ["job_id"], unique=False)
    op.create_index("ix_runs_started", "runs", ["started_at"], unique=False)


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_runs_started", table_name="runs")
    op.drop_index("ix_runs_job", table_name="runs")

    op.drop_table("runs")
    op.drop_table("nodes")
    op.drop_index("ix_mappings_one_per_vmid", table_name="mappings")
    op.drop_index("ix_mappings_one_per_service", table_name="mappings")

    op.drop_table("mappings")
    op.drop_index("ix_jobs_to_claim", table_name="jobs")
    op.drop_index("ix_jobs_to_report", table_name="jobs")
    op.drop_index("ix_jobs_ended", table_name="jobs")
    op.drop_index("ix_jobs_service", table_name="jobs")
    op.drop_index("ix_jobs_one_processing_per_service", table_name="jobs")

    op.drop_table("jobs")
    op.drop_table("critical_jobs")
