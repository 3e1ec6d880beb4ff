"""Step 2 of a job's processing (ARCHITECTURE.md): claims jobs from the queue and processes each on its own thread.

The queue is the agent's own table of jobs. The worker claims the jobs at FulcrumCore later, in step 3. An attempt is
the processing of a job from one claim in the queue until the job ends or is requeued.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executor.agent.admission import Admission
from executor.agent.disk_space import DiskSpaceChecker
from executor.agent.meters import PrometheusMetrics
from executor.agent.state import AgentState
from executor.agent.stop_signal import StopSignal
from executor.agent.worker import Worker
from executor.database import job_queue
from executor.database.engine import transaction, write_with_retry
from executor.database.tables.jobs import Job
from executor.errors import DatabaseError, StaleJob
from executor.log import get_logger
from executor.model import JobResult
from executor.placement.clone_limit import CloneLimit
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum wait between two searches for claimable jobs. A search at intervals is necessary, because no thread wakes the
#: dispatcher when a job's backoff ends.
DISPATCH_INTERVAL_S = 2.0
#: While admission is closed (the machine lacks memory or CPU for another run), the dispatcher tries again after this
#: time. A run needs the CPU for about 0.1 s at its start, so admission may soon open again.
ADMISSION_RETRY_S = 0.05
#: Backoff of a job that was claimed but could not start.
START_BACKOFF_S = 1.0


@dataclass(kw_only=True)
class _Slot:
    """A running job and its stop signal. There are at most SMITH_CONCURRENCY slots."""

    job: Job
    stop_signal: StopSignal = field(default_factory=StopSignal)


class Dispatcher:
    """Claims and starts jobs. At most SMITH_CONCURRENCY jobs run at once.

    `boot_id` identifies this agent process as the owner of the jobs that it claims.
    """

    def __init__(  # noqa: PLR0913 (the dispatcher connects these parts)
        self,
        *,
        engine: Engine,
        worker: Worker,
        clone_limit: CloneLimit,
        state: AgentState,
        meters: PrometheusMetrics,
        settings: Settings,
        boot_id: str,
        admission: Admission,
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._clone_limit = clone_limit
        self._state = state
        self._meters = meters
        self._settings = settings
        self._boot_id = boot_id
        self._admission = admission
        folders = {"data": settings.smith_data_dir, "run": settings.smith_run_dir}
        self._disk_space_checker = DiskSpaceChecker(folders=folders)
        self._slots: dict[int, _Slot] = {}  #: the key is `job.id`
        self._lock = threading.Lock()
        self._is_closed = False  #: True after `close`
        # Threads are reused, because each thread keeps its connections to FulcrumCore and Proxmox open.
        self._pool = ThreadPoolExecutor(max_workers=settings.smith_concurrency, thread_name_prefix="job")

    @property
    def running_job_count(self) -> int:
        """The number of running jobs."""
        return len(self._slots)

    def stop_signals(self) -> dict[int, StopSignal]:
        """Return the stop signal of each running job. The key is `job.id`."""
        with self._lock:
            return {job_id: slot.stop_signal for job_id, slot in self._slots.items()}

    def stop_all_jobs(self, reason: str) -> None:
        """Ask every running job to end. `reason` is one of the constants of StopSignal."""
        for stop_signal in self.stop_signals().values():
            stop_signal.send(reason)

    def retry_storing_allocation_ends(self) -> None:
        """Try again to store ends of clones and allocations that a database error kept from being stored.

        An allocation is the memory and cores of a Proxmox node that a run needs for its VM. On PostgreSQL,
        `shared_allocations` stores the running clones and the allocations of all agent processes. A clone counts as
        running, and an allocation as in use, until its end is stored. On SQLite, `shared_allocations` is None.
        """
        if self._clone_limit.shared_allocations is not None:
            self._clone_limit.shared_allocations.retry_storing_allocation_ends()

    def close(self) -> None:
        """Start no more jobs from now on. A job that is claimed after this call is requeued."""
        with self._lock:
            self._is_closed = True

    def dispatch(self) -> None:
        """Wait until a thread requests a dispatch or the interval has passed, then start jobs.

        Starts jobs until all slots are used, the machine has no resources for another run, no job can be claimed, or a
        job cannot be started. Starts none while the agent is paused or disabled, or FulcrumCore does not answer.
        """
        max_wait_s = ADMISSION_RETRY_S if self._admission.is_closed else DISPATCH_INTERVAL_S
        self._state.dispatch_requested.wait(max_wait_s)
        self._state.dispatch_requested.clear()
        while self._state.may_claim and not self._is_job_limit_reached() and self._has_resources():
            # CloneLimit limits how many clones run at once on each storage; `max_creates` is the sum of these limits.
            # When that many creates run, a further create would use one of `_slots` only to wait, so no create is
            # claimed.
            with transaction(self._engine) as session:
                job = job_queue.claim(
                    session,
                    self._boot_id,
                    lease_s=self._settings.smith_lease_s,
                    max_creates=self._clone_limit.max_creates,
                )
            if job is None or not self._start_job(job):
                return

    def _has_resources(self) -> bool:
        """True while the disk space, the memory and the load of the machine allow one more run."""
        return self._disk_space_checker.is_space_sufficient() and self._admission.may_start_run(self.running_job_count)

    def _is_job_limit_reached(self) -> bool:
        """True when as many jobs run as are allowed, or when this process has claimed SMITH_MAX_JOBS jobs."""
        settings = self._settings
        if settings.smith_max_jobs and self._state.claimed_job_count >= settings.smith_max_jobs:
            return True
        max_running_jobs = settings.smith_concurrency
        if self._state.max_parallel_jobs is not None:  # an operator may have set a lower limit (`smith nodes limit`)
            max_running_jobs = min(max_running_jobs, self._state.max_parallel_jobs)
        return self.running_job_count >= max_running_jobs

    def _start_job(self, job: Job) -> bool:
        """Start a claimed job on a thread of the pool, or requeue it. Return True if it has started."""
        slot = _Slot(job=job)
        with self._lock:
            obstacle = self._why_not_startable(job)
            if not obstacle:
                self._slots[job.id] = slot
        if obstacle:
            self._requeue_job(job, obstacle)
            return False
        self._state.claimed_job_count += 1
        self._meters.record_queue_wait(job)
        try:
            self._pool.submit(self._process_job, slot)
        except RuntimeError as error:  # the limit of threads, or of memory, is reached
            # `submit` may have queued the call in spite of the error. Then `_process_job` finds no slot and returns.
            self._remove_slot(slot)
            self._requeue_job(job, str(error))
            return False
        return True

    def _why_not_startable(self, job: Job) -> str:
        """Return why a claimed job cannot start now; '' if it can. The caller holds the lock.

        If this process has lost the lease of a job, the job's run may still change the VM. A second run for the same VM
        must not start before the first one has ended.
        """
        if self._is_closed:
            return "the agent is stopping"
        for slot in self._slots.values():
            if slot.job.id == job.id or (job.service_id is not None and slot.job.service_id == job.service_id):
                # The slot's job must have lost its lease: otherwise `job` could not have been claimed.
                slot.stop_signal.send(StopSignal.LEASE_LOST)
                return "an earlier playbook run for the same service has not ended yet"
        return ""

    def _requeue_job(self, job: Job, reason: str) -> None:
        log.warning("job_start_postponed", job_id=job.fulcrum_id, reason=reason)
        # StaleJob: another owner or an operator has changed the job since this process claimed it.
        with contextlib.suppress(StaleJob), transaction(self._engine) as session:
            lease = job_queue.lease_of(job)
            # counts_as_attempt=False: the job's next attempt gets the number of this attempt.
            job_queue.requeue(session, lease, backoff_s=START_BACKOFF_S, reason=reason, counts_as_attempt=False)

    def _remove_slot(self, slot: _Slot) -> None:
        with self._lock:
            del self._slots[slot.job.id]
            self._state.ended_job_count += 1  # counts each removed slot, also that of a job that was requeued or lost

    def _process_job(self, slot: _Slot) -> None:
        """Process one job, then remove its slot, even when an exception was raised."""
        job, started_at = slot.job, time.monotonic()
        if self._slots.get(job.id) is not slot:  # `_start_job` has requeued the job
            return
        try:
            self._worker.process_job(job, slot.stop_signal)
        except StaleJob as error:  # another owner or an operator has changed the job meanwhile
            log.warning("job_lost", job_id=job.fulcrum_id, reason=str(error))
        except DatabaseError:
            # The job keeps its lease. leases.py releases jobs that have a lease but are not running.
            log.exception("job_end_not_stored", job_id=job.fulcrum_id)
        except Exception as error:
            log.exception("job_crashed", job_id=job.fulcrum_id)
            self._fail_with_internal_error(job, error)
        finally:
            self._remove_slot(slot)
            self._state.dispatch_requested.set()
            self._state.report_requested.set()
            self._meters.count_ended_attempt(self._engine, job, time.monotonic() - started_at)

    def _fail_with_internal_error(self, job: Job, error: Exception) -> None:
        """Fail a job after an unexpected exception. Report only the exception's type: its text may contain secrets."""
        result = JobResult(
            succeeded=False, code=ErrorCode.INTERNAL, detail=f"{type(error).__name__}, see the agent's log"
        )
        lease = job_queue.lease_of(job)
        with contextlib.suppress(StaleJob, DatabaseError):
            write_with_retry(self._engine, lambda session: job_queue.finish(session, lease, result))
