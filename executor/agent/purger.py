"""Runs the critical job PurgeDeletedVms: adds a delete job for each VM whose grace period has ended.

A critical job is a periodic task of the agent. A mapping says which VM serves which service. When SMITH_DELETE_GRACE_S
is set, a delete job of FulcrumCore only stops the VM, and adds a tag with the time at which the grace period ends. The
state of the VM's mapping is then "pending deletion". When the grace period has ended, this critical job reads from
FulcrumCore whether the service has ended. If the service has ended, the critical job adds a local delete job to the
agent's queue. The worker processes a local delete job with the same playbook, identity check and retries as a delete
job of FulcrumCore, but the result is not reported to FulcrumCore. If the deletion fails, the next execution of the
critical job adds another local delete job.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from executor.agent.refusals import MIN_REFUSAL_DURATION_S, MIN_REFUSALS, Http403Counter, NotCertainlyGone
from executor.agent.state import AgentState
from executor.database import job_queue, mappings, queries
from executor.database.engine import read_only_session, transaction
from executor.database.job_queue import NewJob
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.errors import FulcrumAuthError, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import DELETED_SERVICE_STATUS, FulcrumService
from executor.log import get_logger

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: The wait between two reads of a service for which FulcrumCore answers 403 (a refusal). The service counts as gone
#: (deleted) after MIN_REFUSALS refusals, if at least MIN_REFUSAL_DURATION_S are between the first and the last. The
#: wait is at most the interval of the critical job, because the agent restarts a critical job whose execution lasts
#: much longer than the interval.
REPEATED_READ_INTERVAL_S = MIN_REFUSAL_DURATION_S / (MIN_REFUSALS - 1)
#: Maximum number of reads of a service in one execution, if FulcrumCore answers 403 for the service. With waits of
#: REPEATED_READ_INTERVAL_S, a deleted service counts as gone after MIN_REFUSALS reads; with shorter waits, one more
#: read may be necessary.
MAX_READS_PER_SERVICE = MIN_REFUSALS + 1


@dataclass(kw_only=True)
class VmPurger:
    """Finds VMs that are due for deletion, and adds a delete job for each."""

    engine: Engine
    fulcrum: FulcrumClient
    state: AgentState
    http_403_counter: Http403Counter
    cluster: str  #: the name of the Proxmox cluster (SMITH_CLUSTER)
    job_timeout_s: float
    interval_s: float  #: the interval of this critical job
    wait: Callable[[float], object]  #: waits for some seconds, or until the agent stops
    #: Ids of the mappings for which this object has logged that the service has not ended. It logs this only once.
    _logged_mapping_ids: set[int] = field(default_factory=set)

    def add_jobs_to_delete_expired_vms(self) -> None:
        """Add a delete job for each VM that is due for deletion and whose service has ended. Raises FulcrumUnavailable.

        A VM whose service has not ended does not delay the deletion of other VMs. If FulcrumCore answers 403 for a
        service, the service is read at most MAX_READS_PER_SERVICE times to find out whether it was deleted.
        """
        if not self.state.agent_id:  # empty until FulcrumCore has accepted the agent's token for the first time
            return
        uncertain_mappings = self._submit_deletions_for_ended_services(self._due_mappings())
        for _repeated_read in range(MAX_READS_PER_SERVICE - 1):
            if not uncertain_mappings or self.state.stopping.is_set():
                return
            self.wait(min(REPEATED_READ_INTERVAL_S, self.interval_s))
            uncertain_mappings = self._submit_deletions_for_ended_services(uncertain_mappings)
        for mapping in uncertain_mappings:
            reason = "FulcrumCore answers 403 for the service, but not often enough yet to count it as deleted"
            log.warning("vm_deletion_withheld", vmid=mapping.vmid, service_id=mapping.service_id, reason=reason)

    def _submit_deletions_for_ended_services(self, mappings_to_check: Iterable[Mapping]) -> list[Mapping]:
        """Add a delete job for each VM whose service has ended. Return the mappings whose service must be read again.

        Raises FulcrumUnavailable when FulcrumCore does not answer, or does not accept the agent's token.
        """
        vmids: list[int] = []
        uncertain_mappings: list[Mapping] = []
        try:
            for mapping in mappings_to_check:
                if self.state.stopping.is_set():
                    break
                try:
                    if self._has_service_ended(mapping) and self._submit_delete_job(mapping):
                        vmids.append(mapping.vmid)
                except NotCertainlyGone:
                    uncertain_mappings.append(mapping)
        finally:
            if vmids:
                log.info("vm_deletion_due", vmids=vmids)
                self.state.dispatch_requested.set()  # wakes the dispatcher, which claims jobs from the queue
        return uncertain_mappings

    def _due_mappings(self) -> Iterator[Mapping]:
        """Yield every mapping whose VM is due for deletion. The mappings are read in pages."""
        last_mapping: Mapping | None = None
        while True:
            with read_only_session(self.engine) as session:
                page = mappings.mappings_due_for_deletion(session, self.cluster, after=last_mapping)
            yield from page
            if len(page) < mappings.MAX_DUE_MAPPINGS:  # the page size
                return
            last_mapping = page[-1]

    def _has_service_ended(self, mapping: Mapping) -> bool:
        """Return whether the mapping's service has ended in FulcrumCore.

        Logs a warning when FulcrumCore does not return the service, and, once for each mapping, when the service has
        not ended. Example of the latter: FulcrumCore has set the service's delete job to failed after the job timeout.
        Raises NotCertainlyGone when the service must be read again. Raises FulcrumUnavailable when FulcrumCore does not
        answer, or does not accept the agent's token.
        """
        try:
            service = self._read_service(mapping.service_id)
            if service is None or self._has_terminal_status(service):
                return True
        except NotCertainlyGone:
            raise
        except (FulcrumRefused, FulcrumUnavailable) as error:
            # FulcrumRefused: an error answer such as 400, which a repeated request would not change.
            if isinstance(error, FulcrumUnavailable):
                self.fulcrum.get_own_agent()  # raises FulcrumUnavailable if this request fails, too
            log.warning("vm_deletion_withheld", vmid=mapping.vmid, service_id=mapping.service_id, reason=str(error))
            return False
        if mapping.id not in self._logged_mapping_ids:
            self._logged_mapping_ids.add(mapping.id)
            log.warning("vm_deletion_withheld", vmid=mapping.vmid, service_id=mapping.service_id, status=service.status)
        return False

    def _read_service(self, service_id: str) -> FulcrumService | None:
        """Return the service, or None when FulcrumCore has deleted the service.

        FulcrumCore answers 403 for a deleted service, but also while its database is down. `Http403Counter` counts the
        answers with 403, and raises NotCertainlyGone until the service counts as deleted.
        """
        try:
            return self.fulcrum.get_service(service_id)
        except FulcrumAuthError:  # FulcrumCore has answered 401 or 403
            # This call first reads the agent. It raises FulcrumUnavailable if FulcrumCore refuses the agent's token.
            self.http_403_counter.require_service_gone(service_id)
            return None

    def _has_terminal_status(self, service: FulcrumService) -> bool:
        """True when the service is deleted, or has a terminal status of its service type and no instance id.

        The instance id identifies the service's VM. FulcrumCore removes the instance id when a completed job gives the
        service a terminal status.
        """
        if service.status == DELETED_SERVICE_STATUS:
            return True
        if service.agent_instance_id or service.service_type_id is None:
            return False
        try:
            lifecycle = self.fulcrum.get_service_type(service.service_type_id).lifecycle_schema
        except FulcrumRefused:
            return False
        terminal_statuses = lifecycle.get("terminalStates")
        return isinstance(terminal_statuses, list) and service.status in terminal_statuses

    def _submit_delete_job(self, mapping: Mapping) -> bool:
        """Add a delete job and return True.

        Add no job and return False when the service has an open job or the deletion was cancelled meanwhile.
        """
        now = utc_now()
        with transaction(self.engine) as session:
            current_mapping = mappings.find_current_mapping(session, mapping.service_id)
            if current_mapping is None or current_mapping.state != mapping.state:
                return False
            if queries.find_open_job(session, mapping.service_id):
                return False
            delete_job = NewJob(
                fulcrum_id=str(uuid.uuid4()),
                service_id=mapping.service_id,
                group_id=None,  # the service's group in FulcrumCore; None for a local job
                action="delete",
                params=None,
                service=None,  # FulcrumCore's JSON object of the service; None for a local job
                defect=None,  # says what is invalid in a job; None for a valid job
                priority=0,  # below FulcrumCore's default of 1, so jobs that users wait for are claimed first
                core_created_at=now,  # for a local job: when the agent adds the job
                # By FulcrumCore's clock, which is `clock_offset_s` ahead of this machine's clock.
                deadline_at=now + timedelta(seconds=self.fulcrum.clock_offset_s + self.job_timeout_s),
                is_local=True,
            )
            return job_queue.submit(session, delete_job) is not None
