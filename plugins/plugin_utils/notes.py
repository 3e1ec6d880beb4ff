# SPDX-License-Identifier: Apache-2.0
"""Writes a guest's description: the service's text, then our lines. The lines of other authors stay as they are.

Our lines are: the marks for deletion and protection, if the guest cannot have them as tags; the line `smith-text`; the
line `smith-agent` with the agent's id; and the marker. The line `smith-text` has the fingerprint of the service's text:
its number of lines and a digest. A later change finds the service's former text by this fingerprint, so it replaces
nothing that another author has written.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` are a guest's facts, as `LookUp.run`
returns them. All functions are pure.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .deletion import WITHOUT_TAGS, current_deletion_line, deletion_due_at, requested_deletion_line
from .identity import PROTECTED_LINE, has_protected_line
from .request_values import is_yes
from .shared.marker import MARKER_LINE, SMITH_LINES, agent_id_in, marker_for, without_forged_lines

#: The line with the fingerprint of the service's text. Group 1 is the fingerprint.
TEXT_LINE = re.compile(r"^[ \t]*smith-text[ \t]*=[ \t]*(\d{1,4}-[0-9a-f]{12})[ \t\r]*$", re.MULTILINE | re.IGNORECASE)
#: How many hexadecimal digits of the digest the fingerprint has.
DIGEST_LENGTH = 12

Lines = list[str]


def description(vm: dict[str, Any], marks: str = "", current: str = "") -> str:
    """Return the new description of a guest that has no marker yet: the service's text, then our lines, `marks` first.

    A part of the service's text that imitates one of our lines is altered. If the text equals the `current`
    description, an operator has written it in a VM that is now adopted. Then there is no line `smith-text`, so that a
    later change does not replace the operator's text.
    """
    text = _text_lines(vm)
    above = [*text, ""] if text else []
    fingerprint = "" if text == current.strip().split("\n") else _fingerprint_of(text)
    return "\n".join([*above, *_smith_lines(vm, marks, fingerprint, str(vm.get("agent_id") or ""))])


def changed_description(facts: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> str | None:
    """Return the whole new description, or None if the description need not change.

    A request without an agent's id keeps the agent that the description names. A request without a mark keeps the mark
    that the description has. Every line that is neither ours nor the service's stays in its order.
    """
    current = str(facts["config"].get("description") or "")
    if not has_marker:
        return description(vm, requested_deletion_line(vm) + _protected_line(vm, has_line=False), current)
    former_agent = agent_id_in(current)
    agent_id = str(vm.get("agent_id") or former_agent).lower()
    written_marks = current_deletion_line(facts) + (PROTECTED_LINE if has_protected_line(facts) else "")
    marks = _marks(facts, vm)
    former_lines = _lines_of_others(current)
    lines, fingerprint = former_lines, _fingerprint_in(current)
    if "description" in vm:
        lines, fingerprint = _with_text(lines, fingerprint, _text_lines(vm))
    if (lines, marks, agent_id) == (former_lines, written_marks, former_agent):
        return None
    above, below = lines
    return "\n".join([*above, *_smith_lines(vm, marks, fingerprint, agent_id), *below]).strip("\n")


def is_deletion_cancelled(facts: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the request cancels a deletion for which the VM is marked."""
    return is_yes(vm.get("cancel_deletion", False)) and bool(deletion_due_at(facts))


def _marks(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the lines of the marks that the description will have."""
    kept_line = "" if is_deletion_cancelled(facts, vm) else current_deletion_line(facts)
    return (requested_deletion_line(vm) or kept_line) + _protected_line(vm, has_line=has_protected_line(facts))


def _protected_line(vm: dict[str, Any], *, has_line: bool) -> str:
    """Return PROTECTED_LINE if the description needs it; '' if protection is not requested, or stated by a tag.

    `has_line` says whether the description has the line. A line is kept until the service removes the protection.
    """
    requested = vm.get("protection")
    is_kept = has_line and (requested is None or is_yes(requested))
    is_added = requested is not None and is_yes(requested) and bool(vm.get(WITHOUT_TAGS))
    return PROTECTED_LINE if is_kept or is_added else ""


def _smith_lines(vm: dict[str, Any], marks: str, fingerprint: str, agent_id: str) -> Lines:
    text_line = [f"smith-text={fingerprint}"] if fingerprint else []
    agent_line = [f"smith-agent={agent_id.lower()}"] if agent_id else []
    return [*marks.splitlines(), *text_line, *agent_line, marker_for(str(vm["service_id"]).lower())]


def _lines_of_others(current: str) -> tuple[Lines, Lines]:
    """Return the lines of a description that are not ours: those above the marker, and those below it."""
    lines = current.split("\n")
    position = next((number for number, line in enumerate(lines) if MARKER_LINE.match(line)), len(lines))
    above, below = (
        [line for line in part if not SMITH_LINES.match(line)] for part in (lines[:position], lines[position:])
    )
    return above, below


# ---------------------------------------------------------------------- the service's text


def _text_lines(vm: dict[str, Any]) -> Lines:
    text = without_forged_lines(str(vm.get("description") or "")).strip()
    return text.split("\n") if text else []


def _fingerprint_of(text: Lines) -> str:
    """Return the number of lines and the digest of a text; '' if it has no line."""
    digest = hashlib.sha256("\n".join(text).encode(errors="replace")).hexdigest()
    return f"{len(text)}-{digest[:DIGEST_LENGTH]}" if text else ""


def _fingerprint_in(current: str) -> str:
    found = TEXT_LINE.findall(current)
    return str(found[0]).lower() if len(found) == 1 else ""


def _with_text(lines: tuple[Lines, Lines], former_fingerprint: str, text: Lines) -> tuple[tuple[Lines, Lines], str]:
    """Return the lines with the service's new text in place of its former one, and the fingerprint of the new text.

    `former_fingerprint` is that of the former text; '' if an earlier version wrote it. A former text that another
    author has changed is not found, so it stays beside the new text.
    """
    above, below = lines
    for part, is_above in ((above, True), (below, False)):
        position = _position_of_text(part, former_fingerprint, text)
        if position is None:
            continue
        size = int(former_fingerprint.partition("-")[0]) if former_fingerprint else len(text)
        changed = [*part[:position], *text, *part[position + size :]]
        return ((changed, below) if is_above else (above, changed)), _fingerprint_of(text)
    if not text or former_fingerprint == _fingerprint_of(text):
        return lines, former_fingerprint
    return ([*text, "", *above], below), _fingerprint_of(text)


def _position_of_text(lines: Lines, former_fingerprint: str, text: Lines) -> int | None:
    """Return where a text with this fingerprint begins; if the fingerprint is '', where `text` begins."""
    fingerprint = former_fingerprint or _fingerprint_of(text)
    size = int(fingerprint.partition("-")[0]) if fingerprint else 0
    starts = range(len(lines) - size + 1) if size else ()
    return next((start for start in starts if _fingerprint_of(lines[start : start + size]) == fingerprint), None)
