# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the marker: the line of a guest's description that names the guest's service.

The line before it names the agent that wrote the marker. It is only a label: the service alone identifies a guest, and
a marker without this line, which an earlier version has written, is valid.
"""

from __future__ import annotations

import re

#: A line that is a marker. Its value is a UUID; the case of the letters is ignored.
MARKER_LINE = re.compile(r"^smith-uid=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*?$", re.MULTILINE | re.IGNORECASE)
#: A line that is a marker with any value; the case of the letters is ignored here too. The playbooks never change a
#: guest with such a line of another value.
_ANY_MARKER_LINE = re.compile(r"^smith-uid=(\S+)\s*?$", re.MULTILINE | re.IGNORECASE)
#: The line of a description with the id of the agent that wrote the marker.
_AGENT_LINE = re.compile(
    r"^smith-agent=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*?$", re.MULTILINE | re.IGNORECASE
)


def marker_for(service_id: str) -> str:
    """Return the marker of a service."""
    return f"smith-uid={service_id}"


def services_in(description: str) -> list[str]:
    """Return the ids of the services that the markers in a description name, in lower case and sorted."""
    return sorted({service_id.lower() for service_id in MARKER_LINE.findall(description)})


def markers_in(description: str) -> list[str]:
    """Return the values of all markers in a description, in lower case and sorted, also of those without a valid id."""
    return sorted({value.lower() for value in _ANY_MARKER_LINE.findall(description)})


def with_agent(description: str, agent_id: str) -> str:
    """Return the description with a line that names the agent before the marker. An earlier such line is removed.

    A description without a marker stays as it is, and so does every description if `agent_id` is ''.
    """
    if not agent_id or not MARKER_LINE.search(description):
        return description
    lines = [line for line in description.splitlines() if not line.lower().startswith("smith-agent=")]
    position = next(index for index, line in enumerate(lines) if MARKER_LINE.match(line))
    return "\n".join([*lines[:position], f"smith-agent={agent_id.lower()}", *lines[position:]])


def agent_in(description: str) -> str:
    """Return the id of the agent that a description names, in lower case; '' if it names none or several."""
    agent_ids = {agent_id.lower() for agent_id in _AGENT_LINE.findall(description)}
    return agent_ids.pop() if len(agent_ids) == 1 else ""
