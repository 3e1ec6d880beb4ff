"""Add the table of pauses, and columns of `nodes` for the result of each agent process's last check of Proxmox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. Nothing is paused."""
    op.create_table(
        "pauses",
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope"),
    )
    op.add_column("nodes", sa.Column("proxmox_checked_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("nodes", sa.Column("proxmox_error", sa.Text(), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards. All pauses end."""
    op.drop_column("nodes", "proxmox_error")
    op.drop_column("nodes", "proxmox_checked_at")
    op.drop_table("pauses")
