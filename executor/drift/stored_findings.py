"""Converts the findings of a drift check to JSON for the database, and back."""

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


def decode_findings(stored: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Return the findings. Leave out findings that another version has stored in an unknown form."""
    findings = []
    for values in stored:
        try:
            findings.append(_decode(values))
        except (KeyError, TypeError, ValueError):
            continue
    return findings


def _decode(values: Mapping[str, Any]) -> Finding:
    mapping, repair = values["mapping"], values["repair"]
    if mapping is not None:
        mapping = MappingFacts(**(mapping | {"updated_at": datetime.fromisoformat(mapping["updated_at"])}))
    kind = DriftKind(values["kind"])
    return Finding(**{**values, "kind": kind, "repair": Repair(repair) if repair else None, "mapping": mapping})
