"""Writes what the cluster has after each task, and kills the whole play after one of them.

The file that CUT_FILE names says how, as JSON: `guests` (where to ask), `vmid`, `record` (where to write) and `after`
(the number of the task). Without that file nothing happens.

Each item of a loop counts as a task.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import requests
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: cutter
    type: aggregate
    short_description: Kills a play after a task for tests
    description: Used by the tests of the playbooks only.
"""


class CallbackModule(CallbackBase):
    """Writes a line per finished task: its name and the VM's state."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cutter"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0
        file = Path(os.environ["CUT_FILE"])
        self.cut = json.loads(file.read_text()) if file.exists() else {}

    def _ended(self, result: Any) -> None:
        if not self.cut:
            return
        guests = requests.get(self.cut["guests"], timeout=30).json()
        guest = next((guest for guest in guests if guest["vmid"] == self.cut["vmid"]), None)
        with Path(self.cut["record"]).open("a") as out:
            out.write(json.dumps({"task": result._task.get_name(), "guest": guest}, sort_keys=True) + "\n")
        self.ended += 1
        if self.ended == self.cut["after"]:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    v2_runner_on_ok = v2_runner_item_on_ok = v2_runner_on_skipped = _ended
