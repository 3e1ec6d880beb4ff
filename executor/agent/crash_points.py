"""Named points at which a test can kill this process, to simulate a crash there.

Nothing happens unless SMITH_CRASH_AT names an existing file, which only tests write: a JSON list of
`{"point": …, "subject": …, "times": …}`, where `subject` (a job's service) may be missing. Each crash decrements
`times`, so that the restarted process passes the point.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

VARIABLE = "SMITH_CRASH_AT"

#: The points, in the order of a job's steps, each with the last durable fact.
POINTS = (
    "rows_written",  # step 1: the rows are stored
    "claim_noted",  # step 3: stored that a claim will be sent
    "claim_accepted",  # step 3: FulcrumCore has the job as Processing; that is not stored yet
    "vmid_reserved",  # step 4: the reservation is stored; nothing was sent to Proxmox
    "run_noted",  # step 5: stored that a run will start
    "run_ended",  # step 5: the VM was changed; the result was not read
    "job_finished",  # step 6: job, mapping and due report are stored
    "report_accepted",  # step 7: FulcrumCore has accepted the report; that is not stored yet
)

_lock = threading.Lock()


def reached(point: str, subject: str | None = None) -> None:
    """Kill this process with SIGKILL if the test's file requests it."""
    file = os.environ.get(VARIABLE)
    if file:
        with _lock:  # one thread at a time: each crash must decrement `times` once
            _crash_if_requested(Path(file), point, subject)


def _crash_if_requested(file: Path, point: str, subject: str | None) -> None:
    try:
        requests: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for request in requests:
        if request["point"] == point and request["times"] > 0 and request.get("subject") in (None, subject):
            request["times"] -= 1
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(requests), encoding="utf-8")
            draft.replace(file)
            os.kill(os.getpid(), signal.SIGKILL)
