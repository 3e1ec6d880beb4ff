"""Steps 3 to 6 of 7: one job from its claim at FulcrumCore to its end on disk. `process_job` reads like the walk.

Whatever goes wrong on the way becomes a failed JobResult and joins at the last transaction; only a silent FulcrumCore
puts the job back, because nobody could be told.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from executor.agent import crash_points
from executor.database import job_queue, mappings
from executor.database.engine import insist, reading, transaction
from executor.database.job_queue import Lease
from executor.database.tables import Job, Mapping, utc_now
from executor.errors import ErrorCode, FulcrumAuthFailing, FulcrumRefused, FulcrumUnavailable, JobError, StaleJob
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreJob
from executor.fulcrum.vault import JobFacts, SecretResolver
from executor.log import get_logger
from executor.model import JobResult, MappingState, PlaybookRun, ReportState
from executor.placement.clone_limit import CloneLimit, Permit
from executor.placement.decide import Placement
from executor.placement.placer import PlacementRequest, Placer
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.error_rules import Reaction, reaction_to
from executor.proxmox.rows import VmRow
from executor.redaction import redactor
from executor.runs import extra_vars, results
from executor.runs.plan import READING_ACTIONS, SHAPING_ACTIONS, find_playbook, plan
from executor.runs.request import Order, Site
from executor.runs.runner import Runner
from executor.runs.vm_properties import read_properties
from executor.settings.settings import Settings

log = get_logger(__name__)

#: A job with less time than this is failed, not started: the shortest playbook needs about as much.
SHORTEST_RUN_S = 10.0
#: Kept free between the end of a run and FulcrumCore's limit, for the report.
REPORT_MARGIN_S = 10.0
#: Pause before a repeated attempt; doubled each time, with jitter.
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0
MAX_ATTEMPTS = 8
#: A run that is killed this often in a row is not played again: most likely the machine has no room for it.
MAX_KILLED_RUNS = 3
#: Failures that their reaction would repeat, but that an operator should hear of at once.
TOLD_AT_ONCE = frozenset({ErrorCode.CAPACITY, ErrorCode.TASK_FAILED, ErrorCode.TASK_TIMEOUT})


class StopSignal:
    """Says to a running job that it is to end, and why."""

    OPERATOR = "operator"  #: cancelled by a person: the job fails
    STOPPING = "stopping"  #: the agent must leave: the job is put back and taken up again
    LOST = "lost"  #: the lease is somebody else's: write nothing

    def __init__(self) -> None:
        self.reason: str | None = None

    def send(self, reason: str) -> None:
        """Ask the job to end; the first reason counts."""
        if self.reason is None:
            self.reason = reason

    def is_sent(self) -> bool:
        """Answer ansible-runner's question whether to go on."""
        return self.reason is not None


