"""The steps of a reporter, which sends the results of ended jobs. It mirrors `agent/reporter.py`."""

from __future__ import annotations

from collections.abc import Iterator

from protocol import database, fulcrum
from protocol.decisions import Decisions
from protocol.worker import Transition, check_refusal
from protocol.world import ACTIONS, Report, World, with_agent, with_row

from executor.agent.report import RefusalReaction
from executor.agent.reporter import MAX_FAILED_COMPLETIONS
from executor.model import JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

#: By step: the next step if FulcrumCore accepts the request, and if it refuses the request with 400. "": the report is
#: postponed.
NEXT_STEPS = {
    "send": ("note", "read"),
    "claim": ("resend", ""),
    "resend": ("note", ""),
    "without": ("note", "fail"),
    "fail": ("replace", ""),
    "fail after 500": ("replace", ""),
}


def transitions(world: World, agent_index: int, decisions: Decisions) -> Iterator[Transition]:
    """Yield what may happen next to the report that an agent sends, or the start of a report."""
    agent = world.agents[agent_index]
    report = agent.report
    if report is None:
        yield from _start_report(world, agent_index)
        return
    subject = f"Agent {agent.name}, report of job {report.job + 1} ({ACTIONS[report.job]}): "
    if report.step in ("note", "replace"):
        yield from _store(world, agent_index, report, subject)
    elif report.step == "read":
        for reply in fulcrum.read(world, report.job):
            new = (
                _report_after_refusal(report, reply.job.status, reply.job.error, decisions)
                if reply.answer == "ok"
                else None
            )
            if reply.answer == "403":
                new = report._replace(step="check")
            yield Transition(
                f"{subject}it reads the job; {reply.description}",
                with_agent(reply.world, agent_index, report=new),
                reply.is_fault,
            )
    elif report.step == "check":
        for verdict, description, after, is_fault in check_refusal(world, agent_index, report.job, decisions):
            new = report._replace(step="note", state=ReportState.ABANDONED) if verdict == "gone" else None
            yield Transition(subject + description, with_agent(after, agent_index, report=new), is_fault)
    else:
        yield from _send(world, agent_index, report, subject)


def _start_report(world: World, agent_index: int) -> Iterator[Transition]:
    agent = world.agents[agent_index]
    if not agent.is_connected:
        return
    for job, row in enumerate(world.rows):
        if row is not None and row.report is ReportState.DUE:
            report = Report(job, row.status is JobStatus.COMPLETED, row.error)
            yield Transition(
                f"Agent {agent.name} finds the due report of job {job + 1}",
                with_agent(world, agent_index, report=report),
            )


def _send(world: World, agent_index: int, report: Report, subject: str) -> Iterator[Transition]:
    request, error = ("complete", None) if report.is_completion else ("fail", report.error)
    if report.step == "claim":
        request, error = "claim", None
    elif report.step in ("fail", "fail after 500"):
        request, error = "fail", ErrorCode.RESULT_REFUSED
    accepted_step, refused_step = NEXT_STEPS[report.step]
    for reply in fulcrum.send(world, request, report.job, error):
        step_after_403 = "" if report.step == "fail after 500" else "check"
        step = {"ok": accepted_step, "refused": refused_step, "403": step_after_403}.get(reply.answer, "")
        state = ReportState.REPORTED if step in ("note", "replace") else report.state
        new = report._replace(step=step, state=state) if step else None
        description = f"{subject}it sends the request `{request}`; {reply.description}"
        yield Transition(description, with_agent(reply.world, agent_index, report=new), reply.is_fault)
        if reply.answer == "500" and report.is_completion and report.step in ("send", "resend"):
            failing = with_agent(reply.world, agent_index, report=report._replace(step="fail after 500"))
            yield Transition(
                f"{description}, as to the {MAX_FAILED_COMPLETIONS} requests before", failing, reply.is_fault
            )


def _report_after_refusal(report: Report, status: str, error: str | None, decisions: Decisions) -> Report | None:
    reaction = decisions.reaction_to_refusal(
        is_completion=report.is_completion,
        error_message=report.error,
        status_at_fulcrum=status,
        error_at_fulcrum=error,
    )
    if reaction is RefusalReaction.CLAIM_AND_SEND:
        return report._replace(step="claim")
    if reaction is RefusalReaction.SEND_WITHOUT_PROPERTIES:
        return report._replace(step="without") if report.is_completion else None
    is_reported = reaction is RefusalReaction.SETTLE_AS_REPORTED
    return report._replace(step="note", state=ReportState.REPORTED if is_reported else ReportState.ENDED_BY_FULCRUM)


def _store(world: World, agent_index: int, report: Report, subject: str) -> Iterator[Transition]:
    agent = world.agents[agent_index]
    if agent.is_connected:
        row = world.rows[report.job]
        assert row is not None
        if report.step == "replace":
            row = database.replace_result(row, ErrorCode.RESULT_REFUSED)
        after = with_row(world, report.job, database.set_report_state(row, report.state))
        yield Transition(f"{subject}it stores `{report.state}`", with_agent(after, agent_index, report=None))
    if world.faults_left or not agent.is_connected:
        lost = with_agent(world, agent_index, report=None)
        yield Transition(f"{subject}it stores the answer, but the database cannot be reached", lost, agent.is_connected)
