"""Fills a database with ended jobs and their runs, mappings and audit entries, for the benchmark bench/pages.py."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert

from executor.database.engine import transaction
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import JobStatus, MappingState, ReportState

Json = dict[str, Any]
#: The number of rows that one INSERT adds.
ROWS_PER_INSERT = 5_000
#: Of this number of jobs, one has failed.
JOBS_PER_FAILURE = 10
#: Of this number of jobs, one has a mapping and an audit entry.
JOBS_PER_MAPPING = 20
#: The number of FulcrumCore's service groups to which the jobs belong.
GROUP_COUNT = 97
#: The time from the creation of a job to the creation of the next job: 100,000 jobs fill about two weeks.
JOB_INTERVAL_S = 12
#: The number of a job plus this number is the VMID of the job's VM. The first job has the number 0.
VMID_OFFSET = 200_000


def add_ended_jobs(engine: Engine, count: int) -> None:
    """Add `count` ended jobs, each with a run. For every JOBS_PER_MAPPING-th job, add a mapping and an audit entry."""
    now = utc_now()
    for start in range(0, count, ROWS_PER_INSERT):
        numbers = range(start, min(start + ROWS_PER_INSERT, count))
        jobs = [_job_row(number, now - timedelta(seconds=JOB_INTERVAL_S * (count - number))) for number in numbers]
        with transaction(engine) as session:
            session.execute(insert(Job), jobs)
            session.execute(insert(Run), [_run_row(number, job) for number, job in zip(numbers, jobs, strict=True)])
            jobs_with_mapping = [
                (number, job) for number, job in zip(numbers, jobs, strict=True) if number % JOBS_PER_MAPPING == 0
            ]
            session.execute(insert(Mapping), [_mapping_row(number, job) for number, job in jobs_with_mapping])
            session.execute(insert(AuditEntry), [_audit_row(job) for _number, job in jobs_with_mapping])


def _job_row(number: int, created_at: datetime) -> Json:
    """Return the row of an ended job. `core_created_at` is the time at which FulcrumCore created the job."""
    has_failed = number % JOBS_PER_FAILURE == 0
    return {
        "fulcrum_id": str(uuid.UUID(int=number)),
        "service_id": str(uuid.uuid4()),
        "group_id": f"group-{number % GROUP_COUNT}",
        "action": ("create", "start", "stop", "update")[number % 4],
        "params": {"cores": 2, "memoryMb": 2048, "diskGb": 10},
        "service": {"name": f"service-{number}", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10}},
        "priority": 1,
        "status": JobStatus.FAILED if has_failed else JobStatus.COMPLETED,
        "error_code": "CAPACITY" if has_failed else None,
        "error_message": "CAPACITY: no node has enough memory" if has_failed else None,
        "result": None if has_failed else {"vmid": VMID_OFFSET + number, "name": f"web-{number}"},
        "attempt": 1,
        "epoch": 1,
        "core_created_at": created_at,
        "deadline_at": created_at + timedelta(minutes=5),
        "received_at": created_at,
        "started_at": created_at + timedelta(seconds=1),
        "finished_at": created_at + timedelta(seconds=9),
        "reported_at": created_at + timedelta(seconds=10),
        "report_state": ReportState.REPORTED,
    }


def _run_row(number: int, job: Json) -> Json:
    """Return the row of a job's run. `story` is the summary of the run that the job's web page shows.

    In `story`, `task` is the name of an Ansible task, and `at` is its start, in seconds since the start of the run. The
    list `steps` is for the operations that an action plugin reports, such as "cloning".
    """
    tasks = [{"task": f"Task {at_s}", "at": at_s, "seconds": 0.4, "outcome": "ok", "message": ""} for at_s in range(5)]
    return {
        "ident": f"run-{number}",
        "job_id": number + 1,
        "attempt": 1,
        "playbook": "create.yml",
        "status": "successful",
        "rc": 0,
        "started_at": job["started_at"],
        "ended_at": job["finished_at"],
        "story": {"tasks": tasks, "steps": [], "proxmox_tasks": []},
    }


def _mapping_row(number: int, job: Json) -> Json:
    is_deleted = number % (2 * JOBS_PER_MAPPING) == 0
    return {
        "service_id": job["service_id"],
        "cluster": "default",
        "vmid": VMID_OFFSET + number,
        "node": "pve1",
        "name": f"web-{number}",
        "marker": "m",
        "state": MappingState.DELETED if is_deleted else MappingState.ACTIVE,
        "created_at": job["finished_at"],
        "updated_at": job["finished_at"],
    }


def _audit_row(job: Json) -> Json:
    return {
        "at": job["finished_at"],
        "who": "ada (web)",
        "verb": "retry",
        "subject_kind": "job",
        "subject_id": job["fulcrum_id"],
        "before": {"attempt": 1},
        "after": {"attempt": 2},
    }
