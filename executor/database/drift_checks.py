"""Stores the findings of a cluster's last conclusive drift check, so that all agents show the same findings.

A drift check searches for differences between the mappings, Proxmox and FulcrumCore. It is inconclusive if Proxmox's
list of VMs or FulcrumCore's list of services may be incomplete (`drift/inconclusive.py`), and conclusive otherwise.
Only conclusive checks are stored. No function of this module commits: the caller commits the transaction.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from executor.database.statements import insert_into
from executor.database.tables.mappings import DriftCheck
from executor.database.times import db_now

#: One dict for each difference that a check found.
Findings = list[dict[str, Any]]


def replace_findings(session: Session, cluster: str, findings: Findings) -> Findings:
    """Store the findings of a check. Return the findings of the previous check."""
    previous_findings = session.scalar(
        select(DriftCheck.findings).where(DriftCheck.cluster == cluster).with_for_update()
    )
    columns: dict[str, Any] = {"concluded_at": db_now(), "findings": findings}
    stmt = insert_into(session, DriftCheck).values(cluster=cluster, **columns)
    session.execute(stmt.on_conflict_do_update(index_elements=["cluster"], set_=columns))
    return previous_findings or []


def latest_findings(session: Session, cluster: str, *, max_age_s: float) -> Findings | None:
    """Return the findings of the last check. Return None if there is none, or if it is older than `max_age_s`."""
    stmt = select(DriftCheck.findings).where(DriftCheck.cluster == cluster)
    return session.scalar(stmt.where(DriftCheck.concluded_at >= db_now(-max_age_s)))
