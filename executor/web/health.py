"""Reports whether the agent is alive, and whether it is ready for jobs.

The agent is alive while each of its loops and each of its critical (periodic) jobs makes progress. A long job, or a
server that cannot be reached, does not change this, because a restart of the agent would not help. The agent is ready
while everything that a job needs is available.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from executor.web.agent_view import AgentHandle, AgentView
from executor.web.probes import Prober

#: Maximum time between the starts of two iterations, for each loop of the agent: `main` waits for a reason to stop,
#: `dispatch` starts jobs, `report` reports results, `leases` renews leases, and `fence` ends the runs if the leases
#: are not renewed in time. An iteration of `report` sends up to fifty reports, and each report may take until its
#: request times out. An iteration of any other loop takes a few seconds, or a minute if the database fails.
MAX_ITERATION_S_BY_LOOP = {"main": 60.0, "dispatch": 120.0, "report": 900.0, "leases": 120.0, "fence": 60.0}
#: For the loop `leases`, the maximum is at least SMITH_LEASE_S times this factor: each iteration of this loop ends with
#: a wait of a sixth of SMITH_LEASE_S, and SMITH_LEASE_S may be an hour.
LEASES_LOOP_MAX_ITERATION_FACTOR = 2.0
#: A critical job is reported as overdue if its thread has ended, or if no execution has started or ended for six
#: intervals plus 120 s. Normally the loop `main` prevents both: it starts a new thread if the thread has ended, or if
#: no execution has started or ended for three intervals plus 30 s. The start of the thread counts as the start of an
#: execution.
MAX_INTERVALS_WITHOUT_EXECUTION = 6.0
EXECUTION_TOLERANCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class HealthCheckResult:
    """The result of one check."""

    name: str
    ok: bool
    reason: str = ""  #: explains the result, without hosts and paths; every caller may see it
    #: Further explanation, which may name hosts and folders. If a login is required, only callers with a login see it.
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The state of the agent, and the checks that determine it."""

    status: str  #: such as `alive` or `not ready`; openapi.py lists all values
    ok: bool  #: True: the response has the HTTP status 200; False: 503
    checks: tuple[HealthCheckResult, ...] = ()

    def as_json(self, *, with_details: bool) -> dict[str, Any]:
        """Return the JSON content of the response, with or without the details of the checks."""
        rows = []
        for check in self.checks:
            row: dict[str, Any] = {"name": check.name, "ok": check.ok}
            if check.reason:
                row["reason"] = check.reason
            if check.detail and with_details:
                row["detail"] = check.detail
            rows.append(row)
        return {"status": self.status, "checks": rows}


def liveness_report(handle: AgentHandle) -> HealthReport:
    """Check whether every loop and every critical job of the agent makes progress.

    `handle.view_and_prober` contains the parts of the agent that the web pages read, and the prober, which checks
    Proxmox, database and disk. It is None until the agent is created.
    """
    if handle.view_and_prober is None:
        return HealthReport(status="starting", ok=True)
    view, _prober = handle.view_and_prober
    if not view.state.iteration_started_at:  # no loop has started
        return HealthReport(status="starting", ok=True)
    if view.state.stopping.is_set():
        return HealthReport(status="stopping", ok=True)
    checks = (*_check_loops(view), *_check_critical_jobs(view))
    ok = all(check.ok for check in checks)
    return HealthReport(status="alive" if ok else "stuck", ok=ok, checks=checks)


def _check_loops(view: AgentView) -> list[HealthCheckResult]:
    """Return one result for each loop. The result is ok if the last iteration of the loop started recently."""
    now = time.monotonic()
    checks = []
    max_iteration_s_by_loop = dict(MAX_ITERATION_S_BY_LOOP)
    max_iteration_s_by_loop["leases"] = max(
        MAX_ITERATION_S_BY_LOOP["leases"], view.settings.smith_lease_s * LEASES_LOOP_MAX_ITERATION_FACTOR
    )
    for name, max_iteration_s in max_iteration_s_by_loop.items():
        iteration_started_at = view.state.iteration_started_at.get(name)
        since_start_s = now - iteration_started_at if iteration_started_at is not None else 0.0
        reason = f"no progress for {since_start_s:.0f} s" if since_start_s > max_iteration_s else ""
        checks.append(HealthCheckResult(name=name, ok=not reason, reason=reason))
    return checks


