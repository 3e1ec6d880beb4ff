"""Add the tables `database_use` and `drift_checks`, and columns that name an agent, a cluster or an agent process.

`database_use` names the only agent that may use a PostgreSQL database. A row of `nodes` describes an agent process.
Each new column `node` contains the id of an agent process.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Migrate the schema one revision forwards. `database_use` stays empty until an agent uses PostgreSQL."""
    op.create_table(
        "database_use",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("cluster", sa.String(length=100), nullable=False),
        # When FulcrumCore last accepted the token of this agent.
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "drift_checks",
        sa.Column("cluster", sa.String(length=100), nullable=False),
        # When the findings of the drift check (differences between the mappings, Proxmox and FulcrumCore) were stored.
        sa.Column("concluded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("cluster"),
    )
    op.add_column("nodes", sa.Column("agent_id", sa.String(length=36), nullable=True))
    op.add_column("nodes", sa.Column("cluster", sa.String(length=100), nullable=True))
    op.add_column("critical_jobs", sa.Column("node", sa.String(length=64), nullable=True))
    op.add_column("runs", sa.Column("node", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """Migrate the schema one revision backwards. Without `database_use`, several agents can use the database."""
    op.drop_column("runs", "node")
    op.drop_column("critical_jobs", "node")
    op.drop_column("nodes", "cluster")
    op.drop_column("nodes", "agent_id")
    op.drop_table("drift_checks")
    op.drop_table("database_use")
