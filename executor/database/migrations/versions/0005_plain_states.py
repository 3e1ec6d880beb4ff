"""Rename stored values: states of mappings and reports, and the name of a critical job. Index deleted mappings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: The table, the column, the earlier value and the new value. The values in audit entries do not change.
RENAMED_VALUES = (
    ("jobs", "report_state", "orphaned", "overtaken"),  # FulcrumCore ended the job before it got the agent's result
    ("mappings", "state", "doomed", "pending_deletion"),
    ("mappings", "state", "orphaned", "vm_lost"),
    ("critical_jobs", "name", "DestroyDoomed", "PurgeDeletedVms"),
)


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    for table, column, earlier_value, new_value in RENAMED_VALUES:
        _rename_value(table, column, earlier_value, new_value)
    is_deleted = sa.text("state = 'deleted'")
    op.create_index(
        "ix_mappings_deleted", "mappings", ["deleted_at"], sqlite_where=is_deleted, postgresql_where=is_deleted
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_mappings_deleted", table_name="mappings")
    for table, column, earlier_value, new_value in RENAMED_VALUES:
        _rename_value(table, column, new_value, earlier_value)


def _rename_value(table: str, column: str, source_value: str, target_value: str) -> None:
    rows = sa.table(table, sa.column(column))
    value = rows.c[column]
    if table == "critical_jobs":
        # Two rows cannot have the same name. If an agent of another version has already inserted a row with the target
        # value, this row is deleted before the rename.
        row_to_rename = (
            sa.select(sa.literal(1))
            .select_from(rows.alias("source_row"))
            .where(sa.literal_column("source_row.name") == source_value)
        )
        op.execute(rows.delete().where(value == target_value, row_to_rename.exists()))
    op.execute(rows.update().where(value == source_value).values({column: target_value}))
