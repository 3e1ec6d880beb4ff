"""Kills this process at a named point when a test requests it, to simulate a crash there.

Nothing happens unless SMITH_CRASH_AT names an existing file. Only tests write such a file: a JSON list of
`{"point": …, "subject": …, "times": …}`, where `subject` is the id of the job's service and may be missing. Each crash
decrements `times`; at 0 the process continues at this point.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

VARIABLE = "SMITH_CRASH_AT"

#: The points in the order of a job's steps. Each comment says what is stored when the process is killed there.
POINTS = (
    "rows_written",  # step 1: the rows of the polled jobs
    "claim_noted",  # step 3: that a claim will be sent
    "claim_accepted",  # step 3: nothing more; FulcrumCore has accepted the claim
    "vmid_reserved",  # step 4: the reservation; nothing was sent to Proxmox yet
    "run_noted",  # step 5: that a run will start
    "run_ended",  # step 5: the end of the run, which has changed the VM; not the job's result
    "job_finished",  # step 6: the job's result, its mapping and the due report
    "report_accepted",  # step 7: nothing more; FulcrumCore has accepted the report
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
            new_file = file.with_suffix(".draft")
            new_file.write_text(json.dumps(requests), encoding="utf-8")
            new_file.replace(file)
            os.kill(os.getpid(), signal.SIGKILL)
