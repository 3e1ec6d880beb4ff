"""Keeps a command and the agent from changing one VM at the same time.

Before a command runs a playbook that changes a service's VM, it stores the run in the table `manual_runs`, and
renews the run's lease until the playbook has ended. Meanwhile no agent claims a job of the service. The command
starts the playbook through a second process, the guard. If the lease cannot be renewed, the guard ends the playbook
before the lease expires, even while the command itself is suspended.

Without a database there is no agent that could work on the VM, so nothing is stored.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executor.cli.arguments import CommandFailed
from executor.cli.output import show_error
from executor.cli.output_excerpt import OutputExcerpt
from executor.database import audit, manual_runs
from executor.database.engine import transaction, write_with_retry
from executor.database.manual_runs import NewManualRun
from executor.database.tables.jobs import Job, ManualRun
from executor.errors import DatabaseError
from executor.model import JobResult, RunStatus
from executor.shared.run_until import NO_LIMIT, boottime_s

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

#: The duration of a lease. If a command is killed, the jobs of the service wait until the run's lease has expired.
LEASE_S = 60.0
#: The interval at which a lease is renewed.
RENEWAL_INTERVAL_S = 10.0
#: The share of a lease after which the guard ends the playbook. The playbook's processes end in the rest of the lease.
GUARD_SHARE_OF_LEASE = 3 / 4
#: The maximum time for storing the end of a run. If that fails, jobs of the service wait until the lease expires.
STORE_END_TIMEOUT_S = 10.0
#: The stored reason of a run without a result.
REASON_INTERRUPTED = "the command was interrupted"


@dataclass(kw_only=True)
class ServiceLock:
    """The lock of a service: the run of a playbook that a command has started, and the run's lease in the database.

    Without a service or without a database, there is no lease, and nothing is stored.
    """

    engine: Engine | None
    run_ident: str  #: the name of the run; empty if the run is not stored
    #: Called with each new deadline: the moment at which the guard must end the playbook, by the clock `boottime_s`.
    _on_deadline_changed: Callable[[float], None] = lambda _deadline_s: None
    _deadline_s: float = NO_LIMIT
    #: What the playbook has printed, for storage in the database.
    output: OutputExcerpt = field(default_factory=OutputExcerpt)
    _result: JobResult | None = None
    _has_run_ended: threading.Event = field(default_factory=threading.Event)

    def set_deadline_callback(self, on_deadline_changed: Callable[[float], None]) -> None:
        """Call `on_deadline_changed` now and after each renewal, with the moment at which the playbook must end."""
        self._on_deadline_changed = on_deadline_changed
        on_deadline_changed(self._deadline_s)

    def set_result_to_store(self, result: JobResult) -> None:
        """Set the result that `store_end` stores. A run for which no result is set is stored as interrupted."""
        self._result = result

    def extend_deadline(self, renewed_at_s: float) -> None:
        """Let the playbook continue for GUARD_SHARE_OF_LEASE of the lease that was renewed at `renewed_at_s`."""
        self._deadline_s = renewed_at_s + LEASE_S * GUARD_SHARE_OF_LEASE
        self._on_deadline_changed(self._deadline_s)

    def renew_until_end(self, engine: Engine) -> None:
        """Renew the lease and store the output so far, until the run has ended. Runs in a thread of its own."""
        wait_s = RENEWAL_INTERVAL_S
        while not self._has_run_ended.wait(wait_s):
            renewal_started_at_s = boottime_s()
            output = self.output.text_if_changed()
            try:
                with transaction(engine) as session:
                    is_renewed = manual_runs.renew(session, self.run_ident, lease_s=LEASE_S, output=output)
            except DatabaseError:
                pass  # the guard ends the playbook if no renewal succeeds in time
            else:
                # Either the lease had expired, and the playbook must end now, or `store_end` has stored the run's end.
                if not is_renewed:
                    self._on_deadline_changed(renewal_started_at_s)
                    return
                self.extend_deadline(renewal_started_at_s)
            # After a slow renewal, little of the lease is left. So the next wait is shorter by the renewal's duration.
            wait_s = max(0.0, RENEWAL_INTERVAL_S - (boottime_s() - renewal_started_at_s))

    def store_end(self, engine: Engine) -> None:
        """Stop the renewals, and store the end of the run. If the storing fails, the lease expires by itself."""
        self._has_run_ended.set()
        status, reason, upids = RunStatus.CANCELED, REASON_INTERRUPTED, []
        if self._result is not None:
            status = RunStatus.SUCCESSFUL if self._result.succeeded else RunStatus.FAILED
            reason, upids = self._result.operator_message, list(self._result.vm.get("upids") or [])

        def finish(session: Session) -> None:
            output = self.output.text()
            manual_runs.finish(session, self.run_ident, status=status, reason=reason, upids=upids, output=output)

        try:
            write_with_retry(engine, finish, give_up_after_s=STORE_END_TIMEOUT_S)
        except DatabaseError as error:
            problem = f"the end of run {self.run_ident} could not be stored"
            show_error(f"{problem}, so jobs of the service wait for a minute: {error}")


@contextmanager
def locked_service(
    engine: Engine | None, *, action: str, service_id: str, vmid: int | None, audit_reason: str | None = None
) -> Iterator[ServiceLock]:
    """Store the run of an action, and hold the run's lease during the block.

    With `audit_reason`, also store an audit entry with the verb `play`. If `audit_reason` is None, the caller writes
    the audit entry.

    Raises CommandFailed if a job or another command works on the service.
    """
    if engine is None or not service_id:
        yield ServiceLock(engine=None, run_ident="")
        return
    new_run = NewManualRun(
        ident=f"{action}-{uuid.uuid4().hex[:12]}",
        service_id=service_id,
        vmid=vmid,
        action=action,
        who=audit.operator_name(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )
    started_at_s = boottime_s()
    _store_start(engine, new_run, audit_reason)
    lock = ServiceLock(engine=engine, run_ident=new_run.ident)
    lock.extend_deadline(started_at_s)
    threading.Thread(target=lock.renew_until_end, args=[engine], name=f"lease-{lock.run_ident}", daemon=True).start()
    try:
        yield lock
    finally:
        lock.store_end(engine)


def lock_service_of_vm(
    engine: Engine | None, action: str, vm: Mapping[str, Any], audit_reason: str
) -> AbstractContextManager[ServiceLock]:
    """Call `locked_service` for the service and the VMID in a playbook's variable `vm`, with an audit entry."""
    service_id, vmid = str(vm.get("service_id") or ""), vm.get("vmid")
    return locked_service(engine, action=action, service_id=service_id, vmid=vmid, audit_reason=audit_reason)


