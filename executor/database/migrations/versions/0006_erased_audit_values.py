"""Change the triggers of the table of audit entries: they allow the erasure of values, and no other change."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ERROR_TEXT = "the audit table is append-only"
KEPT_COLUMNS = ("id", "at", "who", "verb", "subject_kind", "subject_id")
ERASED_COLUMNS = ("before", "after", "reason")
IS_ERASURE = " AND ".join(
    [f"NEW.{column} = OLD.{column}" for column in KEPT_COLUMNS] + [f"NEW.{column} IS NULL" for column in ERASED_COLUMNS]
)
CREATE_TRIGGER = "CREATE TRIGGER audit_keeps_rows_unchanged BEFORE UPDATE ON audit"
TRIGGER_BODY = f"BEGIN SELECT RAISE(ABORT, '{ERROR_TEXT}'); END"
CREATE_FUNCTION = "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS"


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_keeps_rows_unchanged")
        op.execute(f"{CREATE_TRIGGER} WHEN NOT ({IS_ERASURE}) {TRIGGER_BODY}")
        return
    # TG_OP is tested in an IF of its own, because NEW is not assigned in a trigger of DELETE or TRUNCATE.
    op.execute(
        f"{CREATE_FUNCTION} $$ BEGIN IF TG_OP = 'UPDATE' THEN IF {IS_ERASURE} THEN RETURN NEW; END IF; END IF; "
        f"RAISE EXCEPTION '{ERROR_TEXT}'; END $$"
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_keeps_rows_unchanged")
        op.execute(f"{CREATE_TRIGGER} {TRIGGER_BODY}")
        return
    op.execute(f"{CREATE_FUNCTION} $$ BEGIN RAISE EXCEPTION '{ERROR_TEXT}'; END $$")
