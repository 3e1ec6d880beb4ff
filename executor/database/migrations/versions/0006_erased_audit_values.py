"""Let the values of an audit entry be erased, and nothing else of it be changed."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

REFUSAL = "the audit table is append-only"
KEPT_COLUMNS = ("id", "at", "who", "verb", "subject_kind", "subject_id")
ERASED_COLUMNS = ("before", "after", "reason")
IS_ERASURE = " AND ".join(
    [f"NEW.{column} = OLD.{column}" for column in KEPT_COLUMNS] + [f"NEW.{column} IS NULL" for column in ERASED_COLUMNS]
)
TRIGGER = "CREATE TRIGGER audit_keeps_rows_unchanged BEFORE UPDATE ON audit"
REFUSE = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
FUNCTION = "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS"


def upgrade() -> None:
    """Go one step forward."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_keeps_rows_unchanged")
        op.execute(f"{TRIGGER} WHEN NOT ({IS_ERASURE}) {REFUSE}")
        return
    # TG_OP is tested in an IF of its own, because NEW is not assigned in a trigger of DELETE or TRUNCATE.
    op.execute(
        f"{FUNCTION} $$ BEGIN IF TG_OP = 'UPDATE' THEN IF {IS_ERASURE} THEN RETURN NEW; END IF; END IF; "
        f"RAISE EXCEPTION '{REFUSAL}'; END $$"
    )


def downgrade() -> None:
    """Go one step back."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER audit_keeps_rows_unchanged")
        op.execute(f"{TRIGGER} {REFUSE}")
        return
    op.execute(f"{FUNCTION} $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$")
