"""Stores a summary of each current run, its story, in the database, so that other processes and machines can read it.

The story of a run contains its Ansible tasks, its Proxmox tasks and its steps. A step is an operation that an action
plugin reports, such as a clone. The lease keeper is the loop that renews the leases of running jobs. After a renewal,
it calls `store_changed_stories`. So a run that is shorter than a renewal interval causes no additional write, and an
agent without a running job causes no write at all. At the end of a run, the worker stores the whole story.
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

        If the database fails, nothing is stored. A story is stored after its next change, or at the end of its run.
        """
        stories = self.runner.changed_stories()
        if not stories:
            return
        with contextlib.suppress(DatabaseError), transaction(self.engine) as session:
            for run_ident, story in stories.items():
                job_runs.store_run_story(session, run_ident, story)
