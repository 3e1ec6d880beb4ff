"""Step 5 of a job's processing (ARCHITECTURE.md): stores a run's output without secrets, up to a maximum size.

The output is stored in the files `events.jsonl` and `stdout`. An event mark is an escape sequence that ansible-runner's
display callback writes to the output for each event. The output is not trusted: it may be very large, and it may
contain bytes that are not UTF-8, an incomplete event, or text that imitates an event mark. LEFT_OUT_TEXT is stored
in place of text that is left out.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from executor.redaction import Redactor

#: Maximum size of the output that is stored in `stdout`. Event marks in later output are still read.
MAX_OUTPUT_BYTES = 4 * 1024 * 1024
#: Size of `events.jsonl` above which only essential events are added: failures, results that the playbook
#: publishes with `set_stats`, and the final event.
MAX_FILE_BYTES_FOR_ORDINARY_EVENTS = 16 * 1024 * 1024
#: Size of `events.jsonl` above which only the final event is added, which reports the end of the playbook.
MAX_FILE_BYTES_FOR_ESSENTIAL_EVENTS = 20 * 1024 * 1024
#: Maximum size of one event in `events.jsonl`. A larger event is shortened. The limit is high, because the result of a
#: single module may have 700 kB.
MAX_EVENT_BYTES = 1024 * 1024
#: Maximum length of a string in an event that is too large. Longer strings are truncated.
MAX_STRING_LENGTH = 8 * 1024

#: Size of a file with which a run reserves space for its essential events. When the file system is full, the file is
#: deleted, so that these events can be written.
RESERVE_BYTES = 128 * 1024

LEFT_OUT_TEXT = "[left out: too large]"
#: This name has two uses in `events.jsonl`. It is the kind of the event that states the number of left-out events. In
#: any other event, a member with this name is True if only the essential members of the event were stored.
SMITH_TRUNCATED = "smith_truncated"
_ESSENTIAL_EVENT_KINDS = frozenset(
    {"runner_on_failed", "runner_on_unreachable", "runner_item_on_failed", "playbook_on_stats"}
)
_FINAL_EVENT_KIND = "playbook_on_stats"
#: Matches an event mark: `ESC[K`, then one or more parts of base64 text that each end with `ESC[<number>D`, then
#: `ESC[K`.
_EVENT_MARK = re.compile(rb"\x1b\[K(?:[A-Za-z0-9+/=]+\x1b\[\d+D)+\x1b\[K")
#: After MAX_OUTPUT_BYTES of output, `OutputDecoder` may miss an event mark that is larger than this limit and is split
#: between two calls of `feed`.
_MAX_EVENT_MARK_BYTES = 512


class RunOutput:
    """Writes the artifacts of one run to a folder.

    `events.jsonl` and `stdout` are written during the run, `rc` (the exit code) and `status` at its end.
    """

    def __init__(self, folder: Path, redactor: Redactor) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self._redactor = redactor
        self._reserve_file = folder / ".reserve"
        with open_private_file(self._reserve_file) as file:
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        self._stdout_file = _OutputFile(folder / "stdout")
        self._events_file = _OutputFile(folder / "events.jsonl")
        self.has_lost_essential_output = False  #: True if an essential event, `rc` or `status` could not be written
        self._events_file_bytes = 0
        self._left_out_event_count = 0
        self._left_out_text_count = 0
        self._is_text_ignored = False

    def write(self, text: str) -> None:
        """Add text to `stdout`, with secrets masked.

        The caller passes whole lines, or the whole text of one event, because a secret that is split between two calls
        would not be masked.
        """
        if not self._is_text_ignored:
            self._write_text(self._redactor.redact(text))

    def ignore_further_text(self) -> None:
        """Store no text from now on, but still store events.

        The caller calls this method after it has dropped a part of the output, because the next text may start in the
        middle of a secret, which would not be masked.
        """
        if not self._is_text_ignored:
            self._is_text_ignored = True
            self._write_text(f"{LEFT_OUT_TEXT}\n")

    def flush(self) -> None:
        """Do nothing, because the output is not buffered. ansible-runner's OutputEventFilter requires this method."""

    def _write_text(self, text: str) -> None:
        if not self._stdout_file.append(text):
            self._left_out_text_count += 1

    def add_event(self, event: dict[str, Any]) -> None:
        """Add the event to `events.jsonl`, unless the file has reached the size limit for this kind of event."""
        if self._events_file_bytes > self._max_events_file_bytes(event):
            self._left_out_event_count += 1
            return
        if self._is_text_ignored:
            # The event's member `stdout` contains output text, which may start in the middle of a secret.
            event = event | {"stdout": LEFT_OUT_TEXT}
        line = self._to_json_line(event)
        if self._events_file.append(line + "\n"):
            self._events_file_bytes += len(line)  # the JSON text is ASCII: one byte per character
        elif not _is_essential(event):
            self._left_out_event_count += 1
        elif not self._append_to_freed_space(line + "\n"):
            self._left_out_event_count += 1
            self.has_lost_essential_output = True

    def _append_to_freed_space(self, line: str) -> bool:
        """Free the reserved space, then write the line."""
        self._reserve_file.unlink(missing_ok=True)
        return self._events_file.append(line)

    def finish(self, *, status: str, rc: int) -> None:
        """Close the files. Then write the exit code to the file `rc` and the status to the file `status`."""
        self.close()
        for name, value in (("rc", str(rc)), ("status", status)):
            file = _OutputFile(self.folder / name)
            if not file.append(value):
                self.has_lost_essential_output = True
            file.close()

    def close(self) -> None:
        """Close the files. If events or texts were left out, first add an event with their counts.

        This method may be called twice.
        """
        self._reserve_file.unlink(missing_ok=True)
        if (self._left_out_event_count or self._left_out_text_count) and not self._events_file.is_closed:
            counts = {"left_out": self._left_out_event_count}
            if self._left_out_text_count:
                counts["left_out_text"] = self._left_out_text_count
            self._events_file.append(json.dumps({"event": SMITH_TRUNCATED, **counts}) + "\n")
        self._stdout_file.close()
        self._events_file.close()

    def _max_events_file_bytes(self, event: dict[str, Any]) -> int:
        """Return the size of `events.jsonl` above which this kind of event is left out."""
        if event.get("event") == _FINAL_EVENT_KIND:
            # This limit leaves space for one final event after the essential events. Final events need a limit, too,
            # because the output of a run may imitate them.
            return MAX_FILE_BYTES_FOR_ESSENTIAL_EVENTS + MAX_EVENT_BYTES
        return MAX_FILE_BYTES_FOR_ESSENTIAL_EVENTS if _is_essential(event) else MAX_FILE_BYTES_FOR_ORDINARY_EVENTS

    def _to_json_line(self, event: dict[str, Any]) -> str:
        """Return the event as JSON with masked secrets. Shorten the event only as far as MAX_EVENT_BYTES requires."""
        redacted = self._redactor.redact_value(event)
        for shorten in (_unchanged, _truncate_strings, _keep_essentials):
            line = json.dumps(shorten(redacted), default=str)
            if len(line) <= MAX_EVENT_BYTES:
                return line
        return json.dumps({"event": SMITH_TRUNCATED, "left_out": 1})


