"""Named points at which a test lets this process die, as if somebody had pulled the plug there.

Nothing happens unless SMITH_CRASH_AT names a file that exists, which only a test writes: a JSON list of
`{"point": …, "subject": …, "times": …}`, where `subject` (a job's service) may be missing. Each death takes one from
`times`, so that the process which is started afterwards goes on.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

VARIABLE = "SMITH_CRASH_AT"

#: The points, in the order of the walk: what is durable when the process dies there.
POINTS = (
    "rows_written",  # step 1: the rows, and FulcrumCore does not know that we have seen the jobs
    "claim_noted",  # step 3: that a claim is about to be sent
    "claim_accepted",  # step 3: FulcrumCore has it as Processing, and we have not noted that
    "vmid_reserved",  # step 4: the reservation, and Proxmox has not heard of it
    "run_noted",  # step 5: that a run is about to begin
    "run_ended",  # step 5: the VM is as asked for, and nobody has read the result
    "job_finished",  # step 6: job, mapping and report due
    "report_accepted",  # step 7: FulcrumCore has taken the report, and we have not noted that
)

_lock = threading.Lock()


def reached(point: str, subject: str | None = None) -> None:
    """Die here by SIGKILL, if a test asks for it."""
    file = os.environ.get(VARIABLE)
    if file:
        with _lock:  # of two threads that get here together one dies for both
            _die_if_asked(Path(file), point, subject)


def _die_if_asked(file: Path, point: str, subject: str | None) -> None:
    try:
        wishes: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for wish in wishes:
        if wish["point"] == point and wish["times"] > 0 and wish.get("subject") in (None, subject):
            wish["times"] -= 1
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(wishes), encoding="utf-8")
            draft.replace(file)
            os.kill(os.getpid(), signal.SIGKILL)
