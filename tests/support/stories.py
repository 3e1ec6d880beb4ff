"""Stories, as an agent stores them: what a run has done so far, in Ansible tasks, steps and Proxmox tasks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from support.cli_world import Cli

from executor.database.tables.jobs import Run


def story_of(*tasks: str, outcome: str = "ok", steps: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the story of a run with these Ansible tasks, of which the last has the outcome."""
    rows = [
        {"task": task, "at": number, "seconds": None if outcome == "running" else 1.5, "outcome": "ok", "message": ""}
        for number, task in enumerate(tasks)
    ]
    rows[-1]["outcome"] = outcome
    step_rows = [{"at": number, "text": text} for number, text in enumerate(steps)]
    upid = {"upid": "UPID:pve1:0001:qmclone", "at": 1, "percent": 40.0, "log": ["transferred 4 GiB"]}
    return {"tasks": rows, "steps": step_rows, "proxmox_tasks": [upid]}


def store_story(smith: Cli, ident: str, story: dict[str, Any]) -> None:
    with smith.database_session() as session:
        session.execute(update(Run).where(Run.ident == ident).values(story=story))
