"""Add columns for used and reserved resources, for the tenant of a mapping, and for an error text for operators.

A tenant is a customer (a consumer in FulcrumCore). A mapping stores how much of each resource, such as cores, its VM
uses. A job stores how much it will add to this use.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

USED_COLUMNS = ("cores", "memory_mib", "disk_gib", "snapshots", "backups")
RESERVED_COLUMNS = ("reserved_vms", *(f"reserved_{name}" for name in USED_COLUMNS))
#: A mapping gets the tenant of the newest job of its service.
FILL_TENANTS = """
UPDATE mappings SET tenant_id = (
    SELECT jobs.tenant_id FROM jobs
    WHERE jobs.service_id = mappings.service_id AND jobs.tenant_id IS NOT NULL
    ORDER BY jobs.id DESC LIMIT 1
)
"""


def upgrade() -> None:
    """Migrate the schema one revision forwards."""
    op.add_column("jobs", sa.Column("operator_detail", sa.Text(), nullable=True))
    op.add_column("mappings", sa.Column("tenant_id", sa.String(length=36), nullable=True))
    for table, names in (("jobs", RESERVED_COLUMNS), ("mappings", USED_COLUMNS)):
        for name in names:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(FILL_TENANTS)
    is_current = sa.text("state != 'deleted'")
    op.create_index(
        "ix_mappings_tenant", "mappings", ["tenant_id"], sqlite_where=is_current, postgresql_where=is_current
    )


def downgrade() -> None:
    """Migrate the schema one revision backwards."""
    op.drop_index("ix_mappings_tenant", table_name="mappings")
    tables = (("mappings", ("tenant_id", *USED_COLUMNS)), ("jobs", ("operator_detail", *RESERVED_COLUMNS)))
    for table, names in tables:
        for name in names:
            op.drop_column(table, name)
