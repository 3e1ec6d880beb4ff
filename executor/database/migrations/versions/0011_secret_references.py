"""Add the table that binds each reference to FulcrumCore's vault to the service whose job named it first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward. The table is empty: each reference is bound when a job names it next."""
    op.create_table(
        "secret_references",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("bound_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("ix_secret_references_service", "secret_references", ["service_id"])


def downgrade() -> None:
    """Go one step back."""
    op.drop_index("ix_secret_references_service", table_name="secret_references")
    op.drop_table("secret_references")
