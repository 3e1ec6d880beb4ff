"""Step 5 of a job's processing (ARCHITECTURE.md): stores a run's output without secrets, up to a maximum size.

The output is stored in the files `events.jsonl` and `stdout`. The output is not trusted: it may have a size of 200 MB,
and it may contain bytes that are not UTF-8, an incomplete event, or text that imitates an event mark. An event mark is
an escape sequence that ansible-runner's display callback writes to the output for each event. The text LEFT_OUT is
stored in place of text that was left out.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from executor.redaction import Redactor

#: Output after this many bytes is not stored. Only its event marks are still read.
MAX_OUTPUT_BYTES = 4 * 1024 * 1024
#: When `events.jsonl` is larger than this, only failures, results and the final event are added.
MAX_EVENTS_BYTES = 16 * 1024 * 1024
#: When `events.jsonl` is larger than this, only the final event is added.
MAX_ESSENTIAL_BYTES = 20 * 1024 * 1024
#: A larger event is shortened. The limit is high because the result of a single module may have 700 kB.
MAX_EVENT_BYTES = 1024 * 1024
#: In an event that is too large, longer strings are truncated to this length.
MAX_STRING_LENGTH = 8 * 1024

LEFT_OUT = "[left out: too large]"
#: Kind of the event that we add to state how many events were left out.
TRUNCATED = "smith_truncated"
_ESSENTIAL = frozenset({"runner_on_failed", "runner_on_unreachable", "runner_item_on_failed", "playbook_on_stats"})
_FINAL = "playbook_on_stats"
#: Matches an event mark (see the docstring of this module).
_MARK = re.compile(rb"\x1b\[K(?:[A-Za-z0-9+/=]+\x1b\[\d+D)+\x1b\[K")
_MAX_MARK_BYTES = 512


class RunOutput:
    """Writes the artifacts of one run to a folder.

    `events.jsonl` and `stdout` are written during the run, `rc` (the exit code) and `status` at its end.
    """

    def __init__(self, folder: Path, redactor: Redactor) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self._redactor = redactor
        self._stdout = open_private(folder / "stdout")
        self._events = open_private(folder / "events.jsonl")
        self._events_size = 0
        self._left_out = 0
        self._is_sealed = False

    def write(self, text: str) -> None:
        """Add text to `stdout`.

        The caller passes whole lines or whole events, so that two calls do not split a secret.
        """
        if not self._is_sealed:
            self._stdout.write(self._redactor.redact(text))

    def seal(self) -> None:
        """Ignore all text from now on, because it may start in the middle of a secret. Events are still added."""
        if not self._is_sealed:
            self._is_sealed = True
            self._stdout.write(f"{LEFT_OUT}\n")

    def flush(self) -> None:
        """Write the buffered output to the files, so that an operator can read the output of a current run."""
        self._stdout.flush()
        self._events.flush()

    def add_event(self, event: dict[str, Any]) -> None:
        """Add the event to `events.jsonl`, unless the file has reached the size limit for this kind of event."""
        if self._events_size > self._limit(event):
            self._left_out += 1
            return
        line = self._line(event | {"stdout": LEFT_OUT} if self._is_sealed else event)
        self._events_size += len(line)
        self._events.write(line + "\n")

    def finish(self, *, status: str, rc: int) -> None:
        """Close the files and write the exit code and the status. The folder is then complete."""
        self.close()
        for name, value in (("rc", str(rc)), ("status", status)):
            with open_private(self.folder / name) as file:
                file.write(value)

    def close(self) -> None:
        """Close the files. If events were left out, add a last event with their number. May be called twice."""
        if self._left_out and not self._events.closed:
            self._events.write(json.dumps({"event": TRUNCATED, "left_out": self._left_out}) + "\n")
        self._stdout.close()
        self._events.close()

    def _limit(self, event: dict[str, Any]) -> int:
        """Return the size of `events.jsonl` above which this kind of event is not added any more."""
        if event.get("event") == _FINAL:
            return MAX_ESSENTIAL_BYTES + MAX_EVENT_BYTES
        return MAX_ESSENTIAL_BYTES if _is_essential(event) else MAX_EVENTS_BYTES

    def _line(self, event: dict[str, Any]) -> str:
        """Return the event as JSON without secrets. It is shortened only as far as MAX_EVENT_BYTES requires."""
        redacted = self._redactor.redact_value(event)
        for shorten in (_unchanged, _shortened, _essentials):
            line = json.dumps(shorten(redacted), default=str)
            if len(line) <= MAX_EVENT_BYTES:
                return line
        return json.dumps({"event": TRUNCATED, "left_out": 1})


class OutputReader:
    """Decodes a run's output and passes it to ansible-runner's event filter.

    After MAX_OUTPUT_BYTES bytes of output, it passes only the event marks.
    """

    def __init__(self, write: Callable[[str], object], seal: Callable[[], object]) -> None:
        self._write = write
        self._seal = seal
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._size = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Process the next bytes of the output. They may end in the middle of a character or of an event mark."""
        previous, self._tail = self._tail, (self._tail + data)[-_MAX_MARK_BYTES:]
        self._size += len(data)
        if self._size > MAX_OUTPUT_BYTES:
            self._seal()
            marks = _MARK.finditer(previous + data)
            data = b"".join(mark.group() for mark in marks if mark.end() > len(previous))
        if text := self._decoder.decode(data):
            self._write(text)


def open_private(path: Path) -> TextIO:
    """Open a new text file that only the agent's user can read."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", errors="replace")


def _is_essential(event: dict[str, Any]) -> bool:
    """True for a failure, and for a result that the playbook published."""
    data = event.get("event_data")
    result = data.get("res") if isinstance(data, dict) else None
    return event.get("event") in _ESSENTIAL or (isinstance(result, dict) and "ansible_stats" in result)


def _unchanged(value: Any) -> Any:
    return value


def _shortened(value: Any) -> Any:
    """Return the value with long strings truncated."""
    if isinstance(value, dict):
        return {_shortened(key): _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, str) and len(value) > MAX_STRING_LENGTH:
        return value[:MAX_STRING_LENGTH] + LEFT_OUT
    return value


def _essentials(event: dict[str, Any]) -> dict[str, Any]:
    """Return only the kind, Ansible task, error text and result of an event. Its strings are truncated, too."""
    data = event.get("event_data")
    data = data if isinstance(data, dict) else {}
    result = data.get("res")
    result = result if isinstance(result, dict) else {}
    kept = {key: data[key] for key in ("task", "task_action", "host", "ignore_errors", "failures") if key in data}
    kept["res"] = {key: result[key] for key in ("msg", "changed", "rc", "ansible_stats") if key in result}
    if isinstance(stats := data.get("artifact_data"), dict):
        kept["artifact_data"] = {"vm_result": stats.get("vm_result")}
    heads: dict[str, Any] = {key: event[key] for key in ("event", "uuid", "counter", "created") if key in event}
    return {**heads, TRUNCATED: True, "event_data": _shortened(kept)}
