"""Reads each job that has viewers once per second, for all of its viewers together.

A viewer is a browser that shows the page of the job. The module `job_story` reads the job from the database, and the
template `job_story.html` shows its status, error and timeline.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from executor.database.tables.jobs import Run
from executor.settings.settings import Settings
from executor.views import artifacts, timeline
from executor.views.text import sanitized
from executor.web.agent_view import AgentView
from executor.web.pages.job_story import read_job_details
from executor.web.pages.output_reader import RunOutput
from executor.web.pages.rendering import Renderer

#: Interval at which a job that has viewers is read.
JOB_READ_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """The state of a job at one point in time, which the job's viewers see."""

    timeline_html: str  #: the job's status, error and timeline as HTML
    current_state_text: str  #: what an open job does now, without secrets; '' for an ended job
    has_job_ended: bool
    outputs: tuple[RunOutput, ...]  #: the files with the output of the job's playbook runs


class JobReader:
    """Reads one job for all of its viewers, about once per JOB_READ_INTERVAL_S.

    An AgentView gives access to the agent, here to its database engine and settings.
    """

    def __init__(self, view: AgentView, renderer: Renderer, job_id: int) -> None:
        self._view = view
        self._renderer = renderer
        self.job_id = job_id
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._snapshot: JobSnapshot | None = None
        self.viewer_count = 0

    async def latest_snapshot(self) -> JobSnapshot | None:
        """Return the state of the job, which is at most JOB_READ_INTERVAL_S old; None if the job does not exist."""
        async with self._lock:
            # A viewer calls this method about every JOB_READ_INTERVAL_S, sometimes a little earlier. Without the
            # factor 0.9, a call that is a little early would return the old state.
            if time.monotonic() - self._read_at >= JOB_READ_INTERVAL_S * 0.9:
                self._snapshot = await run_in_threadpool(self._read_snapshot)
                self._read_at = time.monotonic()
            return self._snapshot

    def _read_snapshot(self) -> JobSnapshot | None:
        details = read_job_details(self._view.engine, self.job_id)
        if details is None:
            return None
        return JobSnapshot(
            timeline_html=self._renderer.render_part("job_story.html", details=details),
            current_state_text=sanitized(details.current_state_text),
            has_job_ended=timeline.has_job_ended(details.job),
            outputs=tuple(_run_output(run, self._view.settings) for run in details.runs),
        )


def _run_output(run: Run, settings: Settings) -> RunOutput:
    try:
        file = artifacts.artifacts_folder(run, settings) / "stdout"
    except artifacts.ArtifactsMissing:
        file = None  # the output is not on this machine
    return RunOutput(ident=run.ident, file=file, has_run_ended=run.ended_at is not None)


class LiveJobs:
    """Contains one reader for each job that has viewers."""

    def __init__(self) -> None:
        self._readers: dict[int, JobReader] = {}

    def add_viewer(self, view: AgentView, renderer: Renderer, job_id: int) -> JobReader:
        """Count one more viewer of a job, and return the job's reader."""
        reader = self._readers.setdefault(job_id, JobReader(view, renderer, job_id))
        reader.viewer_count += 1
        return reader

    def remove_viewer(self, reader: JobReader) -> None:
        """Count one viewer less. Delete the reader if it has no viewers any more."""
        reader.viewer_count -= 1
        if not reader.viewer_count:
            del self._readers[reader.job_id]
