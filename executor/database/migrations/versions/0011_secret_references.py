"""Add a table that binds each reference to a secret of FulcrumCore's vault to the first service that named it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. An existing reference is bound when a new job names it."""
    op.create_table(
        "secret_references",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("service_id", sa.String(length=36), nullable=False),
        sa.Column("bound_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("ix_secret_references_service", "secret_references", ["service_id"])


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_secret_references_service", table_name="secret_references")
    op.drop_table("secret_references")
