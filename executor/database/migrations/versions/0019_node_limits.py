"""Add limits of parallel jobs (table `node_limits`), `jobs.is_waiting`, and two columns of `clone_targets`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

#: The table has one row for each agent process. The rows are not Proxmox nodes.
nodes = sa.table(
    "nodes",
    sa.column("id", sa.String),
    sa.column("installation_id", sa.String),
    sa.column("started_at", sa.DateTime(timezone=True)),
    sa.column("concurrency", sa.Integer),
    sa.column("concurrency_wanted", sa.Integer),
)
limits = sa.table("node_limits", sa.column("scope", sa.String), sa.column("max_jobs", sa.Integer))


def upgrade() -> None:
    """Migrate the schema one revision forwards.

    The column `concurrency` contains the maximum number of jobs that an agent process can run in parallel. If an
    operator has set a lower limit, `concurrency_wanted` contains this limit. The migration copies the limit of the
    latest agent process of each data folder to the table `node_limits`. `installation_id` is the id of the data folder.
    """
    op.create_table(
        "node_limits",
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("max_jobs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("scope"),
    )
    max_jobs_by_scope: dict[str, int] = {}
    columns = (nodes.c.installation_id, nodes.c.concurrency, nodes.c.concurrency_wanted)
    processes = sa.select(*columns).where(nodes.c.installation_id.is_not(None)).order_by(nodes.c.started_at, nodes.c.id)
    for installation_id, concurrency, concurrency_wanted in op.get_bind().execute(processes):
        # The limit applies to all agent processes with this data folder, not to a Proxmox node.
        scope = f"node:{installation_id}"
        max_jobs_by_scope.pop(scope, None)
        if concurrency_wanted < concurrency:
            max_jobs_by_scope[scope] = concurrency_wanted
    if max_jobs_by_scope:
        rows = [{"scope": scope, "max_jobs": max_jobs} for scope, max_jobs in max_jobs_by_scope.items()]
        op.bulk_insert(limits, rows)
    # whether the job's attempt waits, before its playbook run, for an answer of Proxmox or for the end of other clones
    op.add_column("jobs", sa.Column("is_waiting", sa.Boolean(), nullable=False, server_default=sa.false()))
    # A clone target is a storage on which VMs are cloned. The rows are deleted, because the new columns have no
    # default. Each agent stores the target again at its next clone.
    op.execute(sa.text("DELETE FROM clone_targets"))
    # the highest SMITH_CLONES_PER_STORAGE (clones in parallel) of all agent processes that have used the storage
    op.add_column("clone_targets", sa.Column("highest", sa.Integer(), nullable=False))
    # when an agent process last requested a clone on the storage
    op.add_column("clone_targets", sa.Column("used_at", sa.DateTime(timezone=True), nullable=False))


def downgrade() -> None:
    """Migrate the schema one revision backwards. The rows of `node_limits` are lost.

    `nodes.concurrency_wanted` is not changed. It has the limit of each running agent process, also a limit that was set
    after the upgrade.
    """
    op.drop_column("clone_targets", "used_at")
    op.drop_column("clone_targets", "highest")
    op.drop_column("jobs", "is_waiting")
    op.drop_table("node_limits")
