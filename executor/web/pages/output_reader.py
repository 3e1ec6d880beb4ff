"""Reads the output of a job's runs from a position on, so that a viewer (a browser) gets each line once.

The output is sent as server-sent events. A position consists of the ident of a run (its name) and the number of bytes
of the run's output that were sent. The id of an event is the position at the end of its text. A browser that connects
again sends the id of the last event that it has received, and the reader continues at this position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.views.text import sanitized

#: The maximum size of one event in bytes, and the maximum number of events of one call of `read`.
MAX_EVENT_BYTES, MAX_EVENT_COUNT = 65_536, 16
_POSITION_PATTERN = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9]{1,12})")


@dataclass(frozen=True, kw_only=True)
class RunOutput:
    """The file that contains the output of one run."""

    ident: str
    file: Path | None  #: None if the output is not on this machine
    has_run_ended: bool


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """A part of a run's output, which is sent as one event, and the position after this part."""

    ident: str
    text: str  #: without secrets
    offset: int

    @property
    def position(self) -> str:
        """The position as text, for the id of an event."""
        return f"{self.ident}:{self.offset}"


class OutputReader:
    """Reads the outputs of a job's runs one after the other.

    It begins at `position`. If `position` is empty or invalid, it begins at the start of the newest run's output.
    """

    def __init__(self, position: str = "") -> None:
        match = _POSITION_PATTERN.fullmatch(position)
        self._ident = match[1] if match else ""
        self._offset = int(match[2]) if match else 0
        #: True if all runs have ended, and a further call of `read` would return no parts.
        self.has_read_all_outputs = False
        #: The ident of a run whose output `read` has not found on this machine; '' if no output is missing.
        self.run_ident_with_missing_output = ""

    def read(self, outputs: Sequence[RunOutput]) -> list[OutputPart]:
        """Return the next parts after the position. `outputs` has the outputs of all runs of the job, oldest first."""
        parts: list[OutputPart] = []
        self.has_read_all_outputs, self.run_ident_with_missing_output = not outputs, ""
        while outputs and len(parts) < MAX_EVENT_COUNT:
            index = self._find_output_index(outputs)
            output = outputs[index]
            part = self._read_next_part(output)
            if part is not None:
                parts.append(part)
            elif index + 1 < len(outputs) and output.has_run_ended:
                self._ident, self._offset = outputs[index + 1].ident, 0
            else:
                self.has_read_all_outputs = output.has_run_ended
                break
        return parts

    def _find_output_index(self, outputs: Sequence[RunOutput]) -> int:
        """Return the index of the output at the position.

        If no output has the position's ident, set the position to the start of the newest output, and return its index.
        """
        for index, output in enumerate(outputs):
            if output.ident == self._ident:
                return index
        self._ident, self._offset = outputs[-1].ident, 0
        return len(outputs) - 1

    def _read_next_part(self, output: RunOutput) -> OutputPart | None:
        """Return the next complete lines of an output. If the run has ended, the last line may be incomplete."""
        if output.file is None:
            self.run_ident_with_missing_output = output.ident
            return None
        try:
            with output.file.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read(MAX_EVENT_BYTES)
        except OSError:
            # The run has not written its output yet, or its files were moved to the folder of ended runs after the
            # caller had built `output`. If `output.has_run_ended` is False, the next call of `read` tries again. If it
            # is True, `read` treats this output as complete.
            return None
        length = _event_length(data, has_run_ended=output.has_run_ended)
        if not length:
            return None
        self._offset += length
        # `sanitized` masks secrets, removes colours, and escapes control characters except line breaks and tabs.
        text = sanitized(data[:length].decode("utf-8", "replace"), keep_whitespace=True)
        return OutputPart(ident=output.ident, text=text, offset=self._offset)


def _event_length(data: bytes, *, has_run_ended: bool) -> int:
    """Return how many bytes of `data` one event sends.

    An event sends complete lines. It sends a part of a line only if the line is longer than MAX_EVENT_BYTES, or if the
    run has ended and this is its last line.
    """
    if has_run_ended and len(data) < MAX_EVENT_BYTES:
        return len(data)
    end = data.rfind(b"\n") + 1
    if end or len(data) < MAX_EVENT_BYTES:
        return end
    end = len(data)
    while end > 1 and data[end - 1] & 0xC0 == 0x80:  # do not cut a character of UTF-8 in two
        end -= 1
    return end - 1
