"""Reports whether the agent is alive, and whether it is ready for jobs.

It is alive while every loop makes progress. A long job or an unreachable server does not change that, because a restart
would not help. It is ready while everything that a job needs is available.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from executor.web.agent_view import AgentHandle, AgentView
from executor.web.probes import Prober

#: Maximum seconds between two turns of each loop. A turn of `report` sends up to fifty reports, and each may last until
#: the timeout of its request. A turn of another loop takes a few seconds, or a minute when the database fails.
MAX_SILENCE_S = {"main": 60.0, "dispatch": 120.0, "report": 900.0, "leases": 120.0}
#: The maximum of `leases` is at least this many lease times: the loop waits for a part of one, which may be an hour.
MAX_SILENCE_LEASES = 2.0
#: A critical job is reported as overdue later than the monitor restarts it, because the restart may solve the problem.
CRITICAL_MAX_INTERVALS = 6.0
CRITICAL_SLACK_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool
    reason: str = ""  #: one of a fixed set of sentences; shown without a login
    detail: str = ""  #: may name hosts and folders; shown only with a login


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The state of the agent, and the checks from which it was derived."""

    status: str
    ok: bool
    checks: tuple[Check, ...] = ()

    def as_json(self, *, with_details: bool) -> dict[str, Any]:
        """Return the content of a page."""
        rows = []
        for check in self.checks:
            row: dict[str, Any] = {"name": check.name, "ok": check.ok}
            row |= {"reason": check.reason} if check.reason else {}
            row |= {"detail": check.detail} if check.detail and with_details else {}
            rows.append(row)
        return {"status": self.status, "checks": rows}


def liveness(handle: AgentHandle) -> HealthReport:
    """Check that every loop and critical job makes progress."""
    if handle.attached is None or not handle.attached[0].state.progress_at:
        return HealthReport(status="starting", ok=True)
    view, _prober = handle.attached
    if view.state.stopping.is_set():
        return HealthReport(status="stopping", ok=True)
    checks = (*_loop_checks(view), *_critical_job_checks(view))
    ok = all(check.ok for check in checks)
    return HealthReport(status="alive" if ok else "stuck", ok=ok, checks=checks)


def _loop_checks(view: AgentView) -> list[Check]:
    now = time.monotonic()
    checks = []
    for name, max_silence_s in MAX_SILENCE_S.items():
        if name == "leases":
            max_silence_s = max(max_silence_s, view.settings.smith_lease_s * MAX_SILENCE_LEASES)  # noqa: PLW2901 (the maximum of `leases` depends on a setting)
        progress_at = view.state.progress_at.get(name)
        quiet_s = now - progress_at if progress_at is not None else 0.0
        reason = f"no progress for {quiet_s:.0f} s" if quiet_s > max_silence_s else ""
        checks.append(Check(name=name, ok=not reason, reason=reason))
    return checks


def _critical_job_checks(view: AgentView) -> list[Check]:
    overdue = view.scheduler.overdue(max_intervals=CRITICAL_MAX_INTERVALS, slack_s=CRITICAL_SLACK_S)
    return [
        Check(name=name, ok=name not in overdue, reason="is overdue" if name in overdue else "")
        for name in view.scheduler.jobs
    ]


def readiness(handle: AgentHandle) -> HealthReport:
    """Check that a job could be processed now."""
    if handle.attached is None:
        reason = "waits for FulcrumCore's configuration" if handle.waits_for else ""
        starting = Check(name="agent", ok=False, reason=reason or "is starting", detail=handle.waits_for)
        return HealthReport(status="not ready", ok=False, checks=(starting,))
    view, prober = handle.attached
    checks = (_agent_check(view), _fulcrum_check(view), *_probe_checks(prober))
    ok = all(check.ok for check in checks)
    return HealthReport(status="ready" if ok else "not ready", ok=ok, checks=checks)


def _agent_check(view: AgentView) -> Check:
    state = view.state
    if not state.progress_at:
        return Check(name="agent", ok=False, reason="is starting")
    if state.draining.is_set():
        return Check(name="agent", ok=False, reason="is draining: no new jobs are started")
    # An operator of FulcrumCore disabled the agent on purpose: this is not a failure, and a restart would not help.
    reason = "is disabled in FulcrumCore: no jobs are claimed" if state.disabled else ""
    return Check(name="agent", ok=True, reason=reason)


def fulcrum_is_up(view: AgentView) -> bool:
    """True when FulcrumCore has accepted a heartbeat and answered the last request."""
    return view.state.heartbeat_at > 0 and view.state.fulcrum.is_up


def _fulcrum_check(view: AgentView) -> Check:
    if fulcrum_is_up(view):
        return Check(name="fulcrum", ok=True)
    detail = view.state.fulcrum.reason
    reason = "FulcrumCore does not answer, or refuses the token" if detail else "FulcrumCore has not answered yet"
    return Check(name="fulcrum", ok=False, reason=reason, detail=detail)


def _probe_checks(prober: Prober) -> list[Check]:
    results = {name: prober.result(name) for name in prober.probes}
    return [
        Check(name=name, ok=result.ok, reason=result.reason, detail=result.detail) for name, result in results.items()
    ]
