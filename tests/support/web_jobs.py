"""Fills a database with what the pages show: jobs of each status, a running one with output, VMs, hostile texts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from support.cli_world import claim, submit

from executor.database import job_events, job_queue, job_runs, queries
from executor.database.engine import transaction
from executor.database.tables.jobs import Run
from executor.database.tables.mappings import Mapping
from executor.model import JobEventKind, JobResult, MappingState
from executor.shared.error_codes import ErrorCode

OTHER_SERVICE = "55555555-0000-4000-8000-000000000009"
#: Texts that would run a script, or load something, if a page did not escape them.
HOSTILE = '"><script>window.hacked=1</script><img src=//evil.example/x onerror=window.hacked=1>{{7*7}}\x1b[31m\u202e'


@dataclass(frozen=True)
class Filled:
    """The ids of the stored jobs, and the file of the running job's output."""

    completed: int
    failed: int
    running: int
    pending: int
    output: Path


def fill(engine: Engine, folder: Path) -> Filled:
    """Store one job of each status and a mapping, all with hostile texts."""
    service = {"name": f"web {HOSTILE}"[:200]}
    with transaction(engine) as session:
        completed = submit(session, service=service)
        job_queue.finish(session, claim(session), JobResult(succeeded=True, vm={"vmid": 100, "name": HOSTILE}))
        failed = submit(session, action="Evil<b>", service=service)
        result = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail=f"no room {HOSTILE}")
        job_queue.finish(session, claim(session), result)
        job_events.add_event(session, failed, JobEventKind.REPORT_POSTPONED, HOSTILE)
        running = submit(session, service=service, params={"cores": 2, "note": HOSTILE, "password": "hunter22"})
        lease = claim(session)
        job_runs.store_run_start(session, lease, run_ident="create-1", playbook="create.yml")
        add_mapping(
            session, vmid=100123, name=f"vm{HOSTILE}"[:100], service_id="5" * 8 + "-0000-4000-8000-000000000009"
        )
    set_story(engine, running, text=f"cloning {HOSTILE}")
    with transaction(engine) as session:
        pending = submit(session, action="stop", service=service)
    output = folder / "run" / "create-1" / "kept" / "stdout"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(f"TASK [Create the VM]\n{HOSTILE}\n", encoding="utf-8")
    return Filled(completed, failed, running, pending, output)


def set_story(engine: Engine, job_id: int, *, text: str) -> None:
    """Store a story of the job's run: a running Ansible task, and a step with this text."""
    task = {"task": "Create the VM", "at": 0.4, "seconds": None, "outcome": "running", "message": ""}
    story: dict[str, Any] = {"tasks": [task], "steps": [{"at": 1.2, "text": text}], "proxmox_tasks": []}
    with transaction(engine) as session:
        session.query(Run).filter(Run.job_id == job_id).update({"story": story})


def end_run(engine: Engine, job_id: int, *, succeeded: bool = True) -> None:
    """End the run of a job, and the job."""
    with transaction(engine) as session:
        run = session.query(Run).filter(Run.job_id == job_id).one()
        job_runs.store_run_end(session, run.ident, status="successful", rc=0, reason="", folder="", upids=[])
        lease = job_queue.lease_of(queries.get_one_job(session, job_id))
        job_queue.finish(session, lease, JobResult(succeeded=succeeded, vm={"vmid": 100124}))


def add_mapping(session: Any, **values: Any) -> None:
    """Store the mapping of a VM."""
    now = datetime.now(UTC)
    fields = {"cluster": "default", "node": "pve1", "marker": "m", "state": MappingState.ACTIVE}
    times = {"created_at": now - timedelta(days=1), "updated_at": now}
    session.add(Mapping(**(fields | times | values)))
