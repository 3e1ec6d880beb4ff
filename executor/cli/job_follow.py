"""`smith jobs log --follow`: prints the timeline and the output of a job, until the job has ended."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executor.cli.arguments import EXIT_INTERRUPTED
from executor.cli.context import open_settings
from executor.cli.lookup import find_job
from executor.cli.output import show_text
from executor.cli.store import open_database
from executor.database import audit_queries, queries, run_queries
from executor.database.engine import read_only_session
from executor.errors import EXIT_FAILURE, EXIT_OK
from executor.model import JobStatus
from executor.settings.settings import Settings
from executor.views import artifacts, timeline

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.jobs import Run

#: The interval at which the database and the output of the job's runs are read.
POLL_INTERVAL_S = 0.5


def follow_job(reference: str) -> int:
    """Print the job's timeline and output so far, and then what is added, until the job ends. Return the exit code.

    `reference` is the job's number, its id in FulcrumCore, or the beginning of this id.
    """
    settings = open_settings()
    with open_database(settings) as engine:
        with read_only_session(engine) as session:  # a read-only transaction
            job_id = find_job(session, reference).id
        follower = JobFollower(engine=engine, settings=settings, job_id=job_id)
        try:
            while not follower.print_new_entries_and_output():
                time.sleep(POLL_INTERVAL_S)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return EXIT_OK if follower.job_status == JobStatus.COMPLETED else EXIT_FAILURE


@dataclass(kw_only=True)
class JobFollower:
    """Prints each entry of a job's timeline once, and the output of the job's runs as the output grows."""

    engine: Engine
    settings: Settings
    job_id: int
    job_status: str = ""  #: the job's status when the database was last read
    _printed_entries: set[timeline.TimelineEntry] = field(default_factory=set)
    #: How many bytes of a run's output are printed, keyed by the run's ident.
    _printed_byte_counts: dict[str, int] = field(default_factory=dict)

    def print_new_entries_and_output(self) -> bool:
        """Print the new entries and the new output. Return True if the job has ended and everything is printed."""
        with read_only_session(self.engine) as session:
            job = queries.get_one_job(session, self.job_id)
            # A run's story lists its Ansible tasks, the steps that action plugins report, and its Proxmox tasks.
            # An event is, for example, a job's requeue.
            runs = run_queries.runs_with_stories(session, [job.id])
            events = run_queries.events_of_job(session, job.id)
            # An audit entry is an operator's change of an object, the subject of the entry.
            audit_entries = audit_queries.list_entries(session, subject_id_prefix=job.fulcrum_id)
        self.job_status = job.status
        output_files = {run.ident: self._output_file(run) for run in runs}
        for entry in timeline.entries(job, runs, events, audit_entries):
            self._print_entry_once(entry, output_files)
        for run in runs:
            self._print_new_output(run.ident, output_files[run.ident], has_run_ended=run.ended_at is not None)
        sys.stdout.flush()  # a program that reads from a pipe gets the lines at once
        return timeline.has_job_ended(job)

    def _output_file(self, run: Run) -> Path | None:
        """Return the file with the output of the run, or None if this file is not on this machine."""
        try:
            return artifacts.artifacts_folder(run, self.settings) / "stdout"
        except artifacts.ArtifactsMissing:
            return None

    def _print_entry_once(self, entry: timeline.TimelineEntry, output_files: dict[str, Path | None]) -> None:
        """Print an entry, unless it was printed before.

        An entry with `is_detail` (about an Ansible task, a Proxmox task, or a step that an action plugin reports) is
        printed only if the run's output is not on this machine. Otherwise the output is printed, which shows the same.
        """
        # Two entries with the same text have different times, so they are not equal.
        if entry in self._printed_entries:
            return
        has_output = entry.run_ident is not None and output_files.get(entry.run_ident) is not None
        if entry.is_detail and has_output:
            return
        # The rest of a run's output is printed before the line about the end of the run.
        if entry.kind == "end" and entry.run_ident is not None and has_output:
            self._print_new_output(entry.run_ident, output_files[entry.run_ident], has_run_ended=True)
        self._printed_entries.add(entry)
        show_text(f"{entry.at:%H:%M:%S}Z {entry.text}")

    def _print_new_output(self, ident: str, file: Path | None, *, has_run_ended: bool) -> None:
        """Print the new output of the run. Until the run has ended, print only complete lines."""
        if file is None:
            return
        try:
            with file.open("rb") as stream:
                stream.seek(self._printed_byte_counts.get(ident, 0))
                data = stream.read()
        except OSError:
            return  # no output yet, or the agent is moving the run's artifacts to another folder: the next call retries
        printed_byte_count = len(data) if has_run_ended else data.rfind(b"\n") + 1
        if printed_byte_count:
            self._printed_byte_counts[ident] = self._printed_byte_counts.get(ident, 0) + printed_byte_count
            show_text(data[:printed_byte_count].decode("utf-8", "replace").rstrip("\n"))
