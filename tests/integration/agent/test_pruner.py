"""What the pruner deletes by age and by size (rows of the database, and artifacts of runs), and what it keeps."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from support.databases import new_job, submit

from executor.agent import pruner
from executor.agent.pruner import BATCH_SIZE, Pruner
from executor.database import job_queue, job_runs, mappings, outbox
from executor.database.engine import read_only_session, transaction
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import JobResult, ReportState
from executor.settings.settings import Settings

RETENTION_S = 3600
MIB = 1024 * 1024
MakePruner = Callable[..., Pruner]


@pytest.fixture
def make_pruner(engine: Engine, tmp_path: Path) -> MakePruner:
    """Return a function that makes a pruner. By default, it keeps rows and artifacts for an hour, of any size."""

    def make(**changed: Any) -> Pruner:
        defaults = {"smith_job_retention_s": RETENTION_S, "smith_artifacts_max_mib": 0, "smith_data_dir": tmp_path}
        return Pruner(engine=engine, settings=Settings(**(defaults | changed)))

    return make


def store_ended_job(engine: Engine, ident: str, *, age_s: float, state: ReportState = ReportState.REPORTED) -> int:
    """Store a job that ended the given time ago, with one run."""
    submit(engine)
    with transaction(engine) as session:
        job = job_queue.claim(session, "me", lease_s=30)
        assert job is not None
        lease = job_queue.lease_of(job)
        job_runs.store_run_start(session, lease, run_ident=ident, playbook="create.yml")
        job_queue.finish(session, lease, JobResult(succeeded=True))
        session.execute(update(Job).where(Job.id == job.id).values(finished_at=utc_now() - timedelta(seconds=age_s)))
        if state is not ReportState.DUE:
            outbox.set_report_state(session, job.id, state)
    return job.id


def create_artifacts(tmp_path: Path, ident: str, *, age_s: float, mib: float = 0.0) -> Path:
    """Create the folder that a run has left, with the given age and size."""
    folder = tmp_path / "artifacts" / ident
    folder.mkdir(parents=True)
    for name in ("events.jsonl", "stdout", "rc", "status"):
        (folder / name).touch()
    (folder / "events.jsonl").write_bytes(b"x" * int(mib * MIB))
    written_at = time.time() - age_s
    os.utime(folder, (written_at, written_at))
    return folder


def row_counts(engine: Engine) -> dict[str, int]:
    with read_only_session(engine) as session:
        return {table.__name__: session.scalar(select(func.count()).select_from(table)) or 0 for table in (Job, Run)}


def store_deleted_mapping(engine: Engine, vmid: int, *, age_s: float) -> None:
    with transaction(engine) as session:
        mapping = mappings.reserve(session, service_id=str(uuid.uuid4()), cluster="c", vmid=vmid, name="web")
        assert mapping is not None
        mappings.mark_mapping_deleted(session, mapping.id, "gone")
        deleted_at = utc_now() - timedelta(seconds=age_s)
        session.execute(update(Mapping).where(Mapping.id == mapping.id).values(deleted_at=deleted_at))


def mapped_vmids(engine: Engine) -> list[int]:
    with read_only_session(engine) as session:
        return list(session.scalars(select(Mapping.vmid).order_by(Mapping.vmid)))


def test_the_rows_of_mappings_that_were_deleted_long_ago_are_removed(engine: Engine, make_pruner: MakePruner) -> None:
    for number in range(BATCH_SIZE + 1):
        store_deleted_mapping(engine, 1000 + number, age_s=RETENTION_S + 60)
    store_deleted_mapping(engine, 101, age_s=RETENTION_S - 60)
    with transaction(engine) as session:
        mappings.reserve(session, service_id=str(uuid.uuid4()), cluster="c", vmid=100, name="web")
        session.execute(update(Mapping).where(Mapping.vmid == 100).values(created_at=utc_now() - timedelta(days=999)))
    make_pruner(smith_vmid_quarantine_s=0).prune()
    assert mapped_vmids(engine) == [100, 101]


def test_the_row_of_a_mapping_stays_while_its_vmid_is_in_quarantine(engine: Engine, make_pruner: MakePruner) -> None:
    store_deleted_mapping(engine, 101, age_s=RETENTION_S + 60)
    make_pruner(smith_vmid_quarantine_s=RETENTION_S + 120).prune()
    assert mapped_vmids(engine) == [101]


def test_an_old_job_is_deleted_with_its_run_and_artifacts(
    engine: Engine, make_pruner: MakePruner, tmp_path: Path
) -> None:
    store_ended_job(engine, "old", age_s=RETENTION_S + 60)
    store_ended_job(engine, "young", age_s=RETENTION_S - 60)
    old, young = (create_artifacts(tmp_path, ident, age_s=5) for ident in ("old", "young"))
    make_pruner().prune()
    assert (row_counts(engine), old.exists(), young.exists()) == ({"Job": 1, "Run": 1}, False, True)


def test_a_job_whose_report_is_due_is_never_deleted_nor_are_its_artifacts(
    engine: Engine, make_pruner: MakePruner, tmp_path: Path
) -> None:
    store_ended_job(engine, "due", age_s=999_999, state=ReportState.DUE)
    folder = create_artifacts(tmp_path, "due", age_s=5)
    make_pruner().prune()
    assert (row_counts(engine), folder.exists()) == ({"Job": 1, "Run": 1}, True)


@pytest.mark.parametrize("state", [ReportState.ENDED_BY_FULCRUM, ReportState.ABANDONED])
def test_jobs_whose_report_is_overtaken_or_abandoned_are_deleted_too(
    engine: Engine, make_pruner: MakePruner, state: ReportState
) -> None:
    store_ended_job(engine, "old", age_s=RETENTION_S + 60, state=state)
    make_pruner().prune()
    assert row_counts(engine) == {"Job": 0, "Run": 0}


def test_one_execution_deletes_several_batches(
    engine: Engine, make_pruner: MakePruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "BATCH_SIZE", 2)
    for number in range(5):
        store_ended_job(engine, f"old-{number}", age_s=RETENTION_S + 60)
    make_pruner().prune()
    assert row_counts(engine) == {"Job": 0, "Run": 0}


def test_artifacts_without_rows_are_deleted_by_age(engine: Engine, make_pruner: MakePruner, tmp_path: Path) -> None:
    old, young = (
        create_artifacts(tmp_path, "old", age_s=RETENTION_S + 60),
        create_artifacts(tmp_path, "young", age_s=60),
    )
    make_pruner().prune()
    assert (old.exists(), young.exists()) == (False, True)


def test_the_oldest_artifacts_over_the_size_limit_are_deleted_first(
    engine: Engine, make_pruner: MakePruner, tmp_path: Path
) -> None:
    ages = {"a": 3000, "b": 2400, "c": 1800, "d": 1200}
    folders = {name: create_artifacts(tmp_path, name, age_s=age_s, mib=0.5) for name, age_s in ages.items()}
    make_pruner(smith_artifacts_max_mib=1).prune()
    assert [name for name, folder in folders.items() if folder.exists()] == ["c", "d"]


def test_the_size_limit_does_not_apply_to_young_artifacts_whose_run_may_not_have_ended(
    engine: Engine, make_pruner: MakePruner, tmp_path: Path
) -> None:
    young = create_artifacts(tmp_path, "young", age_s=5, mib=3)
    make_pruner(smith_artifacts_max_mib=1).prune()
    assert young.exists()


def test_a_size_limit_of_0_means_no_limit(engine: Engine, make_pruner: MakePruner, tmp_path: Path) -> None:
    folder = create_artifacts(tmp_path, "large", age_s=1200, mib=3)
    make_pruner(smith_artifacts_max_mib=0).prune()
    assert folder.exists()


def test_files_and_the_targets_of_links_are_kept(engine: Engine, make_pruner: MakePruner, tmp_path: Path) -> None:
    """The artifacts of a run are a folder. So a file is not deleted, and a link is not followed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x" * 2 * MIB)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "note.txt").touch()
    (tmp_path / "artifacts" / "link").symlink_to(elsewhere)
    for path in (elsewhere, tmp_path / "artifacts" / "note.txt"):
        os.utime(path, (0, 0))
    make_pruner(smith_artifacts_max_mib=1).prune()
    assert (elsewhere / "precious").exists()
    assert (tmp_path / "artifacts" / "note.txt").exists()