def _store_start(engine: Engine, new_run: NewManualRun, audit_reason: str | None) -> None:
    """Store the run and, if `audit_reason` is given, an audit entry in the same transaction.

    Raises CommandFailed if a job or another command works on the service.
    """
    with transaction(engine) as session:
        obstacle = manual_runs.start(session, new_run, lease_s=LEASE_S)
        if obstacle is not None:
            if isinstance(obstacle, Job):
                raise CommandFailed(describe_running_job(obstacle))
            raise CommandFailed(describe_manual_run(obstacle))
        if audit_reason is None:
            return
        audit.add_entry(
            session,
            who=new_run.who,
            verb="play",
            subject_kind="service",
            subject_id=new_run.service_id,
            after={"action": new_run.action, "vmid": new_run.vmid, "run": new_run.ident},
            reason=audit_reason,
        )


def describe_running_job(job: Job) -> str:
    """Return the error message for a command that must not run while this job of the same service is running."""
    return (
        f"job {job.id} ({job.action}) of this service is running: wait for its end, or cancel it with "
        f"`smith jobs cancel {job.id}`"
    )


def describe_manual_run(run: ManualRun) -> str:
    """Return the error message for a command that must not run while an operator runs a playbook for the service."""
    return (
        f"{run.who} has been running {run.action} for this service by hand since {run.started_at:%H:%M:%S}Z "
        f"(run {run.ident}, process {run.pid} on {run.host}): wait for the end of this run"
    )
