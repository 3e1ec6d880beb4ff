# SPDX-License-Identifier: Apache-2.0
"""Builds a guest's description: the service's text, then Agent Smith's lines.

In a guest with a marker, the lines of other authors are kept. The description of a guest without a marker is replaced.

The service's text is the member `description` of the request. Agent Smith's lines are: the deletion mark and
the protection mark, if they are not tags; the line `smith-text`; the line `smith-agent` with the agent's id; and the
marker.

The deletion mark is the time from which the guest may be destroyed. The protection mark says that the service has
requested Proxmox's protection flag. A mark is usually a tag of the guest. If Proxmox refuses the tag, the mark is a
line. A container's deletion mark is always a line.

The line `smith-text` has the fingerprint of the service's text: its number of lines and a digest. When the service
changes its text, the old text is found by this fingerprint, so that no text of another author is replaced.

`vm` is the request: the extra var of every playbook (docs/actions.md). `facts` contains the status, the configuration
and other data of a guest, as read from Proxmox. All functions are pure.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from .deletion import TAGS_REFUSED_MEMBER, current_deletion_line, deletion_due_at, requested_deletion_line
from .identity import PROTECTED_LINE, has_protected_line
from .request_values import is_yes
from .shared.marker import MARKER_LINE, SMITH_LINES, agent_id_in, marker_for, without_imitated_smith_lines

#: The line with the fingerprint of the service's text. Group 1 is the fingerprint.
FINGERPRINT_LINE = re.compile(
    r"^[ \t]*smith-text[ \t]*=[ \t]*(\d{1,4}-[0-9a-f]{12})[ \t\r]*$", re.MULTILINE | re.IGNORECASE
)
#: The number of hexadecimal digits of the digest in the fingerprint.
DIGEST_LENGTH = 12

Lines = list[str]


def new_description(vm: dict[str, Any], marks: str = "", current_description: str = "") -> str:
    """Return the new description of a guest that has no marker yet: the service's text, then Agent Smith's lines.

    `marks` contains the deletion mark and the protection mark; they are the first of Agent Smith's lines. Parts of the
    service's text that imitate one of Agent Smith's lines are altered. `current_description` may be a text that an
    operator wrote before the VM was adopted. If it equals the service's text, the line `smith-text` is left out.
    Without this line, a later change of the service's text does not replace the operator's text.
    """
    text = _text_lines(vm)
    lines_above = [*text, ""] if text else []
    fingerprint = "" if text == current_description.strip().split("\n") else _fingerprint_of(text)
    return "\n".join([*lines_above, *_smith_lines(vm, marks, fingerprint, str(vm.get("agent_id") or ""))])


def description_to_set(facts: dict[str, Any], vm: dict[str, Any], has_marker: bool) -> str | None:
    """Return the whole new description, or None if the description need not change.

    If the request names no agent's id, the current id is kept. A mark is kept until a request removes it. The lines of
    other authors are kept in their order.
    """
    current_description = str(facts["config"].get("description") or "")
    if not has_marker:
        marks = requested_deletion_line(vm) + _protected_line(vm, has_line=False)
        return new_description(vm, marks, current_description)
    current_agent_id = agent_id_in(current_description)
    agent_id = str(vm.get("agent_id") or current_agent_id).lower()
    current_marks = current_deletion_line(facts) + (PROTECTED_LINE if has_protected_line(facts) else "")
    marks = _mark_lines(facts, vm)
    current_lines = _lines_except_smith_lines(current_description)
    lines, fingerprint = current_lines, _fingerprint_in(current_description)
    if "description" in vm:
        lines, fingerprint = _replace_text(lines, fingerprint, _text_lines(vm))
    if (lines, marks, agent_id) == (current_lines, current_marks, current_agent_id):
        return None
    lines_above, lines_below = lines
    return "\n".join([*lines_above, *_smith_lines(vm, marks, fingerprint, agent_id), *lines_below]).strip("\n")


def is_deletion_cancelled(facts: dict[str, Any], vm: dict[str, Any]) -> bool:
    """Return True if the request cancels a deletion for which the VM is marked."""
    return is_yes(vm.get("cancel_deletion", False)) and bool(deletion_due_at(facts))


def _mark_lines(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the lines of the marks that the description will have."""
    kept_line = "" if is_deletion_cancelled(facts, vm) else current_deletion_line(facts)
    return (requested_deletion_line(vm) or kept_line) + _protected_line(vm, has_line=has_protected_line(facts))


