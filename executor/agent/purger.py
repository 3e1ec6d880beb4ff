"""Runs the critical job PurgeDeletedVms: adds a delete job for each VM whose grace period has ended.

When SMITH_DELETE_GRACE_S is set, a delete job of FulcrumCore only stops and marks the VM. The state of the VM's mapping
is then "pending deletion". When the grace period has ended, and FulcrumCore confirms that the service has ended, this
critical job adds a local delete job to the queue. The worker processes a local delete job with the same playbook,
identity check and retries as any other delete, but its result is not reported to FulcrumCore. If the deletion fails,
the next execution adds another job.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from executor.agent.state import AgentState
from executor.database import job_queue, mappings, queries
from executor.database.engine import reading, transaction
from executor.database.job_queue import NewJob
from executor.database.tables import Mapping, utc_now
from executor.errors import FulcrumAuthFailing, FulcrumRefused
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import SERVICE_DELETED, CoreService
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


@dataclass(kw_only=True)
class VmPurger:
    """Finds VMs that are due for deletion, and adds a delete job for each."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    cluster: str
    job_timeout_s: float
    _logged: set[int] = field(default_factory=set)  #: ids of mappings for which a withheld deletion was logged

    def submit_due_deletions(self) -> None:
        """Add a delete job for each VM that is due. Raises FulcrumUnavailable."""
        if not self.state.agent_id:
            return
        with reading(self.engine) as session:
            due = mappings.due_for_deletion(session, self.cluster)
        ended = [mapping for mapping in due if self._has_ended(mapping)]
        vmids = [mapping.vmid for mapping in ended if self._submit(mapping)]
        if vmids:
            log.info("vm_deletion_due", vmids=vmids)
            self.state.dispatch_requested.set()

    def _has_ended(self, mapping: Mapping) -> bool:
        """True when FulcrumCore has ended the service.

        FulcrumCore has not ended it when, for example, it failed the service's delete job after the job timeout.
        """
        try:
            service = self._service(mapping.service_id)
        except FulcrumRefused as refusal:
            log.warning("vm_deletion_withheld", vmid=mapping.vmid, service_id=mapping.service_id, reason=str(refusal))
            return False
        if service is None or self._is_terminal(service):
            return True
        if mapping.id not in self._logged:
            self._logged.add(mapping.id)
            log.warning("vm_deletion_withheld", vmid=mapping.vmid, service_id=mapping.service_id, status=service.status)
        return False

    def _service(self, service_id: str) -> CoreService | None:
        """Return the service, or None when FulcrumCore answers 403 twice, because it has deleted the service then.

        FulcrumCore also answers 403 to every request while its database is down, so `get_self` must succeed in between.
        """
        for _ in range(2):
            try:
                return self.fulcrum.get_service(service_id)
            except FulcrumAuthFailing:
                self.fulcrum.get_self()  # raises when every request gets 403
        return None

    def _is_terminal(self, service: CoreService) -> bool:
        """True when the service's type lists its status as terminal, and it has no instance id any more."""
        if service.status == SERVICE_DELETED:
            return True
        if service.agent_instance_id or service.service_type_id is None:
            return False
        try:
            lifecycle = self.fulcrum.get_service_type(service.service_type_id).lifecycle_schema
        except FulcrumRefused:
            return False
        terminal = lifecycle.get("terminalStates")
        return isinstance(terminal, list) and service.status in terminal

    def _submit(self, mapping: Mapping) -> bool:
        """Add a delete job and return True.

        Return False without adding a job when the service has an open job or the deletion was cancelled meanwhile.
        """
        now = utc_now()
        with transaction(self.engine) as session:
            current = mappings.current(session, mapping.service_id)
            if current is None or current.state != mapping.state or queries.find_open_job(session, mapping.service_id):
                return False
            new = NewJob(
                fulcrum_id=str(uuid.uuid4()),
                service_id=mapping.service_id,
                group_id=None,
                action="delete",
                params=None,
                service=None,
                defect=None,
                priority=0,  # after every job that a user waits for
                core_created_at=now,
                deadline_at=now + timedelta(seconds=self.fulcrum.clock_offset_s + self.job_timeout_s),
                is_local=True,
            )
            return job_queue.submit(session, new) is not None