class _Abandoned(Exception):
    """FulcrumCore has ended the job, or given it to somebody else, before it was ours."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Carries one job at a time; any number of threads may use one Worker."""

    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    placer: Placer
    clone_limit: CloneLimit
    runner: Runner
    settings: Settings
    site: Site
    secrets: SecretResolver

    def process_job(self, job: Job, stop: StopSignal) -> None:
        """Carry one claimed job to its end. Reporting is another turn's work.

        Raises StaleJob when the lease was lost on the way; nothing was written then.
        """
        lease = job_queue.lease_of(job)
        with bound_contextvars(job_id=job.fulcrum_id, service_id=job.service_id, action=job.action):
            mapping: Mapping | None = None
            begun_at, unused = utc_now(), False
            try:
                self._claim(job, lease)
                properties = self._check(job)
                with _kept_secret(self.secrets.values_in(_secret_facts(job), properties)):
                    mapping = self._mapping_of(job)
                    result = self._run(job, lease, mapping, properties, stop)
            except FulcrumUnavailable as error:
                self._put_back(job, lease, pause_s=_pause_s(job.attempt, error.retry_after_s), reason=str(error))
                return
            except _Abandoned as reason:
                self._abandon(lease, str(reason))
                return
            except JobError as error:
                result = JobResult(succeeded=False, code=error.code, detail=error.detail)
                # Raised before any run began, so nothing can stand on an id that was reserved only now.
                unused = mapping is not None and mapping.created_at >= begun_at
            self._end(job, lease, mapping, result, stop, unused=unused)

    # --- step 3 ---------------------------------------------------------------------------------------------------

    def _claim(self, job: Job, lease: Lease) -> None:
        """Make FulcrumCore see the job as ours. A claim that was sent before may have been heard."""
        if job.claimed_at is not None or _is_local(job):
            return
        if job.claim_sent_at is None or self._ask(job.fulcrum_id) == "Pending":
            with transaction(self.engine) as session:
                job_queue.note_claim_sent(session, lease)
            crash_points.reached("claim_noted", job.service_id)
            self._send_claim(job)
            crash_points.reached("claim_accepted", job.service_id)
        with transaction(self.engine) as session:
            job_queue.note_claimed(session, lease)
        log.info("job_claimed", attempt=job.attempt)

    def _send_claim(self, job: Job) -> None:
        try:
            self.fulcrum.claim_job(job.fulcrum_id)
        except FulcrumRefused:
            status = self._ask(job.fulcrum_id)
            raise _Abandoned(f"FulcrumCore refused the claim: the job is {status} there") from None
        except FulcrumAuthFailing:
            # One job's 403 means that it is gone or foreign; 403 on everything means something else.
            if self.fulcrum.knows_job(job.fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused the claim of a job that it has", status=500) from None
            raise _Abandoned("FulcrumCore does not know the job any more, or it is not ours") from None

    def _ask(self, fulcrum_id: str) -> str:
        """Return FulcrumCore's status of the job: Pending, or Processing by our own claim. Raises _Abandoned."""
        try:
            found: CoreJob = self.fulcrum.get_job(fulcrum_id)
        except FulcrumAuthFailing:
            if self.fulcrum.knows_job(fulcrum_id):
                raise FulcrumUnavailable("FulcrumCore refused to show a job that it has", status=500) from None
            raise _Abandoned("FulcrumCore does not know the job any more, or it is not ours") from None
        if found.status not in ("Pending", "Processing"):
            raise _Abandoned(f"FulcrumCore has the job as {found.status}")
        return found.status

    # --- what the job asks for ------------------------------------------------------------------------------------

    def _check(self, job: Job) -> dict[str, Any]:
        """Return the properties to work with, secrets filled in. Raises JobError for what cannot be carried out."""
        if job.cancel_requested:
            raise JobError(ErrorCode.CANCELLED, "cancelled by the operator")
        playbook = find_playbook(job.action, self.site.folders)
        if job.defect:
            raise JobError(ErrorCode.INVALID_REQUEST, job.defect)
        if job.action == "update" and not job.params:
            # FulcrumCore would replace the service's properties by nothing if this were completed.
            raise JobError(ErrorCode.INVALID_REQUEST, "an update without properties: nothing to change")
        self._time_left_s(job)
        properties = job.params if job.params else (job.service or {}).get("properties") or {}
        if job.action in SHAPING_ACTIONS:
            read_properties(properties)  # before any secret is asked for
        takes_properties = job.action in READING_ACTIONS or not self._is_own(playbook)
        return self.secrets.fill_in(_secret_facts(job), properties) if takes_properties else {}

    def _is_own(self, playbook: Path) -> bool:
        return playbook.parent == self.site.folders[-1]

    def _time_left_s(self, job: Job) -> float:
        """Return the seconds that a run may take. Raises JobError DEADLINE when they are too few to begin."""
        now_at_core = utc_now().timestamp() + self.fulcrum.clock_offset_s
        left = job.deadline_at.timestamp() - now_at_core - REPORT_MARGIN_S
        if left < SHORTEST_RUN_S:
            code, _, held_up_by = (job.error_message or "").partition(": ")
            if held_up_by and code in set(ErrorCode):  # what used up the time says more than that it is over
                raise JobError(ErrorCode(code), held_up_by)
            raise JobError(ErrorCode.DEADLINE, f"{max(left, 0):.0f} s are left, too few to begin")
        return left

    # --- step 4 ---------------------------------------------------------------------------------------------------

    def _mapping_of(self, job: Job) -> Mapping | None:
        """Return the service's mapping, reserved or found; None when a delete has nothing left to delete."""
        service_id = _service_id(job)
        with reading(self.engine) as session:
            mapping = mappings.live(session, service_id)
        if _is_local(job):  # our own: the destruction of a doomed VM, and of nothing else
            if mapping is None or mapping.state != MappingState.DOOMED:
                raise JobError(ErrorCode.CANCELLED, "the deletion was called back")
            return mapping
        if mapping := mapping or self._find_unmapped(job, service_id):
            return mapping
        if job.action == "create":
            return self._reserve(job)
        self._prove_that_absence_shows()
        if job.action == "delete":
            return None
        raise JobError(ErrorCode.VM_NOT_FOUND, f"{job.action} needs a VM, and none carries this service's marker")

    def _find_unmapped(self, job: Job, service_id: str) -> Mapping | None:
        """Look for a VM of ours that no row knows: the database was lost, or never told."""
        rows = self.proxmox.vms()
        vm = self.proxmox.find_by_marker(rows, service_id, name_suffix=mappings.vm_name("", service_id)[-9:])
        if vm is None:
            return self._find_half_made(job, service_id, rows) if job.action in ("create", "delete") else None
        log.warning("vm_found_by_marker", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            mapping = mappings.adopt(
                session,
                service_id=service_id,
                cluster=self.site.cluster,
                vmid=vm.vmid,
                name=vm.name,
                node=vm.node,
                kind=vm.kind,
            )
        if mapping is None:
            raise JobError(ErrorCode.VM_IDENTITY_MISMATCH, f"VM {vm.vmid} carries the marker but is mapped elsewhere")
        return mapping

    def _find_half_made(self, job: Job, service_id: str, rows: Sequence[VmRow]) -> Mapping | None:
        """Look for a clone that a create of ours has left without its marker, after the database was lost.

        Only one that has the whole name which we would give it, on a VMID that we would give it, is taken for that.
        """
        low, high = self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max
        vm = self.proxmox.find_unmarked(rows, _name_of(job, service_id), range(low, high + 1))
        if vm is None:
            return None
        log.warning("half_made_vm_found", vmid=vm.vmid, node=vm.node)
        with transaction(self.engine) as session:
            return mappings.reserve(
                session, service_id=service_id, cluster=self.site.cluster, vmid=vm.vmid, name=vm.name, kind=vm.kind
            )

    def _prove_that_absence_shows(self) -> None:
        """Raise JobError unless Proxmox would show us the VM if it existed: an empty answer is not an empty world."""
        if not self.proxmox.is_quorate():
            raise JobError(ErrorCode.PVE_NO_QUORUM, "the cluster has no quorum: nothing can be concluded")
        if not self.proxmox.may_see_all_vms():
            raise JobError(ErrorCode.PVE_PERMISSION, "the token lacks VM.Audit on /vms: nothing can be concluded")

    def _reserve(self, job: Job) -> Mapping:
        """Write a free VMID down for the service, checked against the cluster first."""
        service_id = _service_id(job)
        name = _name_of(job, service_id)
        kind = read_properties(_delivered(job)).kind
        low, high = self.settings.proxmox_vmid_min, self.settings.proxmox_vmid_max
        foreign: set[int] = set()
        while True:
            with transaction(self.engine) as session:
                vmid = mappings.pick_vmid(
                    session,
                    (self.site.cluster, low, high),
                    quarantine_s=self.settings.smith_vmid_quarantine_s,
                    also=foreign,
                )
            if not self.proxmox.is_vmid_free(vmid):
                foreign.add(vmid)
                continue
            with transaction(self.engine) as session:
                mapping = mappings.reserve(
                    session, service_id=service_id, cluster=self.site.cluster, vmid=vmid, name=name, kind=kind
                ) or mappings.live(session, service_id)
            if mapping is not None:
                log.info("vmid_reserved", vmid=mapping.vmid)
                crash_points.reached("vmid_reserved", job.service_id)
                return mapping

    # --- step 5 ---------------------------------------------------------------------------------------------------

    def _run(
        self, job: Job, lease: Lease, mapping: Mapping | None, properties: dict[str, Any], stop: StopSignal
    ) -> JobResult:
        if mapping is None:
            return JobResult(succeeded=True, vm={"status": "absent", "changed": False})
        with bound_contextvars(vmid=mapping.vmid), self._placed(job, mapping, properties) as placed:
            with self._let_in(job, placed, stop) as permit:
                run = plan(self._order(job, mapping, properties, placed), self.site)
                with transaction(self.engine) as session:
                    job_queue.note_started(session, lease, run_ident=run.ident, playbook=run.playbook.name)
                crash_points.reached("run_noted", job.service_id)
                with bound_contextvars(run_ident=run.ident):
                    permit.result = result = self._play(run, mapping, stop)
                crash_points.reached("run_ended", job.service_id)
            return replace(result, vm=placed.add_to_result(result.vm)) if placed else result

    @contextmanager
    def _let_in(self, job: Job, placed: Placement | None, stop: StopSignal) -> Iterator[Permit]:
        """Wait for the storage's turn with a create. Raises JobError when the time is up, or we are told to stop."""

        def may_wait() -> bool:
            return self._time_left_s(job) > 0 and not stop.is_sent()

        if placed is None or job.action != "create":
            yield Permit()
            return
        with self.clone_limit.acquire(placed.clone_target, may_wait=may_wait) as permit:
            yield permit

    @contextmanager
    def _placed(self, job: Job, mapping: Mapping, properties: dict[str, Any]) -> Iterator[Placement | None]:
        """Hold a place for a VM that is to be made or moved; others have one. Raises JobError when there is none."""
        if job.action == "migrate":
            with self.placer.allocate_move(mapping.vmid, mapping.node or "") as placement:
                yield placement
            return
        wanted = read_properties(properties) if job.action == "create" else None
        if wanted is None or not wanted.is_sourced:
            yield None
            return
        template = extra_vars.os_template(wanted.os_template, self.site.os_templates) if wanted.os_template else ""
        request = PlacementRequest(
            vmid=mapping.vmid,
            image=wanted.image or "",
            volume=template or wanted.iso or "",
            memory_mib=wanted.memory_mib,
            cores=wanted.cores,
            bridge=extra_vars.wanted_bridge(wanted, self.site),
            node=self.site.node,
        )
        with self.placer.allocate(request) as placement:
            yield placement

    def _order(self, job: Job, mapping: Mapping, properties: dict[str, Any], placed: Placement | None) -> Order:
        service = job.service or {}
        return Order(
            action=job.action,
            service_id=mapping.service_id,
            service_name=str(service.get("name") or ""),
            properties=properties,
            before=service.get("properties") or {},
            vmid=mapping.vmid,
            vm_name=mapping.name,
            kind=mapping.kind,
            node=placed.node if placed and job.action == "create" else mapping.node or "",
            only_when_due=_is_local(job),
            target_node=placed.node if placed and job.action == "migrate" else "",
            template_vmid=placed.template_vmid if placed else 0,
            half_made=mapping.state == MappingState.RESERVED,
            # Named after the job: an attempt that is repeated finds what the one before it has taken.
            snapshot=f"smith-{job.fulcrum_id[:8]}" if job.action == "snapshot" else "",
            time_left_s=self._time_left_s(job),
            secrets=self.secrets.values_in(_secret_facts(job), properties),
        )

    def _play(self, run: PlaybookRun, mapping: Mapping, stop: StopSignal) -> JobResult:
        log.info("playbook_started", playbook=run.playbook.name, timeout_s=round(run.timeout_s))
        artifacts = self.runner.run(run, cancelled=stop.is_sent)
        result = results.read(artifacts)
        duration_s = round(artifacts.ended_at - artifacts.started_at, 2)
        log.info("playbook_finished", rc=artifacts.rc, status=artifacts.status, duration_s=duration_s)
        ended: dict[str, Any] = {"status": artifacts.status, "rc": artifacts.rc, "reason": result.message}
        ended |= {"folder": str(artifacts.folder), "upids": result.vm.get("upids") or []}
        # Insisted on: what the run has made at Proxmox is in no row before the end of the job.
        insist(self.engine, lambda session: job_queue.note_run_ended(session, run.ident, **ended))
        if result.vm and result.vm["vmid"] != mapping.vmid:
            detail = f"the playbook reports VM {result.vm['vmid']} where {mapping.vmid} is mapped (run {run.ident})"
            return JobResult(succeeded=False, code=ErrorCode.RESULT_INVALID, detail=detail)
        return result

    # --- step 6 ---------------------------------------------------------------------------------------------------

    def _end(  # noqa: PLR0913 (each is a fact that the end depends on)
        self, job: Job, lease: Lease, mapping: Mapping | None, result: JobResult, stop: StopSignal, *, unused: bool
    ) -> None:
        """Write the end down, or put the job back for another attempt."""
        if stop.reason == StopSignal.LOST:
            raise StaleJob(f"job {job.id} was taken over")
        if stop.reason == StopSignal.STOPPING and not result.succeeded:
            self._put_back(job, lease, pause_s=0, reason="the agent is stopping")
            return
        if (pause_s := self._pause_before_another(job, result)) is not None:
            self._forget_taken_id(mapping, result)
            self._put_back(job, lease, pause_s=pause_s, reason=result.message)
            return

        def write(session: Session) -> None:
            if mapping is not None and unused:
                mappings.release(session, mapping.id, result.message)
            elif mapping is not None:
                _apply(session, mapping, result)
            job_queue.finish(session, lease, result)

        insist(self.engine, write)
        crash_points.reached("job_finished", job.service_id)
        log.info(
            "job_finished",
            status="completed" if result.succeeded else "failed",
            error_code=result.code,
            error_message=result.message or None,
            attempt=job.attempt,
            vmid=mapping.vmid if mapping else None,
            node=result.vm.get("node"),
            duration_s=round((utc_now() - job.received_at).total_seconds(), 2),
        )

    def _pause_before_another(self, job: Job, result: JobResult) -> float | None:
        """Return how long to wait before the job is tried again, None when its failure is final."""
        if result.succeeded or result.code is None or result.code in TOLD_AT_ONCE or job.attempt >= MAX_ATTEMPTS:
            return None
        if result.was_killed and job.attempt >= MAX_KILLED_RUNS:
            return None
        reaction = Reaction.LOOK if result.was_killed else reaction_to(result.code)
        if reaction is Reaction.NO or (reaction is Reaction.ONCE and job.attempt > 1):
            return None
        pause_s = _pause_s(job.attempt, None)
        with suppress(JobError):
            if self._time_left_s(job) - pause_s >= SHORTEST_RUN_S:
                return pause_s
        return None

    def _forget_taken_id(self, mapping: Mapping | None, result: JobResult) -> None:
        if mapping is not None and result.code is ErrorCode.VM_ID_TAKEN:
            with transaction(self.engine) as session:
                mappings.release(session, mapping.id, "the VMID belongs to somebody else")

    def _put_back(self, job: Job, lease: Lease, *, pause_s: float, reason: str) -> None:
        with transaction(self.engine) as session:
            job_queue.put_back(session, lease, pause_s=pause_s, reason=reason)
        log.warning("job_put_back", attempt=job.attempt, pause_s=round(pause_s, 1), reason=reason)

    def _abandon(self, lease: Lease, reason: str) -> None:
        result = JobResult(succeeded=False, code=ErrorCode.DEADLINE, detail=reason)
        with transaction(self.engine) as session:
            job_queue.finish(session, lease, result, ReportState.ABANDONED)
        log.warning("job_abandoned", reason=reason)


def _secret_facts(job: Job) -> JobFacts:
    return JobFacts(action=job.action, service=job.service, params=job.params, attempt=job.attempt)


@contextmanager
def _kept_secret(values: tuple[str, ...]) -> Iterator[None]:
    """Keep the values out of every log line and error text for the length of the block."""
    redactor.add(*values)
    try:
        yield
    finally:
        redactor.discard(*values)


def _is_local(job: Job) -> bool:
    return job.report_state == ReportState.LOCAL


def _service_id(job: Job) -> str:
    if job.service_id is None:  # the poller marks such a job as defective, so `_check` has failed it before
        raise JobError(ErrorCode.INVALID_REQUEST, "the job names no service")
    return job.service_id


def _delivered(job: Job) -> dict[str, Any]:
    """Return the properties as they came: secrets are references."""
    found: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return found


def _name_of(job: Job, service_id: str) -> str:
    """Return the name that the service's VM is given."""
    host = _delivered(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return mappings.vm_name(str(host), service_id)


def _apply(session: Session, mapping: Mapping, result: JobResult) -> None:
    if result.succeeded:
        mappings.apply_result(session, mapping.id, result.vm)
    elif result.code is ErrorCode.VM_NOT_FOUND:
        mappings.mark_orphaned(session, mapping.id, result.message)
    elif result.code is ErrorCode.VM_ID_TAKEN:
        mappings.release(session, mapping.id, result.message)


def _pause_s(attempt: int, asked_s: float | None) -> float:
    """Return a growing pause with jitter, never shorter than what the other side asked for."""
    grown = min(FIRST_PAUSE_S * 2.0 ** max(attempt - 1, 0), LONGEST_PAUSE_S)
    return max(grown * random.uniform(0.7, 1.3), asked_s or 0.0)  # noqa: S311 (spreads load, guards nothing)
