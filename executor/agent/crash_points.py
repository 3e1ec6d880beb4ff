"""Kills this process, or holds one thread, at a named point of the code, if a test requests that.

A point is a place in the code that calls `crash_if_requested` with the point's name. This module does nothing unless
SMITH_CRASH_AT contains the path of an existing file. Only tests write this file. The file contains a JSON list of
entries `{"point": …, "subject": …, "times": …, "hold": …}`. `subject` is the id of a service, or the name of a table.
An entry without a subject applies to all services and tables. Each crash and each hold decrements the entry's `times`.
An entry whose `times` is 0 has no effect. `hold` is the path of a file. An entry with `hold` does not kill the process:
the file is created, and the thread waits until the test deletes the file.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

#: The environment variable that contains the path of the file.
CRASH_FILE_VARIABLE = "SMITH_CRASH_AT"

#: The points in the order of a job's processing (ARCHITECTURE.md). Each comment says what has happened before the
#: point, and what is stored.
POINTS = (
    "rows_written",  # step 1: the rows of the polled jobs are stored
    "claim_noted",  # step 3: it is stored that a claim will be sent
    "claim_accepted",  # step 3: FulcrumCore has accepted the claim, but that is not stored
    "vmid_reserved",  # step 4: the reservation is stored; nothing was sent to Proxmox yet
    "run_noted",  # step 5: it is stored that a run will start
    "run_ended",  # step 5: the run has changed the VM, and its artifacts are complete; the database lacks the result
    "job_finished",  # step 6: the job's result and its mapping are stored; the result was not sent to FulcrumCore yet
    "report_accepted",  # step 7: FulcrumCore has accepted the report, but that is not stored
)
#: The points of `smith db migrate`, in their order. The command seals the source (the old database), so that it refuses
#: writes, and copies its rows to the target (the new database). The subject of `rows_copied` is the name of the table.
MOVE_POINTS = (
    "source_sealed",  # the seal of the source is stored; the target is empty
    "rows_copied",  # the target's open transaction contains a batch of rows of the table
    "target_committed",  # the target contains all rows; the source does not yet record the move as complete
)

_lock = threading.Lock()
#: Time between two checks whether the test has deleted the file of a hold.
HOLD_CHECK_INTERVAL_S = 0.02


def crash_if_requested(point: str, subject: str | None = None) -> None:
    """Kill this process with SIGKILL, or hold this thread, if the test's file requests that for `point`.

    `subject` is the id of the service at a point that concerns one job, the name of the table at the point
    `rows_copied`, and None at the other points.
    """
    file = os.environ.get(CRASH_FILE_VARIABLE)
    if file:
        with _lock:  # two threads must not read the same value of `times`
            hold_file = _apply_first_matching_entry(Path(file), point, subject)
        while hold_file and hold_file.exists():
            time.sleep(HOLD_CHECK_INTERVAL_S)


def _apply_first_matching_entry(file: Path, point: str, subject: str | None) -> Path | None:
    """If an entry applies, decrement its `times` in the file. Then kill this process, or create the entry's hold file.

    Return the hold file, if one was created.
    """
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for entry in entries:
        if entry["point"] == point and entry["times"] > 0 and entry.get("subject") in (None, subject):
            entry["times"] -= 1
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(entries), encoding="utf-8")
            draft.replace(file)
            if "hold" in entry:
                hold_file = Path(entry["hold"])
                hold_file.touch()
                return hold_file
            os.kill(os.getpid(), signal.SIGKILL)
    return None
