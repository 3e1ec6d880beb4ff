"""Reports whether the agent is alive, and whether it is ready for jobs.

The agent is alive while each of its loops makes progress. It stays alive during a long job, or while a server cannot be
reached, because a restart of the agent would not help. It is ready while everything that a job needs is available.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from executor.web.agent_view import AgentHandle, AgentView
from executor.web.probes import Prober

#: Maximum seconds between the starts of two iterations of each loop. An iteration of `report` sends up to fifty
#: reports, and each may last until the timeout of its request. An iteration of another loop takes a few
#: seconds, or a minute if the database fails.
MAX_SILENCE_S = {"main": 60.0, "dispatch": 120.0, "report": 900.0, "leases": 120.0}
#: The maximum of the loop `leases` is at least this many times SMITH_LEASE_S, which may be an hour. The loop waits for
#: a part of this time between two iterations.
MAX_SILENCE_LEASES = 2.0
#: A critical (periodic) job is overdue if its last execution was longer ago than this many intervals plus the slack.
#: The agent's monitor restarts a critical job earlier than that, because the restart may solve the problem.
CRITICAL_MAX_INTERVALS = 6.0
CRITICAL_SLACK_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool
    reason: str = ""  #: one of a fixed set of sentences; it is shown without a login, too
    detail: str = ""  #: may name hosts and folders; it is shown only with a login


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The state of the agent, and the checks that determine it."""

    status: str
    ok: bool
    checks: tuple[Check, ...] = ()

    def as_json(self, *, with_details: bool) -> dict[str, Any]:
        """Return the content of the page, with or without the details of the checks."""
        rows = []
        for check in self.checks:
            row: dict[str, Any] = {"name": check.name, "ok": check.ok}
            row |= {"reason": check.reason} if check.reason else {}
            row |= {"detail": check.detail} if check.detail and with_details else {}
            rows.append(row)
        return {"status": self.status, "checks": rows}


def liveness(handle: AgentHandle) -> HealthReport:
    """Check whether every loop and every critical job of the agent makes progress."""
    if handle.attached is None or not handle.attached[0].state.progress_at:
        return HealthReport(status="starting", ok=True)
    view, _prober = handle.attached
    if view.state.stopping.is_set():
        return HealthReport(status="stopping", ok=True)
    checks = (*_loop_checks(view), *_critical_job_checks(view))
    ok = all(check.ok for check in checks)
    return HealthReport(status="alive" if ok else "stuck", ok=ok, checks=checks)


def _loop_checks(view: AgentView) -> list[Check]:
    """Return one check for each loop: whether its last iteration started recently."""
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
    """Check whether the agent could process a job now."""
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
    # That the agent is disabled is not a failure: an operator of FulcrumCore wants it, and a restart would not help.
    reason = "is disabled in FulcrumCore: no jobs are claimed" if state.disabled else ""
    return Check(name="agent", ok=True, reason=reason)


def fulcrum_is_up(view: AgentView) -> bool:
    """True if FulcrumCore has accepted a heartbeat since the agent's start, and has answered the last request."""
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
