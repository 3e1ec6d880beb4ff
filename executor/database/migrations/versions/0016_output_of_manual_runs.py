"""Add the output of the playbook to each run that an operator has started with a command."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. Earlier runs have no output."""
    op.add_column("manual_runs", sa.Column("output", sa.Text(), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_column("manual_runs", "output")
