"""Records a play as JSON lines in the file PLAY_RECORD: one line per Ansible task, and one with the custom stats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: recorder
    type: aggregate
    short_description: Records tasks and custom stats for tests
    description: Used by the tests of the playbooks only.
"""


class CallbackModule(CallbackBase):
    """Writes a line per Ansible task, with its action, state and message."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, **line: Any) -> None:
        with Path(os.environ["PLAY_RECORD"]).open("a") as out:
            out.write(json.dumps(line, default=str) + "\n")

    def _write_task(self, result: Any, state: str) -> None:
        body = result._result
        self._write(
            action=result._task.resolved_action or result._task.action,
            name=result._task.get_name(),
            state=state,
            changed=bool(body.get("changed")),
            msg=str(body.get("msg", "")),
            modules=body.get("modules", []),
        )

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write_task(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write_task(result, "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._write_task(result, "skipped")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._write(custom=stats.custom.get("_run", {}))
