"""Add the tables of the resources that the agents have allocated, and of the storages on which they clone VMs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. An agent of an earlier version stores nothing in the tables."""
    op.create_table(
        "allocations",
        sa.Column("cluster", sa.String(length=100), nullable=False),
        sa.Column("vmid", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),  # the agent process that wrote the row
        sa.Column("node", sa.String(length=100), nullable=False),  # the Proxmox node
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        # The start and the end of the playbook run to which the memory and the cores are allocated.
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        # The name of a row of clone_targets; NULL until a clone has started.
        sa.Column("clone_target", sa.String(length=200), nullable=True),
        sa.Column("is_cloning", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "vmid"),
    )
    op.create_table(
        "clone_targets",
        sa.Column("cluster", sa.String(length=100), nullable=False),
        # A storage. For a local storage, the name is `<storage>@<Proxmox node>`.
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("max_clones", sa.Integer(), nullable=False),  # simultaneous clones
        # The number of successful clones since the last change of max_clones.
        sa.Column("successes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "name"),
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards. Each agent then counts only its own allocations and clones."""
    op.drop_table("clone_targets")
    op.drop_table("allocations")
