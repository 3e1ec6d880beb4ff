"""Registers an agent process in the database at its start, and reaps the jobs of processes that have ended.

To reap a job is to take it from its owner. The job is then pending again, or fails after too many crashes.
On SQLite, this process has locked the database, so every other agent process has ended. On PostgreSQL, other agent
processes may run. But the earlier processes of the same installation (a data folder on one host) have ended, because
this process has locked the data folder.

The table `nodes` has one row for each agent process, not for a Proxmox node. `boot_id` is the random id of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import nodes, other_leases, reaping
from executor.database.engine import transaction
from executor.database.nodes import AgentProcess
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


def register_agent(engine: Engine, agent_process: AgentProcess, state: AgentState) -> None:
    """Store the row of this process, and reap the jobs of ended processes at once.

    Record in `state` whether an operator has paused this installation, and how many jobs it may run at once. Both must
    be known before the first claim.
    The caller has locked the data folder and the SQLite file, and has ended the runs of the earlier processes.
    """
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process)
        operator_limits = nodes.operator_limits(session, agent_process.boot_id)
        nodes.store_ends_of_earlier_processes(session, agent_process)
        leases = other_leases.leases_of_other_processes(session, agent_process.boot_id)
        if engine.dialect.name != "sqlite":
            ended_boot_ids = nodes.boot_ids_of_earlier_processes(session, agent_process)
            leases = [lease for lease in leases if lease.owner in ended_boot_ids]
        reaped_jobs = reaping.reap(session, leases)
    state.record_operator_limits(is_paused=operator_limits.is_paused, max_jobs=operator_limits.max_jobs)
    for job_row_id, status in reaped_jobs:
        log.warning("job_reaped", job_row_id=job_row_id, status=status)
