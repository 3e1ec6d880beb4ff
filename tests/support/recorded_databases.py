"""Databases as earlier versions left them, as SQL text in tests/data/databases: what an upgrade meets at a provider.

Each release records the database of its own schema, with work under way, and from then on nobody changes the files:

    python tests/support/recorded_databases.py            the newest schema's, before a release is tagged
    python tests/support/recorded_databases.py 0001       an earlier one's, as long as today's models still fit it
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, inspect, text
from sqlalchemy.orm import Session

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # for a call by hand; pytest has both already

from support.databases import new_job, postgres_binaries, postgres_cluster  # noqa: E402 (see above)

from executor.database import audit, job_queue, mappings  # noqa: E402 (see above)
from executor.database import engine as database  # noqa: E402 (see above)
from executor.database.engine import Node, open_engine, transaction, utc_now  # noqa: E402 (see above)
from executor.database.job_queue import Lease  # noqa: E402 (see above)
from executor.errors import ErrorCode  # noqa: E402 (see above)
from executor.model import JobResult, ReportState  # noqa: E402 (see above)

FOLDER = TESTS / "data" / "databases"
#: The agent that was at work when the database was left.
OWNER = "node-of-then"
CLUSTER = "pve"
#: pg_dump's comments name versions, and a line with a backslash is for psql alone.
NOT_SQL = re.compile(r"^(--|\\)")


def file_of(revision: str, kind: str) -> Path:
    """Return where the database of a schema is recorded, for `sqlite` or `postgresql`."""
    return FOLDER / f"{revision}.{kind}.sql"


def revisions() -> list[str]:
    """Return the schemas of which there are records."""
    return sorted({path.name.partition(".")[0] for path in FOLDER.glob("*.sql")})


def replay(engine: Engine, revision: str) -> None:
    """Make an empty database what was recorded."""
    kind = engine.dialect.name
    script = file_of(revision, kind).read_text(encoding="utf-8")
    with contextlib.closing(engine.raw_connection()) as connection:
        if kind == "sqlite":
            connection.driver_connection.executescript(script)  # type: ignore[union-attr]
        else:
            connection.cursor().execute(script)
        connection.commit()
    engine.dispose()  # what the script has set holds for its connection


# --- what is under way ------------------------------------------------------------------------------------------------


def fill(engine: Engine) -> None:
    """Write jobs in every status, their runs and mappings, by the program's own verbs."""
    with transaction(engine) as session:
        _node(session)
        _ended(session, "reported", ReportState.DUE, settled=ReportState.REPORTED)
        _ended(session, "due", ReportState.DUE)
        _failed(session, "failed", settled=ReportState.ORPHANED)
        _failed(session, "failed-due")
        _vm_that_is_gone(session)
        _in_flight(session)
        lease = _claimed(session, "put-back")
        job_queue.put_back(session, lease, pause_s=5, reason="PVE_UNREACHABLE: no connection")
        _claimed(session, "claim-not-sent")
        job_queue.submit(session, new_job(age=100, action="start", params={"text": "ümläut 🙂", "number": 1.5}))
        job_queue.submit(session, new_job(age=101, defect="action: missing"))
        if inspect(session.connection()).has_table("audit"):
            audit.note(session, who="smith", verb="cancelled", kind="job", subject=1, reason="by mistake")


def _node(session: Session) -> None:
    now = utc_now()
    session.add(
        Node(id=OWNER, host="pve-ops", pid=7, version="then", started_at=now, seen_at=now, concurrency_wanted=8,
             concurrency=8)
    )  # fmt: skip
    job_queue.tick(session, "Heartbeat", 10)
    job_queue.tock(session, "Heartbeat", error="FulcrumUnavailable: PUT /agents/me/status: HTTP 503")


