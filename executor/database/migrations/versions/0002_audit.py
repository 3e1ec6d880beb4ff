"""Add the table of audit entries: who changed what. Triggers refuse every later change of an entry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ERROR_TEXT = "the audit table is append-only"
TRIGGER_BODY = f"BEGIN SELECT RAISE(ABORT, '{ERROR_TEXT}'); END"
#: True for an INSERT with the id of an existing row. The INSERT is refused, because REPLACE deletes the existing row
#: without calling the trigger of DELETE.
IS_ID_TAKEN = "EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)"
SQLITE_STATEMENTS = (
    f"CREATE TRIGGER audit_keeps_rows_unchanged BEFORE UPDATE ON audit {TRIGGER_BODY}",
    f"CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit {TRIGGER_BODY}",
    f"CREATE TRIGGER audit_takes_no_number_twice BEFORE INSERT ON audit WHEN {IS_ID_TAKEN} {TRIGGER_BODY}",
)
POSTGRESQL_STATEMENTS = (
    "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{ERROR_TEXT}'; END $$",
    "CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
    "CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()",
)


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.String(length=100), nullable=False),
        sa.Column("verb", sa.String(length=40), nullable=False),
        sa.Column("subject_kind", sa.String(length=20), nullable=False),
        sa.Column("subject_id", sa.String(length=100), nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("after", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject_kind", "subject_id"], unique=False)
    for statement in SQLITE_STATEMENTS if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_audit_subject", table_name="audit")
    op.drop_table("audit")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_refuse()")
