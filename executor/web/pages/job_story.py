"""Reads the data of one job from the database, for the page of the job.

The story of a run is a summary of its Ansible tasks, its Proxmox tasks, and its steps: the operations that its action
plugins report, such as "cloning the template 9000".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.database import audit_queries, mapping_queries, queries, run_queries
from executor.database.engine import read_only_session
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job, JobEvent, Run
from executor.database.times import utc_now
from executor.views import timeline
from executor.views.job_rows import service_and_vm_fields

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class JobDetails:
    """The data from the database that the page of a job shows."""

    job: Job
    runs: list[Run]  #: with the deferred column `story` loaded
    events: list[JobEvent]  #: the unusual events of the job, such as a requeue
    audit_entries: list[AuditEntry]  #: the entries about the job in the audit log
    service_and_vm_fields: dict[str, Any]  #: the fields `service_name`, `vm_name` and `vmid`

    @property
    def entries(self) -> list[timeline.TimelineEntry]:
        """The entries of the job's timeline."""
        return timeline.entries(self.job, self.runs, self.events, self.audit_entries)

    @property
    def current_state_text(self) -> str:
        """A text that says what an open job does now; '' for an ended job."""
        return "" if timeline.has_job_ended(self.job) else timeline.current_state_text(self.job, self.runs, utc_now())


def read_job_details(engine: Engine, job_id: int) -> JobDetails | None:
    """Read the data of a job; return None if there is no such job. Raises DatabaseError."""
    with read_only_session(engine) as session:
        job = queries.get_job(session, job_id)
        if job is None:
            return None
        mapping_by_service = mapping_queries.current_mappings_by_service(
            session, [job.service_id] if job.service_id else []
        )
        return JobDetails(
            job=job,
            runs=list(run_queries.runs_with_stories(session, [job.id])),
            events=list(run_queries.events_of_job(session, job.id)),
            # A complete id as the prefix selects only the entries about this job.
            audit_entries=list(audit_queries.list_entries(session, subject_id_prefix=job.fulcrum_id)),
            service_and_vm_fields=service_and_vm_fields(job, mapping_by_service),
        )
