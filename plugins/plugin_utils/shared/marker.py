# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the marker: the line of a guest's description that names the guest's service.

The line before the marker names the agent that wrote the marker. This line is only a label: the marker alone identifies
the guest's service. Earlier versions wrote no such line, so a marker is valid without it.

The dynamic inventory (inventory/smith.proxmox.yml) has a copy of the marker's pattern, because it cannot import Python.
tests/data/markers.json has the test cases for both.
"""

from __future__ import annotations

import re

#: A marker: a line that begins with `smith-uid=` and has a value. Case and blanks are ignored. Group 1 may end with
#: blanks, which `_values_in` removes: a pattern that excludes them would take quadratic time for a long row of blanks.
MARKER_LINE = re.compile(r"^[ \t]*smith-uid[ \t]*=[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
#: Matches the line of a description with the id of the agent that wrote the marker.
_AGENT_LINE = re.compile(r"^[ \t]*smith-agent[ \t]*=[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
#: Matches the lines of a description that only the playbooks write: `smith-uid` (the marker), `smith-agent` (the id
#: of the agent), `smith-text` (the fingerprint of the description that the service requested: its number of lines and a
#: digest), `smith-delete` for a container and `smith-delete-at` for a VM (the time from which the guest may be
#: destroyed), and `smith-protected` (the service has requested Proxmox's protection flag).
SMITH_LINES = re.compile(
    r"^[ \t]*smith-(?:uid|agent|text|delete(?:-at)?|protected)[ \t]*=.*$", re.MULTILINE | re.IGNORECASE
)
#: Matches a part of a user's text that would imitate a line of SMITH_LINES.
_IMITATED_LINE_START = re.compile(r"smith-(uid|agent|text|delete(?:-at)?|protected)\s*=", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def marker_for(service_id: str) -> str:
    """Return the marker of a service."""
    return f"smith-uid={service_id}"


def marker_values_in(description: str) -> list[str]:
    """Return the values of all markers in a description, in lower case and sorted, even if they are no valid ids.

    A guest with markers is changed for a service only if each marker's value is the id of this service.
    """
    return sorted(_values_in(MARKER_LINE, description))


def service_id_in(description: str) -> str:
    """Return the id of the service whose marker is in a description.

    Return '' if the description has no marker, several markers with different values, or a marker without a valid id.
    """
    markers = marker_values_in(description)
    return markers[0] if len(markers) == 1 and is_service_id(markers[0]) else ""


def with_agent_line(description: str, agent_id: str) -> str:
    """Return the description with a line before the marker that names the agent. The line replaces an earlier one.

    A description without a marker is returned unchanged. If `agent_id` is '', every description is returned unchanged.
    """
    if not agent_id or not MARKER_LINE.search(description):
        return description
    lines = [line for line in description.splitlines() if not _AGENT_LINE.match(line)]
    marker_index = next(index for index, line in enumerate(lines) if MARKER_LINE.match(line))
    return "\n".join([*lines[:marker_index], f"smith-agent={agent_id.lower()}", *lines[marker_index:]])


def agent_id_in(description: str) -> str:
    """Return the id of the agent that a description names, in lower case.

    Return '' if the description names no agent or several agents, or if the id is not a UUID.
    """
    agent_ids = _values_in(_AGENT_LINE, description)
    agent_id = agent_ids.pop() if len(agent_ids) == 1 else ""
    return agent_id if _UUID.fullmatch(agent_id) else ""


def _values_in(pattern: re.Pattern[str], description: str) -> set[str]:
    """Return the values of all lines that match, in lower case."""
    return {value.rstrip(" \t\r").lower() for value in pattern.findall(description)}


def is_service_id(value: str) -> bool:
    """Return True if the value of a marker is the id of a service: a UUID in lower case."""
    return _UUID.fullmatch(value) is not None


def without_imitated_smith_lines(text: str) -> str:
    """Return a user's text with `: ` in place of `=` in each part that would imitate a line of SMITH_LINES."""
    return _IMITATED_LINE_START.sub(r"smith-\1: ", text)


def without_smith_lines(description: str) -> str:
    """Return a description without the lines that only the playbooks write."""
    return SMITH_LINES.sub("", description)