def test_a_pruner_that_finds_nothing_to_delete_changes_nothing(engine: Engine, make_pruner: MakePruner) -> None:
    make_pruner().prune()
    make_pruner().prune()
    assert row_counts(engine) == {"Job": 0, "Run": 0}


def test_rows_of_agent_processes_that_were_last_seen_long_ago_are_deleted(
    engine: Engine, make_pruner: MakePruner
) -> None:
    now = utc_now()
    with transaction(engine) as session:
        for name, age_s in (("old", RETENTION_S + 60), ("living", 5)):
            seen_at = now - timedelta(seconds=age_s)
            facts = {"host": "h", "pid": 1, "version": "1", "concurrency_wanted": 1, "concurrency": 1}
            session.add(AgentProcessRow(id=name, started_at=seen_at, seen_at=seen_at, **facts))
    make_pruner().prune()
    with read_only_session(engine) as session:
        assert session.scalars(select(AgentProcessRow.id)).all() == ["living"]


def test_other_writers_can_write_between_two_batches(
    sqlite_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poller must be able to write while a million rows are pruned. So no batch keeps the lock until the next."""
    monkeypatch.setattr(pruner, "BATCH_SIZE", 1)
    monkeypatch.setattr(pruner, "BATCH_WAIT_S", 0)
    for number in range(3):
        store_ended_job(sqlite_engine, f"old-{number}", age_s=RETENTION_S + 60)
        create_artifacts(tmp_path, f"old-{number}", age_s=5)
    written = []

    def write_between(path: Path, **_: Any) -> None:
        with transaction(sqlite_engine) as session:
            written.append(job_queue.submit(session, new_job()))

    monkeypatch.setattr(pruner.shutil, "rmtree", write_between)
    defaults = {"smith_job_retention_s": RETENTION_S, "smith_artifacts_max_mib": 0, "smith_data_dir": tmp_path}
    Pruner(engine=sqlite_engine, settings=Settings(**defaults)).prune()
    assert len(written) == 3
