"""What the command line's tests share: the real command as a process, and a real database that a test fills."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from support import fork_server
from support.databases import migrated_sqlite_file

from executor.database import job_queue, job_runs
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.job_queue import Lease, NewJob
from executor.database.tables.jobs import Job, Run
from executor.model import JobResult

#: Longer than any command takes on a busy machine; a test that reaches it has failed.
GIVE_UP_S = 120
OWNER = "node-1"
_numbers = itertools.count(1)


class Cli:
    """The command, its data folder, and the database in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.file = self.data / "smith.db"
        self.env: dict[str, str] = {"SMITH_DATA_DIR": str(self.data), "SMITH_RUN_DIR": str(folder / "run")}

    def __call__(self, *args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `smith` to its end. `env` are environment variables in addition to those of `self.env`."""
        return fork_server.run(args, env=self.environment(**env), cwd=self.folder, stdin=stdin, timeout=GIVE_UP_S)

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "executor", *args]

    def environment(self, **env: str) -> dict[str, str]:
        return {**os.environ, **self.env, **env}

    def ok(self, *args: str, **env: str) -> str:
        """Run a command that must succeed without output on stderr; return what it printed."""
        done = self(*args, **env)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def json(self, *args: str, **env: str) -> Any:
        """Run a command with `--json`; return the JSON document that it printed."""
        return json.loads(self.ok(*args, "--json", **env))

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Open the database. Create and migrate it first if it does not exist."""
        if not self.file.exists():
            self.data.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(_empty_database())
        engine = open_engine(f"sqlite:///{self.file}")
        try:
            yield engine
        finally:
            engine.dispose()

    @contextmanager
    def database_session(self) -> Iterator[Session]:
        with self.engine() as engine, transaction(engine) as session:
            yield session

    def row(self, job_id: int) -> Job:
        with self.engine() as engine, read_only_session(engine) as session:
            job = session.get(Job, job_id)
            assert job is not None
            return job

    def submit(self, **wanted: Any) -> int:
        with self.database_session() as session:
            return submit(session, **wanted)

    def finished(self, result: JobResult, **wanted: Any) -> int:
        """Write a job that ended with `result`."""
        with self.database_session() as session:
            job_id = submit(session, **wanted)
            job_queue.finish(session, claim(session), result)
            return job_id

    def run_of(self, job_id: int, ident: str, *, stdout: str = "", events: list[dict[str, Any]] | None = None) -> Path:
        """Claim a pending job and write a run of it, with artifacts; return their folder. The job stays processing."""
        folder = self.data / "artifacts" / ident
        folder.mkdir(parents=True)
        (folder / "stdout").write_text(stdout, encoding="utf-8")
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events or []))
        with self.database_session() as session:
            lease = claim(session)
            assert lease.job_id == job_id
            job_runs.store_run_start(session, lease, run_ident=ident, playbook="create.yml")
            session.flush()
            job_runs.store_run_end(
                session, ident, status="successful", rc=0, reason="", folder=str(folder), upids=["UPID:pve1:1"]
            )
        return folder

    def add_run(self, job_id: int, ident: str) -> None:
        """Write the row of a run without artifacts."""
        with self.database_session() as session:
            now = datetime.now(UTC)
            session.add(Run(job_id=job_id, ident=ident, attempt=2, playbook="create.yml", started_at=now))


@functools.cache
def _empty_database() -> bytes:
    """Return a migrated database file. It is migrated once for all tests of this process, because that takes long."""
    with tempfile.TemporaryDirectory() as folder:
        return migrated_sqlite_file(Path(folder)).read_bytes()


def submit(session: Session, **wanted: Any) -> int:
    """Write a pending job. `wanted` are the values that matter to the test; the others have defaults."""
    now, number = datetime.now(UTC), next(_numbers)
    values: dict[str, Any] = {
        "fulcrum_id": f"{number:08x}-0000-4000-8000-000000000001",
        "service_id": f"{number:08x}-0000-4000-8000-000000000002",
        "group_id": None,
        "action": "create",
        "params": None,
        "service": None,
        "defect": None,
        "priority": 1,
        "core_created_at": now,
        "deadline_at": now + timedelta(seconds=300),
    }
    job_id = job_queue.submit(session, NewJob(**(values | wanted)))
    assert job_id is not None
    return job_id


def claim(session: Session) -> Lease:
    job = job_queue.claim(session, OWNER, lease_s=30)
    assert job is not None
    return job_queue.lease_of(job)
