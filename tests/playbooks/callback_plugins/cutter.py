"""Writes what the cluster has after each task, and kills the whole play after the one that CUT_AFTER names.

Each item of a loop counts as a task: after it, too, a play may end.
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
    """One line for each task that ended: its name and the VM as it is then."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cutter"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def _ended(self, result: Any) -> None:
        guests = requests.get(os.environ["CUT_GUESTS"], timeout=30).json()
        guest = next((guest for guest in guests if str(guest["vmid"]) == os.environ["CUT_VMID"]), None)
        with Path(os.environ["CUT_RECORD"]).open("a") as out:
            out.write(json.dumps({"task": result._task.get_name(), "guest": guest}, sort_keys=True) + "\n")
        self.ended += 1
        if self.ended == int(os.environ.get("CUT_AFTER", "0")):
            os.killpg(os.getpgrp(), signal.SIGKILL)

    v2_runner_on_ok = v2_runner_item_on_ok = v2_runner_on_skipped = _ended
