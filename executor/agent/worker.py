"""Processes one job: claims it at FulcrumCore, runs its playbook, stores its result. `process_job` shows the order.

These are steps 3 to 6 of a job's processing (ARCHITECTURE.md). When a step raises JobError, step 6 stores a failed
JobResult. The agent sends requests to FulcrumCore before it starts the run. When FulcrumCore does not answer one of
them, the job is requeued. A mapping says which VM serves which service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bound_contextvars

from executor.agent import crash_points, outcome_store, retry, secret_owners
from executor.agent.claim import Claimer, JobNotClaimable
from executor.agent.job_fields import is_created_by_agent, job_for_secret_resolver, properties_with_vault_references
from executor.agent.outcome import Outcome, ResultOrError, outcome_of_attempt
from executor.agent.report import add_left_out_property_names
from executor.agent.reservation import FoundMapping, MappingFinder
from executor.agent.resources import ResourceAllocator
from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, job_runs
from executor.database.engine import transaction, write_with_retry
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.errors import DatabaseError, DatabaseUnavailable, FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.log import get_logger
from executor.model import JobResult, MappingState, PlaybookRun, RunStatus
from executor.placement.decide import Placement
from executor.redaction import redactor
from executor.runs import results
from executor.runs.plan import ACTIONS_WITH_PROPERTIES, CONFIGURING_ACTIONS, find_playbook, plan
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.runner import Runner
from executor.runs.vm_properties import read_properties
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Processes jobs. Several threads may use one Worker, each for one job at a time."""

    engine: Engine
    fulcrum: FulcrumClient
    claimer: Claimer
    mapping_finder: MappingFinder
    resource_allocator: ResourceAllocator
    runner: Runner
    playbook_settings: PlaybookSettings
    secret_resolver: SecretResolver

    def process_job(self, job: Job, stop_signal: StopSignal) -> None:
        """Process a claimed job until its result is stored or the job is requeued. The reporter sends the result later.

        Raises StaleJob when this process has lost the job's lease. Then the job's result is not stored.
        """
        lease = job_queue.lease_of(job)
        with bound_contextvars(job_id=job.fulcrum_id, service_id=job.service_id, action=job.action):
            found_mapping, has_unused_reservation = FoundMapping(), False
            # The names of the properties that the run does not get, because FulcrumCore's vault lacks their secrets.
            left_out_property_names: list[str] = []
            started_run_idents: list[str] = []
            try:
                self.claimer.claim(job, lease)
                properties = self._check_and_resolve_properties(job, left_out_property_names)
                with _redact_in_block(self.secret_resolver.secret_values(job_for_secret_resolver(job), properties)):
                    found_mapping = self.mapping_finder.find_or_reserve_mapping(job)
                    result = self._run_playbook(
                        job,
                        lease,
                        found_mapping.mapping,
                        properties,
                        stop_signal,
                        on_run_start=started_run_idents.append,
                    )
                    result_or_error: ResultOrError = add_left_out_property_names(result, left_out_property_names)
            except (FulcrumUnavailable, JobNotClaimable) as error:
                result_or_error = error
            except DatabaseUnavailable as error:
                # If a run has started, it may have changed the VM, so no outcome is stored here. Later, the lease
                # keeper, which renews the leases of running jobs, releases the job for another attempt, or fails the
                # job after too many crashes. If no run has started, the job is requeued.
                if started_run_idents:
                    raise
                result_or_error = error
            except JobError as error:
                # `operator_detail` is a text that only operators may read.
                result_or_error = JobResult(
                    succeeded=False, code=error.code, detail=error.detail, operator_detail=error.operator_detail
                )
                # JobError is raised only before a run. So a VMID that this attempt has reserved has no VM yet.
                has_unused_reservation = found_mapping.is_new_reservation
            self._end_attempt(
                job,
                lease,
                found_mapping.mapping,
                result_or_error,
                stop_signal,
                has_unused_reservation=has_unused_reservation,
            )

    # --- between steps 3 and 4: check the job, and read its secrets -----------------------------------------------

    def _check_and_resolve_properties(self, job: Job, left_out_property_names: list[str]) -> dict[str, Any]:
        """Check the job; return its properties, with secrets instead of references to the vault.

        Appends to `left_out_property_names` the name of each property whose secret the vault no longer has. Raises
        JobError when the job cannot run.
        """
        if job.cancel_requested:
            raise JobError(ErrorCode.CANCELLED, "cancelled by the operator")
        playbook = find_playbook(job.action, self.playbook_settings.playbook_folders)
        if job.defect:  # the text says what is invalid in the job that FulcrumCore sent
            raise JobError(ErrorCode.INVALID_REQUEST, job.defect)
        if job.action == "update" and not job.params:
            # FulcrumCore would replace the service's properties by an empty set when the update completes.
            raise JobError(ErrorCode.INVALID_REQUEST, "the update contains no properties, so nothing can be changed")
        self._require_time_left_s(job)
        properties = properties_with_vault_references(job)
        if job.action in CONFIGURING_ACTIONS:  # create and update
            read_properties(properties)  # raises JobError for invalid properties, before a secret is read
        # ACTIONS_WITH_PROPERTIES are create, update and resize. A playbook from SMITH_ACTIONS_PATH gets the properties
        # for every action.
        needs_properties = job.action in ACTIONS_WITH_PROPERTIES or not self._is_builtin_playbook(playbook)
        if not needs_properties:
            return {}
        resolver_input = job_for_secret_resolver(job)  # the job's action, service, properties and attempt number
        # A reference use is a reference to a secret, together with the name of the property that contains it.
        secret_owners.require_secrets_belong_to_service(
            self.engine, job, self.secret_resolver.reference_uses_to_resolve(resolver_input, properties)
        )
        return self.secret_resolver.resolve(
            resolver_input, properties, on_property_left_out=left_out_property_names.append
        )

    def _is_builtin_playbook(self, playbook: Path) -> bool:
        """True for a playbook of Agent Smith, False for a playbook from SMITH_ACTIONS_PATH."""
        builtin_folder = self.playbook_settings.playbook_folders[-1]  # the folders of SMITH_ACTIONS_PATH come first
        return playbook.parent == builtin_folder

    def _require_time_left_s(self, job: Job) -> float:
        """Return how many seconds a run may take before the job's deadline. Raises JobError when they are too few."""
        return retry.require_time_left_s(job, clock_offset_s=self.fulcrum.clock_offset_s)

    # --- step 5: run the playbook ---------------------------------------------------------------------------------

    def _run_playbook(  # noqa: PLR0913 (each parameter is one fact about the run)
        self,
        job: Job,
        lease: Lease,
        mapping: Mapping | None,
        properties: dict[str, Any],
        stop_signal: StopSignal,
        *,
        on_run_start: Callable[[str], None],
    ) -> JobResult:
        """Allocate resources, plan the run, store that it starts, execute it, and return the job's result.

        The resources are a Proxmox node, its memory and cores, and a clone slot, which is the permission to run one
        clone. `on_run_start` is called with the run's ident just before the run starts. After this call, no JobError is
        raised.
        """
        if mapping is None:  # the job is a delete, and its VM does not exist
            return JobResult(succeeded=True, vm={"status": "absent", "changed": False})

        is_wait_stored = False

        def may_wait() -> bool:
            """Return whether to wait longer for resources. Called repeatedly during the wait. Raises JobError."""
            nonlocal is_wait_stored
            self._require_time_left_s(job)
            # A job fails after several crashes of the agent process. A crash is not counted if the database says that
            # the job waits. So the first call of `may_wait` stores in the database that the job waits.
            if not is_wait_stored:
                with suppress(DatabaseError), transaction(self.engine) as session:
                    job_queue.store_wait_before_run(session, lease)
                is_wait_stored = True
            return not stop_signal.is_sent()

        with (
            bound_contextvars(vmid=mapping.vmid),
            self.resource_allocator.allocate(job, mapping, properties, may_wait=may_wait) as resources,
        ):
            request = self._build_run_request(job, mapping, properties, resources.placement)
            run = plan(request, self.playbook_settings)
            with transaction(self.engine) as session:
                job_runs.store_run_start(session, lease, run_ident=run.ident, playbook=run.playbook.name)
            crash_points.crash_if_requested("run_noted", job.service_id)  # only a test requests a crash
            on_run_start(run.ident)
            with bound_contextvars(run_ident=run.ident):
                # `on_step` is called with the text of each step that the playbook reports. When the playbook reports
                # that it verifies the new VM, Proxmox has finished the clone, and another run may use the clone slot.
                result = self._execute_run(run, mapping, stop_signal, on_step=resources.free_clone_slot_if_clone_ended)
            # The limit of parallel clones adapts to this result when the `with` block ends. A success can raise the
            # limit. A failure lowers it if Proxmox did not get a lock in time, such as the lock of a storage.
            resources.set_result_for_clone_limit(result)
            crash_points.crash_if_requested("run_ended", job.service_id)
            if resources.placement is None:
                return result
            return replace(result, vm=resources.placement.add_placement_to_result(result.vm))

    def _build_run_request(
        self, job: Job, mapping: Mapping, properties: dict[str, Any], placement: Placement | None
    ) -> RunRequest:
        """Return the input of `plan`. `placement` is the chosen node and template of a create or migrate."""
        service = job.service or {}
        node, target_node = mapping.node or "", ""
        if placement and job.action == "create":
            node = placement.node
        elif placement and job.action == "migrate":
            target_node = placement.node
        return RunRequest(
            action=job.action,
            service_id=mapping.service_id,
            agent_id=str(service.get("agentId") or ""),
            service_name=str(service.get("name") or ""),
            properties=properties,
            previous_properties=service.get("properties") or {},
            vmid=mapping.vmid,
            vm_name=mapping.name,
            kind=mapping.kind,
            node=node,
            # With SMITH_DELETE_GRACE_S, a delete job of FulcrumCore only stops the VM and marks it for deletion. When
            # this grace period has ended, the agent itself creates a second delete job. For the second job, the value
            # is True: the playbook deletes the VM only if the VM is marked and the grace period has ended.
            only_if_grace_period_ended=is_created_by_agent(job),
            target_node=target_node,
            template_vmid=placement.template_vmid if placement else 0,  # 0: no template was chosen
            may_be_partial_clone=mapping.state == MappingState.RESERVED,
            # The snapshot's name contains the job's id, so that a second attempt finds the first attempt's snapshot.
            snapshot=f"smith-{job.fulcrum_id[:8]}" if job.action == "snapshot" else "",
            time_left_s=self._require_time_left_s(job),
            secrets=self.secret_resolver.secret_values(job_for_secret_resolver(job), properties),
        )

    def _execute_run(
        self, run: PlaybookRun, mapping: Mapping, stop_signal: StopSignal, *, on_step: Callable[[str], None]
    ) -> JobResult:
        """Run the playbook, store the end of the run, and return the job's result.

        `on_step` is called with the text of each step that the playbook reports, such as the start of a clone.
        """
        log.info("playbook_started", playbook=run.playbook.name, timeout_s=round(run.timeout_s))
        try:
            artifacts = self.runner.run(run, should_cancel=stop_signal.is_sent, on_step=on_step)
        except OSError as error:  # the run folder is full, or no process or thread can be started
            return self._store_runner_failure(run, error)
        result = results.read_result(artifacts)
        duration_s = round(artifacts.ended_at - artifacts.started_at, 2)
        log.info("playbook_finished", rc=artifacts.rc, status=artifacts.status, duration_s=duration_s)
        if volumes := result.vm.get("volumes_left"):  # volumes of a deleted VM that Proxmox could not remove
            log.warning("volumes_left", volumes=volumes)
        run_end: dict[str, Any] = {
            "status": artifacts.status,
            "rc": artifacts.rc,
            "reason": result.operator_message,
            "folder": str(artifacts.folder),
            "upids": result.vm.get("upids") or [],
            "story": artifacts.story,  # a summary of the run for operators
        }
        # The write is retried, so that a short outage of the database does not lose the end of the run.
        write_with_retry(self.engine, lambda session: job_runs.store_run_end(session, run.ident, **run_end))
        if result.vm and result.vm["vmid"] != mapping.vmid:
            reported_vmid = result.vm["vmid"]
            detail = (
                f"the playbook reports VM {reported_vmid}, but the service's VM is {mapping.vmid} (run {run.ident})"
            )
            return JobResult(succeeded=False, code=ErrorCode.RESULT_INVALID, detail=detail)
        return result

    def _store_runner_failure(self, run: PlaybookRun, error: OSError) -> JobResult:
        """Store that the playbook could not be run; return the failed result of this attempt."""
        detail = f"the playbook could not be run: {error.strerror or type(error).__name__} (run {run.ident})"
        log.error("run_crashed", reason=str(error))
        # As after a killed run, it is unknown what has changed. So the next attempt, if any, first checks what exists.
        result = JobResult(succeeded=False, code=ErrorCode.PLAYBOOK_FAILED, detail=detail, is_effect_unknown=True)
        run_end: dict[str, Any] = {"status": RunStatus.FAILED, "rc": None, "reason": detail, "folder": "", "upids": []}
        write_with_retry(self.engine, lambda session: job_runs.store_run_end(session, run.ident, **run_end))
        return result

    # --- step 6: store the outcome --------------------------------------------------------------------------------

    def _end_attempt(  # noqa: PLR0913 (the outcome depends on each of these parameters)
        self,
        job: Job,
        lease: Lease,
        mapping: Mapping | None,
        result_or_error: ResultOrError,
        stop_signal: StopSignal,
        *,
        has_unused_reservation: bool,
    ) -> None:
        """Decide how the attempt ends, and store it. Raises StaleJob, DatabaseError.

        If the database refuses to store the result, for example because a text is too long, `decide_outcome` is called
        again with `has_database_refused_result=True`. The job then ends with the error INTERNAL.
        """

        def decide_outcome(has_database_refused_result: bool) -> Outcome:
            return outcome_of_attempt(
                job,
                result_or_error,
                stop_reason=stop_signal.reason,
                clock_offset_s=self.fulcrum.clock_offset_s,
                # `is_mapping_reserved`: the VMID is reserved, by this attempt or an earlier one.
                # `has_unused_reservation`: this attempt has reserved the VMID, and has started no run.
                is_mapping_reserved=mapping is not None and mapping.state == MappingState.RESERVED,
                has_unused_reservation=has_unused_reservation,
                has_database_refused_result=has_database_refused_result,
            )

        outcome = outcome_store.store_outcome(self.engine, decide_outcome, lease, mapping)
        crash_points.crash_if_requested("job_finished", job.service_id)
        outcome_store.log_outcome(job, mapping, outcome)


@contextmanager
def _redact_in_block(values: tuple[str, ...]) -> Iterator[None]:
    """Redact these values in log lines and error texts while the block runs."""
    redactor.add(*values)
    try:
        yield
    finally:
        redactor.discard(*values)
