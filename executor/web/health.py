"""The two questions of whoever keeps us running: are we alive, and could we carry a job now?

Alive means that loops move, however long a job takes and whoever does not answer: a restart must help, or it must not
happen. Ready means that all that a job needs is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from executor.web.agent_view import AgentHandle, AgentView
from executor.web.probes import Prober

#: Seconds after which a loop that did not turn is stuck. The reporter's turn holds up to fifty reports, each of which
#: may meet a FulcrumCore that lets us wait; all others turn every few seconds, a minute when the database fails.
PATIENCE_S = {"main": 60.0, "dispatch": 120.0, "report": 900.0, "leases": 120.0}
#: A lease's sixth is the lease loop's pace, and its setting may be an hour.
LEASES_OF_PATIENCE = 2.0
#: Later than the monitor's own judgement: it gives an overdue critical job a new thread, and that must get its chance.
CRITICAL_PATIENCE = 6.0
CRITICAL_SLACK_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    reason: str = ""  #: our own words, fit for everybody
    detail: str = ""  #: may name hosts and folders


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, with all that led to it."""

    status: str
    ok: bool
    checks: tuple[Check, ...] = ()

    def shown(self, *, with_details: bool) -> dict[str, Any]:
        """Return what a page shows."""
        rows = []
        for check in self.checks:
            row: dict[str, Any] = {"name": check.name, "ok": check.ok}
            row |= {"reason": check.reason} if check.reason else {}
            row |= {"detail": check.detail} if check.detail and with_details else {}
            rows.append(row)
        return {"status": self.status, "checks": rows}


def liveness(stage: AgentHandle) -> Verdict:
    """Judge whether every loop moved lately."""
    if stage.watched is None or not stage.watched[0].state.turns:
        return Verdict(status="starting", ok=True)
    watched, _prober = stage.watched
    if watched.state.stopping.is_set():
        return Verdict(status="stopping", ok=True)
    checks = (*_loops(watched), *_critical_jobs(watched))
    ok = all(check.ok for check in checks)
    return Verdict(status="alive" if ok else "stuck", ok=ok, checks=checks)


def _loops(watched: AgentView) -> list[Check]:
    now = time.monotonic()
    checks = []
    for name, patience_s in PATIENCE_S.items():
        if name == "leases":
            patience_s = max(patience_s, watched.settings.smith_lease_s * LEASES_OF_PATIENCE)  # noqa: PLW2901 (one of them depends on a setting)
        turned_at = watched.state.turns.get(name)
        quiet_s = now - turned_at if turned_at is not None else 0.0
        reason = f"has not moved for {quiet_s:.0f} s" if quiet_s > patience_s else ""
        checks.append(Check(name=name, ok=not reason, reason=reason))
    return checks


def _critical_jobs(watched: AgentView) -> list[Check]:
    overdue = watched.scheduler.overdue(patience=CRITICAL_PATIENCE, slack_s=CRITICAL_SLACK_S)
    return [
        Check(name=name, ok=name not in overdue, reason="is overdue" if name in overdue else "")
        for name in watched.scheduler.jobs
    ]


def readiness(stage: AgentHandle) -> Verdict:
    """Judge whether a job could be carried now."""
    if stage.watched is None:
        reason = "waits for FulcrumCore's configuration" if stage.waits_for else ""
        starting = Check(name="agent", ok=False, reason=reason or "is starting", detail=stage.waits_for)
        return Verdict(status="not ready", ok=False, checks=(starting,))
    watched, prober = stage.watched
    checks = (_agent(watched), _fulcrum(watched), *_found(prober))
    ok = all(check.ok for check in checks)
    return Verdict(status="ready" if ok else "not ready", ok=ok, checks=checks)


def _agent(watched: AgentView) -> Check:
    state = watched.state
    if not state.turns:
        return Check(name="agent", ok=False, reason="is starting")
    if state.draining.is_set():
        return Check(name="agent", ok=False, reason="is draining: nothing new is begun")
    # An operator of FulcrumCore wants it so: it is no failure, and no restart would help.
    return Check(name="agent", ok=True, reason="is disabled in FulcrumCore: it rests" if state.disabled else "")


def fulcrum_is_up(watched: AgentView) -> bool:
    """True when FulcrumCore has answered us, and did so the last time."""
    return watched.state.heartbeat_at > 0 and watched.state.fulcrum.is_up


def _fulcrum(watched: AgentView) -> Check:
    if fulcrum_is_up(watched):
        return Check(name="fulcrum", ok=True)
    detail = watched.state.fulcrum.reason
    reason = "FulcrumCore does not answer, or not to us" if detail else "FulcrumCore has not answered yet"
    return Check(name="fulcrum", ok=False, reason=reason, detail=detail)


def _found(prober: Prober) -> list[Check]:
    found = {name: prober.finding(name) for name in prober.looks}
    return [
        Check(name=name, ok=finding.ok, reason=finding.reason, detail=finding.detail) for name, finding in found.items()
    ]