def _protected_line(vm: dict[str, Any], *, has_line: bool) -> str:
    """Return the line of the protection mark; '' if the VM is not to be protected, or if the mark is a tag.

    `has_line` says whether the description has the line. A line is kept until the service removes the protection. The
    action plugin adds TAGS_REFUSED_MEMBER to `vm` after Proxmox has refused a tag; the marks are then lines.
    """
    requested_protection = vm.get("protection")
    is_kept = has_line and (requested_protection is None or is_yes(requested_protection))
    is_added = requested_protection is not None and is_yes(requested_protection) and bool(vm.get(TAGS_REFUSED_MEMBER))
    return PROTECTED_LINE if is_kept or is_added else ""


def _smith_lines(vm: dict[str, Any], marks: str, fingerprint: str, agent_id: str) -> Lines:
    """Return Agent Smith's lines of a description."""
    fingerprint_line = [f"smith-text={fingerprint}"] if fingerprint else []
    agent_line = [f"smith-agent={agent_id.lower()}"] if agent_id else []
    return [*marks.splitlines(), *fingerprint_line, *agent_line, marker_for(str(vm["service_id"]).lower())]


def _lines_except_smith_lines(description: str) -> tuple[Lines, Lines]:
    """Return the lines above the marker, and the lines below it. Agent Smith's lines are left out."""
    lines = description.split("\n")
    position = next((number for number, line in enumerate(lines) if MARKER_LINE.match(line)), len(lines))
    lines_above, lines_below = (
        [line for line in part if not SMITH_LINES.match(line)] for part in (lines[:position], lines[position:])
    )
    return lines_above, lines_below


# ---------------------------------------------------------------------- the service's text


def _text_lines(vm: dict[str, Any]) -> Lines:
    text = without_imitated_smith_lines(str(vm.get("description") or "")).strip()
    return text.split("\n") if text else []


def _fingerprint_of(text: Lines) -> str:
    """Return the number of lines and the digest of a text; '' if the text has no line."""
    digest = hashlib.sha256("\n".join(text).encode(errors="replace")).hexdigest()
    return f"{len(text)}-{digest[:DIGEST_LENGTH]}" if text else ""


def _fingerprint_in(description: str) -> str:
    fingerprints = FINGERPRINT_LINE.findall(description)
    return str(fingerprints[0]).lower() if len(fingerprints) == 1 else ""


def _replace_text(lines: tuple[Lines, Lines], old_fingerprint: str, text: Lines) -> tuple[tuple[Lines, Lines], str]:
    """Return the lines with the service's new text in place of its old text, and the fingerprint of the new text.

    `old_fingerprint` is the fingerprint of the old text; '' if the description has none, for example because an earlier
    version of Agent Smith wrote the text. If another author has changed the old text, it is not found, so it stays
    beside the new text.
    """
    lines_above, lines_below = lines
    for part, is_above in ((lines_above, True), (lines_below, False)):
        position = _position_of_text(part, old_fingerprint, text)
        if position is None:
            continue
        line_count = int(old_fingerprint.partition("-")[0]) if old_fingerprint else len(text)
        changed_part = [*part[:position], *text, *part[position + line_count :]]
        new_lines = (changed_part, lines_below) if is_above else (lines_above, changed_part)
        return new_lines, _fingerprint_of(text)
    if not text or old_fingerprint == _fingerprint_of(text):
        return lines, old_fingerprint
    return ([*text, "", *lines_above], lines_below), _fingerprint_of(text)


def _position_of_text(lines: Lines, old_fingerprint: str, text: Lines) -> int | None:
    """Return the index in `lines` at which the text with the fingerprint begins; None if the text is not found.

    A description without a fingerprint may already contain `text`, the service's new text. So if `old_fingerprint` is
    '', the function searches for `text`.
    """
    fingerprint = old_fingerprint or _fingerprint_of(text)
    line_count = int(fingerprint.partition("-")[0]) if fingerprint else 0
    starts = range(len(lines) - line_count + 1) if line_count else ()
    return next((start for start in starts if _fingerprint_of(lines[start : start + line_count]) == fingerprint), None)
