# SPDX-License-Identifier: Apache-2.0
"""Finds the template from which a VM is cloned.

In Proxmox's list of guests, the row of a new VM has neither `name` nor `template`. The same is true for a VM on a
Proxmox node whose daemon pvestatd sends no statistics. Such a VM may be the template, so its facts (status,
configuration and more) are read from Proxmox.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import Cluster

Row = dict[str, Any]
#: The facts of a guest or a template. `guest_facts.facts_of_absent_guest` lists the keys.
Facts = dict[str, Any]


def find_template(cluster: Cluster, rows: list[Row], vmid: int, name: str, preferred_node: str) -> Facts:
    """Return the facts of the template with this VMID or, if `vmid` is 0, with this name.

    The facts have the additional key `problem`: a reason why the template cannot be cloned, or ''. `rows` is Proxmox's
    list of guests. If several templates have the name, one on `preferred_node` is preferred.
    """
    template_text = f"template {vmid or name}"
    for row in _candidate_rows(rows, vmid, name, preferred_node):
        facts = cluster.read_facts(str(row["node"]), int(row["vmid"]))
        if facts is None:
            problem = f"PVE_CONFLICT: VM {row['vmid']} was moved or removed while the {template_text} was looked up"
            return {"exists": False, "problem": problem}
        if vmid or (facts["is_template"] and facts["name"] == name):
            return {**facts, "problem": _marker_problem(facts)}
    return {"exists": False, "problem": f"NOT_FOUND: {template_text} does not exist, or the token lacks VM.Audit on it"}


def _candidate_rows(rows: list[Row], vmid: int, name: str, preferred_node: str) -> Iterator[Row]:
    """Yield the rows of VMs that may be the template: rows of the preferred node first, rows without a name last."""
    rows = [row for row in rows if row.get("type") == "qemu"]
    if vmid:
        rows = [row for row in rows if int(row["vmid"]) == vmid]
    named_rows = [row for row in rows if "name" in row and (vmid or (row.get("template") and row["name"] == name))]
    named_rows.sort(key=lambda row: (row.get("node") != preferred_node, row["vmid"]))
    yield from named_rows
    yield from (row for row in rows if "name" not in row)


def _marker_problem(facts: Facts) -> str:
    """Return a problem if the notes of a template have a marker, which the clone would get, too; '' if not.

    A VM that is not a template is not checked here: `creation.request_problem` refuses to clone it.
    """
    if not facts["markers"] or not facts["is_template"]:
        return ""
    lines = " and ".join(f"smith-uid={marker}" for marker in facts["markers"])
    text = f"the notes of template {facts['vmid']} have the marker of a service: remove {lines} from the notes"
    return f"VM_IDENTITY_MISMATCH: {text}"
