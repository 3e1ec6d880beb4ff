"""Writes the events of a run as JSON lines into the file that the environment variable SMITH_EVENTS_FILE names.

`executor.runs.results` determines the run's result from these events. When the agent runs a playbook, ansible-runner
writes the events. A command such as `smith play` runs ansible-playbook without ansible-runner, so it needs this
callback plugin.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: smith_events
    type: aggregate
    short_description: Writes the failures and results of a playbook run into a file
    description: Used by commands that run an action, such as `smith play`.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible has no type annotations.
    """Writes one line for each failure, for each published result, and for the end of the playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "smith_events"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        """Write the result that an Ansible task published with set_stats."""
        if "ansible_stats" in result._result:
            self._write_event("runner_on_ok", res=result._result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Write the failure of an Ansible task, and whether the playbook ignores the failure."""
        self._write_event("runner_on_failed", res=result._result, ignore_errors=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Write the event that Ansible could not reach the host."""
        self._write_event("runner_on_unreachable", res=result._result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the final values of the variables that set_stats has published."""
        # Ansible keeps the values that do not belong to one host under the key `_run`.
        self._write_event("playbook_on_stats", artifact_data=stats.custom.get("_run", {}))

    def _write_event(self, event: str, **data: Any) -> None:
        """Append an event to the file SMITH_EVENTS_FILE. The event has the keys of ansible-runner's events."""
        line = json.dumps({"event": event, "event_data": data}, default=str)
        with Path(os.environ["SMITH_EVENTS_FILE"]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
