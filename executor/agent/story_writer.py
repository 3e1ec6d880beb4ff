"""Stores the story of each current run in the database, so that other processes and machines can read the story.

The story of a run is the summary of what the run has done: its Ansible tasks, steps and Proxmox tasks. The lease keeper
calls `store_changed_stories` after it has renewed the leases. So a run that is shorter than a renewal interval causes
no additional write, and an agent without a running job causes no write at all. The worker stores the end of a run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.database import job_runs
from executor.database.engine import transaction
from executor.errors import DatabaseError
from executor.runs.runner import Runner

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True, kw_only=True)
class StoryWriter:
    """Writes the stories of the current runs into the database."""

    engine: Engine
    runner: Runner

    def store_changed_stories(self) -> None:
        """Store each story that has changed since the last call.

        If the database fails, nothing is stored: the next change, or the end of the run, stores the whole story.
        """
        stories = self.runner.changed_stories()
        if not stories:
            return
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            for run_ident, story in stories.items():
                job_runs.store_run_progress(session, run_ident, story)
