"""Refuses a PostgreSQL database that another agent of FulcrumCore uses, and takes it over when that agent has ended.

An agent of FulcrumCore is an agent with its own id and token in FulcrumCore; several processes may have the token. In
this text, the user is the agent of FulcrumCore that uses the database. Each process of the user stores a
confirmation in the database at each renewal of its leases, while FulcrumCore accepts the user's token. A process of
another agent claims, polls and reports nothing. Such a process takes the database over under two conditions:
FulcrumCore accepts the token of the process, and the user has stored no new confirmation for a time. A user stores no
more confirmations if all its processes have ended, or if the agent was deleted in FulcrumCore and created again with
another token. After the takeover, processes with the old token claim no more jobs, and their running jobs end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import database_use
from executor.database.database_use import AgentAndCluster, OtherUse
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
    boot_id: str  #: id of this agent process
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    lease_s: float  #: length of a lease; another agent stores several confirmations in this time
    clock: Callable[[], float] = time.monotonic
    _is_agent_id_stored: bool = False  #: the row of this process in the table `nodes` contains the id of its agent
    _other_use: OtherUse | None = None  #: the last confirmation of another agent that this process has read
    _other_use_since: float = 0.0  #: when `_other_use` was first read, by `clock`
    _lock: threading.Lock = field(default_factory=threading.Lock)  #: held during each call of `confirm`

    def confirm(self) -> None:
        """Store a confirmation that this agent uses the database, unless another agent uses the database.

        If the other agent has ended, take the database over. Record in `state` which agent uses the database. A
        confirmation is stored only while FulcrumCore accepts this agent's token. Do nothing before the first heartbeat,
        and on SQLite, which only one process uses. After a database error, store and record nothing.
        """
        if self.engine.dialect.name == "sqlite" or not self.state.agent_id:
            return
        our_use = AgentAndCluster(agent_id=self.state.agent_id, cluster=self.cluster)
        try:
            with self._lock, transaction(self.engine) as session:
                previous_other_use = self._other_use
                other_use = self._confirm_or_take_over(session, our_use)
        except DatabaseError:
            self._is_agent_id_stored = False
            return
        if other_use is None and previous_other_use is not None and not self.state.may_use_database:
            log.warning("database_taken_over", agent_id=our_use.agent_id, earlier_agent_id=previous_other_use.agent_id)
        other_agent_id, other_cluster = (other_use.agent_id, other_use.cluster) if other_use else ("", "")
        self.state.record_database_user(other_agent_id, cluster=other_cluster)

    def _confirm_or_take_over(self, session: Session, our_use: AgentAndCluster) -> OtherUse | None:
        if not self.state.fulcrum_link.is_up:  # FulcrumCore may no longer accept this agent's token
            self._other_use = None
            return database_use.find_other_use(session, our_use)
        if not self._is_agent_id_stored:
            database_use.store_agent_id_of_process(session, self.boot_id, our_use.agent_id)
            self._is_agent_id_stored = True
        other_use = database_use.confirm_use(session, our_use)
        # Each new confirmation of the other agent changes `other_use`. If `other_use` has not changed for long enough,
        # the other agent has ended.
        if other_use != self._other_use:
            self._other_use, self._other_use_since = other_use, self.clock()
        has_other_agent_ended = self.clock() - self._other_use_since >= max(MIN_UNCONFIRMED_S, self.lease_s)
        if other_use is not None and has_other_agent_ended and database_use.take_over(session, our_use, other_use):
            return None
        return other_use