def _check_critical_jobs(view: AgentView) -> list[HealthCheckResult]:
    """Return one result for each critical job. The result is ok if the critical job is not overdue."""
    overdue_names = view.scheduler.overdue_critical_jobs(
        max_intervals=MAX_INTERVALS_WITHOUT_EXECUTION, tolerance_s=EXECUTION_TOLERANCE_S
    )
    return [
        HealthCheckResult(name=name, ok=name not in overdue_names, reason="is overdue" if name in overdue_names else "")
        for name in view.scheduler.jobs
    ]


def readiness_report(handle: AgentHandle) -> HealthReport:
    """Check whether the agent could process a job now."""
    if handle.view_and_prober is None:
        # `start_wait_reason` says why the agent waits for its configuration; it is '' if the agent does not wait.
        reason = "waits for its configuration from FulcrumCore" if handle.start_wait_reason else "is starting"
        check = HealthCheckResult(name="agent", ok=False, reason=reason, detail=handle.start_wait_reason)
        return HealthReport(status="not ready", ok=False, checks=(check,))
    view, prober = handle.view_and_prober
    checks = (_check_agent(view), _check_fulcrum(view), *_probe_results(prober))
    ok = all(check.ok for check in checks)
    return HealthReport(status="ready" if ok else "not ready", ok=ok, checks=checks)


def _check_agent(view: AgentView) -> HealthCheckResult:
    state = view.state
    if not state.iteration_started_at:
        return HealthCheckResult(name="agent", ok=False, reason="is starting")
    if state.draining.is_set():
        return HealthCheckResult(name="agent", ok=False, reason="is draining: no new jobs are started")
    if state.id_of_other_agent_on_database:
        detail = f"the id of the other agent in FulcrumCore is {state.id_of_other_agent_on_database}"
        return HealthCheckResult(
            name="agent",
            ok=False,
            reason="an agent with another id in FulcrumCore uses the database: no jobs are claimed",
            detail=detail,
        )
    # An agent that an operator has disabled or paused is ready, because it works as the operator has requested.
    if state.is_disabled:
        return HealthCheckResult(name="agent", ok=True, reason="is disabled in FulcrumCore: no jobs are claimed")
    if state.pause is not None:
        detail = f"since {state.pause.since:%Y-%m-%d %H:%M:%S}Z by {state.pause.who}: {state.pause.reason}"
        return HealthCheckResult(
            name="agent", ok=True, reason="is paused by an operator: no jobs are claimed", detail=detail
        )
    return HealthCheckResult(name="agent", ok=True)


def is_fulcrum_up(view: AgentView) -> bool:
    """Return whether FulcrumCore answered the last request, and has accepted a heartbeat since the agent's start.

    `fulcrum_link` records whether FulcrumCore answered the last request.
    """
    return view.state.heartbeat_at > 0 and view.state.fulcrum_link.is_up


def _check_fulcrum(view: AgentView) -> HealthCheckResult:
    if is_fulcrum_up(view):
        return HealthCheckResult(name="fulcrum", ok=True)
    last_error = view.state.fulcrum_link.reason
    reason = "FulcrumCore does not answer, or refuses the token" if last_error else "FulcrumCore has not answered yet"
    return HealthCheckResult(name="fulcrum", ok=False, reason=reason, detail=last_error)


def _probe_results(prober: Prober) -> list[HealthCheckResult]:
    """Return the last results of the probes: the checks of Proxmox, database and disk that run every 30 s."""
    results = {name: prober.result(name) for name in prober.probes}
    return [
        HealthCheckResult(name=name, ok=result.ok, reason=result.reason, detail=result.detail)
        for name, result in results.items()
    ]
