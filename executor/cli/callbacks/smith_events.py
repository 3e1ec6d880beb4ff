"""Writes what `executor.runs.results` reads of a run, as JSON lines, into the file that SMITH_EVENTS_FILE names.

With the executor, ansible-runner's own callback does this. By hand there is plain ansible-playbook, and this.
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
    short_description: Writes failures and results for `smith play`
    description: Used by `smith play` only.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible has no types
    """One line for each failure, each published result, and the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "smith_events"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep what was published."""
        if "ansible_stats" in result._result:
            self._write("runner_on_ok", res=result._result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep a failure; the last one that nobody rescued is the run's."""
        self._write("runner_on_failed", res=result._result, ignore_errors=ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep a failure to begin."""
        self._write("runner_on_unreachable", res=result._result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Keep the custom stats as they are at the end."""
        self._write("playbook_on_stats", artifact_data=stats.custom.get("_run", {}))

    def _write(self, event: str, **data: Any) -> None:
        line = json.dumps({"event": event, "event_data": data}, default=str)
        with Path(os.environ["SMITH_EVENTS_FILE"]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
