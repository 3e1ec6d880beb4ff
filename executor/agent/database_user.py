"""Refuses a PostgreSQL database that another agent of FulcrumCore uses, and takes it over when that agent has ended.

Each agent of FulcrumCore has its own id and token. Several processes may have the token of one agent. Only one agent at
a time uses a database, for one Proxmox cluster. The database stores the agent's id and the cluster's name. This stored
pair (`AgentAndCluster`) is called the use of the database. If its agent or its cluster is not that of this process, the
use is a `UseByOtherAgent`. While FulcrumCore accepts the agent's token, each process of the agent confirms the use
whenever it renews its leases: it stores the current time in the database.

A process of another agent, or with another cluster, neither polls nor claims jobs nor reports. It takes the database
over when FulcrumCore accepts its token and the stored use was not confirmed for a time. The confirmations stop if all
processes of the agent have ended, or if the agent was deleted in FulcrumCore and created again with another token.
After the takeover, a process of the earlier agent claims no more jobs. Its running jobs are not stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import database_use
from executor.database.database_use import AgentAndCluster, UseByOtherAgent
from executor.database.engine import transaction
from executor.errors import DatabaseError
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: The minimum time without a new confirmation after which another agent takes the database over.
MIN_UNCONFIRMED_S = 60.0


@dataclass(kw_only=True)
class DatabaseUseConfirmer:
    """Confirms that this agent uses the database. Takes the database over from another agent that has ended."""

    engine: Engine
    state: AgentState
    boot_id: str  #: id of this agent process, not of a boot of the machine
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    lease_s: float  #: length of a lease; a takeover needs at least this time without a confirmation
    clock: Callable[[], float] = time.monotonic
    #: The row of this process in the table `nodes` (of agent processes, not of Proxmox nodes) contains the agent's id.
    _is_agent_id_stored: bool = False
    #: The stored use, with the time of its last confirmation, if another agent uses the database.
    _use_by_other_agent: UseByOtherAgent | None = None
    #: The time, by `clock`, at which the current value of `_use_by_other_agent` was first read.
    _use_by_other_agent_read_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)  #: held during each call of `confirm`

    def confirm(self) -> None:
        """Store a confirmation that this agent uses the database, unless another agent uses the database.

        If the other agent has ended, take the database over. Record in `state` which agent uses the database. A
        confirmation is stored only while FulcrumCore accepts this agent's token. Do nothing before the first heartbeat,
        in which FulcrumCore sends this agent's id. Do nothing on SQLite either, which only one process uses. After a
        database error, store and record nothing.
        """
        if self.engine.dialect.name == "sqlite" or not self.state.agent_id:
            return
        use_by_this_agent = AgentAndCluster(agent_id=self.state.agent_id, cluster=self.cluster)
        try:
            with self._lock, transaction(self.engine) as session:
                previous_use_by_other_agent = self._use_by_other_agent
                use_by_other_agent = self._confirm_or_take_over(session, use_by_this_agent)
        except DatabaseError:
            self._is_agent_id_stored = False
            return
        if use_by_other_agent is not None:
            self.state.record_other_agent_on_database(use_by_other_agent.agent_id, cluster=use_by_other_agent.cluster)
            return
        # `may_use_database` is False until the last line of this method records that no other agent uses the database.
        # So each takeover is logged once.
        if previous_use_by_other_agent is not None and not self.state.may_use_database:
            log.warning(
                "database_taken_over",
                agent_id=use_by_this_agent.agent_id,
                earlier_agent_id=previous_use_by_other_agent.agent_id,
            )
        self.state.record_other_agent_on_database("", cluster="")  # no other agent uses the database

    def _confirm_or_take_over(self, session: Session, use_by_this_agent: AgentAndCluster) -> UseByOtherAgent | None:
        if not self.state.fulcrum_link.is_up:  # the last call failed: FulcrumCore may no longer accept the token
            self._use_by_other_agent = None  # restarts the measurement of the time without a confirmation
            return database_use.find_use_by_other_agent(session, use_by_this_agent)
        if not self._is_agent_id_stored:
            database_use.store_agent_id_of_process(session, self.boot_id, use_by_this_agent.agent_id)
            self._is_agent_id_stored = True
        # Stores the current time and returns None. If another agent uses the database, stores nothing, and returns the
        # use by that agent.
        use_by_other_agent = database_use.confirm_use(session, use_by_this_agent)
        # Each new confirmation by the other agent changes `use_by_other_agent`. If `use_by_other_agent` has not changed
        # for long enough, the other agent has ended.
        if use_by_other_agent != self._use_by_other_agent:
            self._use_by_other_agent, self._use_by_other_agent_read_at = use_by_other_agent, self.clock()
        unconfirmed_s = self.clock() - self._use_by_other_agent_read_at
        has_other_agent_ended = unconfirmed_s >= max(MIN_UNCONFIRMED_S, self.lease_s)
        if (
            use_by_other_agent is not None
            and has_other_agent_ended
            # False if the other agent has confirmed its use after `confirm_use` read it.
            and database_use.take_over(session, use_by_this_agent, use_by_other_agent)
        ):
            return None
        return use_by_other_agent