class _OutputFile:
    """A new file to which texts are appended, each text as a whole or not at all. `append` never raises OSError.

    The file is not buffered. With a buffer, `append` could return True for text that later cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._size_bytes = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1

    @property
    def is_closed(self) -> bool:
        """True if the file was closed, or could not be made."""
        return self._fd < 0

    def append(self, text: str) -> bool:
        """Append the text. Return False if it could not be written, for example because the file system is full."""
        data = memoryview(text.encode("utf-8", "replace"))
        written_bytes = 0
        try:
            while written_bytes < len(data):
                written_bytes += os.pwrite(self._fd, data[written_bytes:], self._size_bytes + written_bytes)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size_bytes)
            return False
        self._size_bytes += len(data)
        return True

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OutputDecoder:
    """Decodes a run's output and passes it to ansible-runner's OutputEventFilter, which separates events and text.

    After MAX_OUTPUT_BYTES bytes of output, the decoder passes only the event marks.
    """

    def __init__(self, write_to_filter: Callable[[str], object], ignore_further_text: Callable[[], object]) -> None:
        self._write_to_filter = write_to_filter
        self._ignore_further_text = ignore_further_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._received_bytes = 0
        self._last_bytes = b""

    def feed(self, data: bytes) -> None:
        """Process the next bytes of the output. They may end in the middle of a character or of an event mark."""
        previous_bytes = self._last_bytes
        self._last_bytes = (previous_bytes + data)[-_MAX_EVENT_MARK_BYTES:]
        self._received_bytes += len(data)
        if self._received_bytes > MAX_OUTPUT_BYTES:
            self._ignore_further_text()
            marks = _EVENT_MARK.finditer(previous_bytes + data)
            # A mark that ends in `previous_bytes` was passed by an earlier call.
            data = b"".join(mark.group() for mark in marks if mark.end() > len(previous_bytes))
        if text := self._decoder.decode(data):
            self._write_to_filter(text)


def open_private_file(path: Path) -> TextIO:
    """Open a new text file that only the agent's user can read."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", errors="replace")


def _is_essential(event: dict[str, Any]) -> bool:
    """True if the event reports a failure, a result that the playbook set with `set_stats`, or the playbook's end."""
    data = event.get("event_data")
    result = data.get("res") if isinstance(data, dict) else None
    return event.get("event") in _ESSENTIAL_EVENT_KINDS or (isinstance(result, dict) and "ansible_stats" in result)


def _unchanged(event: Any) -> Any:
    return event


def _truncate_strings(value: Any) -> Any:
    """Return the value with long strings truncated."""
    if isinstance(value, dict):
        return {_truncate_strings(key): _truncate_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_truncate_strings(item) for item in value]
    if isinstance(value, str) and len(value) > MAX_STRING_LENGTH:
        return value[:MAX_STRING_LENGTH] + LEFT_OUT_TEXT
    return value


def _keep_essentials(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event with only its kind, Ansible task, error text and result, with long strings truncated."""
    data = event.get("event_data")
    data = data if isinstance(data, dict) else {}
    result = data.get("res")
    result = result if isinstance(result, dict) else {}
    data_members = ("task", "task_action", "resolved_action", "host", "ignore_errors", "failures")
    essential_data = _select_members(data, *data_members)
    essential_data["res"] = _select_members(result, "msg", "changed", "rc", "ansible_stats")
    # In the final event, ansible-runner's member `artifact_data` has the values that the playbook set with `set_stats`.
    # The agent reads only `vm_result`, the playbook's result.
    if isinstance(stats := data.get("artifact_data"), dict):
        essential_data["artifact_data"] = {"vm_result": stats.get("vm_result")}
    return {
        **_select_members(event, "event", "uuid", "counter", "created"),
        SMITH_TRUNCATED: True,
        "event_data": _truncate_strings(essential_data),
    }


def _select_members(members: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the members with the given keys. A missing key is skipped."""
    return {key: members[key] for key in keys if key in members}
