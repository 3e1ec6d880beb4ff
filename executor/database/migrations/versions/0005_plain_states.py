"""Rename stored values: states of mappings and reports, and a critical job. Add an index of deleted mappings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: Table, column, earlier and new value. The values in audit entries do not change.
RENAMED = (
    ("jobs", "report_state", "orphaned", "overtaken"),
    ("mappings", "state", "doomed", "pending_deletion"),
    ("mappings", "state", "orphaned", "vm_lost"),
    ("critical_jobs", "name", "DestroyDoomed", "PurgeDeletedVms"),
)


def upgrade() -> None:
    """Go one step forward."""
    for table, column, earlier, new in RENAMED:
        _rename(table, column, earlier, new)
    is_deleted = sa.text("state = 'deleted'")
    op.create_index(
        "ix_mappings_deleted", "mappings", ["deleted_at"], sqlite_where=is_deleted, postgresql_where=is_deleted
    )


def downgrade() -> None:
    """Go one step back."""
    op.drop_index("ix_mappings_deleted", table_name="mappings")
    for table, column, earlier, new in RENAMED:
        _rename(table, column, new, earlier)


def _rename(table: str, column: str, old: str, new: str) -> None:
    rows = sa.table(table, sa.column(column))
    value = rows.c[column]
    if table == "critical_jobs":  # an agent of the other version may have written its own name meanwhile
        renamed = (
            sa.select(sa.literal(1)).select_from(rows.alias("renamed")).where(sa.literal_column("renamed.name") == old)
        )
        op.execute(rows.delete().where(value == new, renamed.exists()))
    op.execute(rows.update().where(value == old).values({column: new}))
