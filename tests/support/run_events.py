"""Events of playbook runs, as ansible-runner 2.4 and ansible-core 2.19 write them, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from executor.model import JobResult, RunArtifacts, RunStatus
from executor.runs import results

VM = {"vmid": 101, "node": "pve1", "name": "web-0a1b2c3d", "status": "running", "upids": ["UPID:pve1:1"]}


def artifacts(folder: Path, *lines: Any, status: RunStatus = RunStatus.FAILED, rc: int | None = None) -> RunArtifacts:
    """Write the folder of a run; a line that is not text is written as JSON."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "events.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    if rc is None:
        rc = 0 if status is RunStatus.SUCCESSFUL else 2
    return RunArtifacts(ident="create-1", folder=folder, status=status, rc=rc, started_at=1.0, ended_at=2.0)


def read(folder: Path, *lines: Any, status: RunStatus = RunStatus.FAILED, rc: int | None = None) -> JobResult:
    """Write the events of a run; return the result that the agent reads from them."""
    return results.read_result(artifacts(folder, *lines, status=status, rc=rc))


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"event": kind, "stdout": "", "event_data": {"host": "localhost", "task": "a task"} | data}


def failed(msg: Any, **data: Any) -> dict[str, Any]:
    """Return the event of a failed Ansible task."""
    return event("runner_on_failed", res={"msg": msg, "changed": False}, ignore_errors=None, **data)


def early(**vm: Any) -> dict[str, Any]:
    """Return the event of `set_stats` in the middle of a play."""
    stats = {"aggregate": False, "data": {"vm_result": VM | vm}, "per_host": False}
    return event("runner_on_ok", res={"ansible_stats": stats, "changed": False})


def final(document: Any = None, **vm: Any) -> dict[str, Any]:
    """Return the last event of a play, with the data that its `set_stats` have published."""
    return event("playbook_on_stats", ok={"localhost": 3}, artifact_data={"vm_result": document or VM | vm})


def verbose(text: str) -> dict[str, Any]:
    """Return the event of a line of output."""
    return {"event": "verbose", "stdout": text, "event_data": {}}
