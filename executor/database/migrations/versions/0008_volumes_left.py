"""Add an index of the deleted mappings whose notes name volumes that may still exist.

No new VM gets the VMID of such a mapping.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    has_volumes_left = sa.text("state = 'deleted' AND substr(note, 1, 14) = 'VOLUMES_LEFT: '")
    op.create_index(
        "ix_mappings_volumes_left",
        "mappings",
        ["cluster", "vmid"],
        sqlite_where=has_volumes_left,
        postgresql_where=has_volumes_left,
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_mappings_volumes_left", table_name="mappings")