def _claimed(session: Session, name: str, **wanted: object) -> Lease:
    """Write a job with the service of that name, and claim it."""
    service = {"name": name, "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}
    assert job_queue.submit(session, new_job(service=service, priority=9, **wanted)) is not None
    job = job_queue.claim(session, OWNER, lease_s=30)
    assert job is not None
    assert (job.service or {})["name"] == name, "somebody else's job was next"
    return job_queue.lease_of(job)


def _started(session: Session, name: str, vmid: int, **wanted: object) -> tuple[Lease, int]:
    """Write a job whose playbook runs; return its lease and its mapping's number."""
    lease = _claimed(session, name, **wanted)
    job_queue.note_claim_sent(session, lease)
    job_queue.note_claimed(session, lease)
    service_id = session.scalar(text("SELECT service_id FROM jobs WHERE id = :id"), {"id": lease.job_id})
    mapping = mappings.reserve(session, service_id=service_id, cluster=CLUSTER, vmid=vmid, name=f"{name}-{vmid}")
    assert mapping is not None
    job_queue.note_started(session, lease, run_ident=f"create-{name}", playbook="create.yml")
    session.flush()
    return lease, mapping.id


def _ended(session: Session, name: str, report: ReportState, settled: ReportState | None = None) -> None:
    vmid = 100_000 + len(name)
    lease, mapping_id = _started(session, name, vmid)
    vm = {"vmid": vmid, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}
    job_queue.note_run_ended(
        session, f"create-{name}", status="successful", rc=0, reason="", folder=f"artifacts/create-{name}",
        upids=["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"],
    )  # fmt: skip
    mappings.apply_result(session, mapping_id, vm)
    job_queue.finish(session, lease, JobResult(succeeded=True, vm=vm), report=report)
    if settled:
        job_queue.note_reported(session, lease.job_id, settled)


def _failed(session: Session, name: str, settled: ReportState | None = None) -> None:
    lease = _claimed(session, name)
    job_queue.note_claimed(session, lease)
    result = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no node has room")
    job_queue.finish(session, lease, result)
    if settled:
        job_queue.note_reported(session, lease.job_id, settled, "HTTP 400")


def _vm_that_is_gone(session: Session) -> None:
    """A deleted VM's history, and one that vanished."""
    for name, vmid in (("deleted", 100_050), ("orphaned", 100_051)):
        lease, mapping_id = _started(session, name, vmid)
        gone = {"vmid": vmid, "status": "absent"}
        if name == "deleted":
            mappings.apply_result(session, mapping_id, gone)
        else:
            mappings.mark_orphaned(session, mapping_id, "vanished")
        job_queue.finish(session, lease, JobResult(succeeded=True, vm=gone))
        job_queue.note_reported(session, lease.job_id, ReportState.REPORTED)


def _in_flight(session: Session) -> None:
    """A create whose playbook runs, and one that an operator has cancelled meanwhile."""
    _started(session, "cloning", 100_060)
    lease, _ = _started(session, "cancelled", 100_061)
    job_queue.request_cancel(session, lease.job_id)


# --- recording --------------------------------------------------------------------------------------------------------


def record(revision: str) -> Iterator[Path]:
    """Write the files of one schema, which its own migrations have made; yield them."""
    with tempfile.TemporaryDirectory() as folder:
        engine = _filled(f"sqlite:///{folder}/smith.db", revision)
        with contextlib.closing(engine.raw_connection()) as connection:
            lines = list(connection.driver_connection.iterdump())  # type: ignore[union-attr]
        engine.dispose()
        yield _write(revision, "sqlite", "\n".join(lines))
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL's server is needed: apt install postgresql")
    with postgres_cluster(binaries) as cluster, cluster.fresh_database("template0") as url:
        _filled(url, revision).dispose()
        options = ["--inserts", "--no-owner", "--no-privileges", "--host", cluster.folder, "--username=smith"]
        dump = [binaries / "pg_dump", *options, url.rpartition("/@/")[2].partition("?")[0].rpartition("/")[2]]
        done = subprocess.run(dump, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line and not NOT_SQL.match(line)]
        yield _write(revision, "postgresql", "\n".join(lines))


def _filled(url: str, revision: str) -> Engine:
    engine = open_engine(url)
    database.upgrade(engine, revision)
    fill(engine)
    return engine


def _write(revision: str, kind: str, script: str) -> Path:
    file = file_of(revision, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    for written in record(sys.argv[1] if len(sys.argv) > 1 else database.head_revision()):
        print(written.relative_to(TESTS.parent))
