"""Converts the findings of a drift check to JSON for the database, and back.

A finding describes one difference between the agent's mappings, the guests in Proxmox and the services in FulcrumCore.
It may contain a `MappingFacts` (the values of the mapping's row) and a `Repair` (the kind of change by which the agent
can remove the difference).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from executor.drift.facts import DriftKind, Finding, MappingFacts, Repair


def encode_finding(finding: Finding) -> dict[str, Any]:
    """Return the finding as a dict of JSON values."""
    values = asdict(finding)
    if finding.mapping is not None:
        values["mapping"]["updated_at"] = finding.mapping.updated_at.isoformat()
    return values


def decode_findings(encoded_findings: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings. Leave out findings of another version of Agent Smith that this version cannot decode."""
    findings = []
    for values in encoded_findings:
        try:
            findings.append(_decode_finding(values))
        except (KeyError, TypeError, ValueError):
            continue
    return findings


def _decode_finding(values: Mapping[str, Any]) -> Finding:
    mapping, repair = values["mapping"], values["repair"]
    if mapping is not None:
        mapping = MappingFacts(**(mapping | {"updated_at": datetime.fromisoformat(mapping["updated_at"])}))
    kind = DriftKind(values["kind"])
    return Finding(**{**values, "kind": kind, "repair": Repair(repair) if repair else None, "mapping": mapping})
