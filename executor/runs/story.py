"""Makes the story of a run for the database: a summary of the run's Ansible tasks, steps and Proxmox tasks.

A step is an operation that an action plugin reports, such as "cloning the template 9000". A story is a small JSON
object. `smith jobs show`, `smith jobs log` and the web pages show the story on each machine that uses the database. The
times in a story are seconds since the start of the run. The artifacts of the run contain more details, but only on the
machine that executed the run, and only until they are pruned.

    {"tasks": [{"task": "Create the VM", "at": 0.4, "seconds": 12.3, "outcome": "changed", "message": ""}],
     "steps": [{"at": 1.2, "text": "cloning the template 9000"}],
     "proxmox_tasks": [{"upid": "UPID:pve1:…", "at": 1.5, "percent": 40, "log": ["transferred 2 GiB of 5 GiB"]}]}
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from executor.redaction import Redactor

#: Maximum number of entries in each of the lists `tasks`, `steps` and `proxmox_tasks`. When a list is full, each new
#: entry replaces the last entry.
MAX_ENTRIES = 60
#: Maximum length of each text in a story. Longer texts are cut.
MAX_TEXT_LENGTH = 300
#: Longer lines of the output are cut to this length before they are compared with _PROGRESS_LINE.
MAX_LINE_LENGTH = 4000
#: Maximum duration of an Ansible task: ten years. A longer duration is not stored, because it cannot be true.
MAX_DURATION_S = 10 * 365 * 24 * 3600.0
#: Number of lines of a Proxmox task's log that are kept.
MAX_LOG_LINES = 8
#: The outcome of an Ansible task, by the kind of the event that reports the outcome. The Ansible task that is running
#: now has the outcome RUNNING.
OUTCOME_BY_KIND = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}
RUNNING = "running"
#: Matches a progress line of an action plugin, with or without a colour code at its beginning:
#: `VM 100 (web-1): cloning the template 9000 [1.2 s]`.
_PROGRESS_LINE = re.compile(r"(?:\x1b\[[0-9;]*m)?VM [0-9]+ \([^()]*\): (?P<text>.+) \[[0-9]+\.[0-9] s\]")
#: The parts of a progress line about Proxmox tasks: each UPID, the percentage, and, after _LOG_SEPARATOR, the last
#: lines of the Proxmox task's log.
_UPID = re.compile(r"UPID:[^\s,]+")
_PERCENT = re.compile(r", ([0-9]{1,3}(?:\.[0-9]{1,9})?) %")
_LOG_SEPARATOR = ", log: "
_LOG_LINE_SEPARATOR = " | "


class RunStory:
    """Collects the story of one run. The thread that executes the run adds events, other threads may call `to_dict`."""

    def __init__(self, redactor: Redactor, on_step: Callable[[str], None] = lambda _text: None) -> None:
        """Prepare an empty story. `on_step` is called with the text of each step, which may contain secrets."""
        self._redactor = redactor
        self._on_step = on_step
        self._started_at = time.monotonic()
        self._lock = threading.Lock()
        self._ansible_tasks: list[dict[str, Any]] = []
        self._steps: list[dict[str, Any]] = []
        self._proxmox_tasks: list[dict[str, Any]] = []
        self._has_changed_since_to_dict = False

    def add_event(self, event: dict[str, Any]) -> None:
        """Add one event of ansible-runner. Ignore events that the story does not need, and members of a wrong type."""
        kind = str(event.get("event"))
        data = event.get("event_data")
        data = data if isinstance(data, dict) else {}
        step_texts: list[str] = []
        with self._lock:
            if kind == "playbook_on_task_start":
                self._start_ansible_task(data)
            elif kind in OUTCOME_BY_KIND:
                self._end_ansible_task(data, OUTCOME_BY_KIND[kind])
            elif kind == "verbose":  # ansible-runner's event for output that belongs to no other event
                lines = [line[:MAX_LINE_LENGTH] for line in str(event.get("stdout") or "").splitlines()]
                step_texts = [match["text"] for line in lines if (match := _PROGRESS_LINE.match(line))]
                for text in step_texts:
                    self._add_step(text)
        for text in step_texts:  # after the lock is released, because the call may write to a slow database
            self._on_step(text)

    def to_dict(self) -> dict[str, Any]:
        """Return the current story."""
        with self._lock:
            self._has_changed_since_to_dict = False
            lists = {"tasks": self._ansible_tasks, "steps": self._steps, "proxmox_tasks": self._proxmox_tasks}
            return {name: [dict(entry) for entry in entries] for name, entries in lists.items()}

    def to_dict_if_changed(self) -> dict[str, Any] | None:
        """Return the story; None if the story has not changed since the last call of `to_dict`."""
        return self.to_dict() if self._has_changed_since_to_dict else None

    def end(self) -> dict[str, Any]:
        """Return the story of the ended run. An Ansible task without an outcome gets the outcome `interrupted`."""
        with self._lock:
            for task in self._ansible_tasks:
                if task["outcome"] == RUNNING:
                    task |= {"outcome": "interrupted", "seconds": round(self._seconds_since_start() - task["at"], 1)}
        return self.to_dict()

    def _start_ansible_task(self, data: dict[str, Any]) -> None:
        name = data.get("task") or data.get("task_action") or ""
        now_s = self._seconds_since_start()
        entry = {"task": self._storable_text(name), "at": now_s, "seconds": None, "outcome": RUNNING, "message": ""}
        self._append_entry(self._ansible_tasks, entry)

    def _end_ansible_task(self, data: dict[str, Any], outcome: str) -> None:
        result = data.get("res")
        result = result if isinstance(result, dict) else {}
        if outcome == "ok" and result.get("changed"):
            outcome = "changed"
        elif outcome == "failed" and data.get("ignore_errors"):
            outcome = "ignored"
        if not self._ansible_tasks:
            self._start_ansible_task(data)
        self._ansible_tasks[-1] |= {
            "outcome": outcome,
            "seconds": _rounded_duration_s(data.get("duration")),
            "message": self._storable_text(result.get("msg") or "") if outcome not in ("ok", "changed") else "",
        }
        self._has_changed_since_to_dict = True

    def _add_step(self, text: str) -> None:
        """Add the step in a progress line, and the state of the Proxmox tasks that the line names.

        If the texts of the last step and of the new step begin with `waiting`, the last step gets the new text.
        """
        text, _, log_text = text.partition(_LOG_SEPARATOR)
        entry = {"at": self._seconds_since_start(), "text": self._storable_text(text)}
        is_wait_continued = self._steps and text.startswith("waiting") and self._steps[-1]["text"].startswith("waiting")
        if is_wait_continued:
            self._steps[-1] |= {"text": entry["text"]}
        else:
            self._append_entry(self._steps, entry)
        for upid in _UPID.findall(text):
            self._update_proxmox_task(upid[:MAX_TEXT_LENGTH], _PERCENT.search(text), log_text)
        self._has_changed_since_to_dict = True

    def _update_proxmox_task(self, upid: str, percent_match: re.Match[str] | None, log_text: str) -> None:
        task = next((task for task in self._proxmox_tasks if task["upid"] == upid), None)
        if task is None:
            task = {"upid": upid, "at": self._seconds_since_start(), "percent": None, "log": []}
            self._append_entry(self._proxmox_tasks, task)
        if percent_match is not None:
            task["percent"] = float(percent_match[1])
        if log_text:
            task["log"] = [self._storable_text(line) for line in log_text.split(_LOG_LINE_SEPARATOR)[-MAX_LOG_LINES:]]

    def _append_entry(self, entries: list[dict[str, Any]], entry: dict[str, Any]) -> None:
        if len(entries) >= MAX_ENTRIES:
            entries.pop()
        entries.append(entry)
        self._has_changed_since_to_dict = True

    def _seconds_since_start(self) -> float:
        return round(time.monotonic() - self._started_at, 1)

    def _storable_text(self, value: object) -> str:
        """Return a value from the run's output as text that every database can store, without secrets."""
        text = self._redactor.redact(str(value)[: MAX_TEXT_LENGTH * 2])
        return "".join(char if char.isprintable() else " " for char in text)[:MAX_TEXT_LENGTH]


def _rounded_duration_s(duration_s: object) -> float | None:
    """Return the duration with one decimal place; None if it is not a number, or not between 0 and MAX_DURATION_S."""
    if isinstance(duration_s, int | float) and 0 <= duration_s <= MAX_DURATION_S:
        return round(float(duration_s), 1)
    return None
