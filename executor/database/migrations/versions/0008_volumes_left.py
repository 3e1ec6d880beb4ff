"""Add an index of the deleted mappings whose VM has left volumes: their VMIDs are not used for new VMs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go one step forward."""
    has_volumes_left = sa.text("state = 'deleted' AND substr(note, 1, 14) = 'VOLUMES_LEFT: '")
    op.create_index(
        "ix_mappings_volumes_left",
        "mappings",
        ["cluster", "vmid"],
        sqlite_where=has_volumes_left,
        postgresql_where=has_volumes_left,
    )


def downgrade() -> None:
    """Go one step back."""
    op.drop_index("ix_mappings_volumes_left", table_name="mappings")
