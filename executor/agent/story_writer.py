"""Stores the story (a summary) of each current run in the database, so that other processes can read it.

The story of a run contains the run's Ansible tasks, Proxmox tasks and steps. A step is an operation that an action
plugin reports, such as a clone.

The loop that renews the leases of running jobs calls `store_changed_stories` after each renewal. At the end of a run,
the worker stores the final story.
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

        If the database fails, a changed story is stored only after its next change, or at the end of its run.
        """
        stories = self.runner.changed_stories()
        if not stories:
            return
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            for run_ident, story in stories.items():
                job_runs.store_run_story(session, run_ident, story)
