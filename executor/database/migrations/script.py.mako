"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    ${downgrades if downgrades else "pass"}
