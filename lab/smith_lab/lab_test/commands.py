"""Defines the commands `smith lab-test` and `smith lab-sweep`.

The lab's package declares both commands as entry points in the group `smith.commands`, which the program `smith` loads.
A run is one execution of `smith lab-test`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from executor.cli.arguments import AsJson
from executor.cli.doctor import show_check_results
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.tables import show_rows
from executor.errors import EXIT_FAILURE, SmithError
from executor.redaction import redactor
from executor.settings.settings import load_settings
from smith_lab.lab_test import sweeper
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.lab_checks import check_lab, is_lab_usable
from smith_lab.lab_test.lab_settings import LabSettings, is_lab_configured, require_vmids_outside_agent_range
from smith_lab.lab_test.open_lab import LabRun, open_lab, reserve_range_for_run
from smith_lab.lab_test.reserved_range import utc_text
from smith_lab.lab_test.run_tests import LabTestRequest, run_tests

#: How long `smith lab-test` waits for a range of VMIDs that no other run has reserved.
DEFAULT_WAIT_S = 600
#: The exit code if no test has run, because the lab's settings are wrong, the lab cannot be used, or no range of VMIDs
#: is free. pytest has the same exit code for wrong arguments.
EXIT_NOT_RUN = 4
COLUMNS = {"vmid": "VMID", "name": "NAME", "outcome": "OUTCOME", "reason": "REASON"}


@examples(
    "smith lab-test                               Agent Smith's own tests",
    "smith lab-test tests/lab --junit report.xml --html report.html      your own tests, with reports",
    "smith lab-test -k delete --keep              some tests; their guests are not removed",
)
def lab_test(  # noqa: PLR0917 (typer passes all arguments by name)
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", exists=True, help="Your test files or folders; without PATH, Agent Smith's own tests run."
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit report.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML report.")] = None,
    keyword: Annotated[
        str, typer.Option("-k", metavar="EXPRESSION", help="Run only the tests that match (as pytest's -k).")
    ] = "",
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the tests' guests. `smith lab-sweep` can remove them when the reservation of their VMIDs has "
            "expired.",
        ),
    ] = False,
    time_limit_s: Annotated[
        int,
        typer.Option(
            "--time-limit",
            metavar="SECONDS",
            min=60,
            max=86_400,
            help="How long the tests may run; then they are interrupted.",
        ),
    ] = 3600,
    wait_s: Annotated[
        int,
        typer.Option(
            "--wait", metavar="SECONDS", min=0, max=86_400, help="How long to wait for VMIDs if all are reserved."
        ),
    ] = DEFAULT_WAIT_S,
) -> None:
    """Test playbooks in a lab (a Proxmox server for tests, or a stand-in).

    The lab is the Proxmox server that the environment variables LAB_PROXMOX_* name. If these variables are not set, the
    lab is a Proxmox stand-in on this machine.

    The command checks the lab, reserves VMIDs and a name prefix, runs pytest with them, and removes the guests and
    backups of the tests. Several runs can use one lab at once.

    The exit code is pytest's. If the lab cannot be used, it is 4. If the tests passed, but a guest or backup could not
    be removed, it is 1.
    """
    request = LabTestRequest(
        paths=paths or (),
        junit=junit,
        html=html,
        keyword=keyword,
        must_keep_guests=keep,
        time_limit_s=time_limit_s,
        wait_s=wait_s,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # TERM then ends the tests as Ctrl-C does
    try:
        exit_code = _run_in_lab(request)
    except SmithError as error:
        show_error(str(error))
        raise typer.Exit(EXIT_NOT_RUN) from error
    raise typer.Exit(exit_code)


def _run_in_lab(request: LabTestRequest) -> int:
    """Check the lab, reserve VMIDs, run the tests, and remove their guests; return the exit code."""
    # The child process pytest writes to the same output. Without line buffering, its text would come before our text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab(os.environ))
        redactor.add(lab.token_secret)
        if is_lab_configured(os.environ):
            show_text(f"lab: {lab.host}:{lab.port}")
            require_vmids_outside_agent_range(lab, load_settings())
        else:
            show_text("lab: a stand-in for Proxmox")
        checks = check_lab(lab)
        show_check_results(checks)
        if not is_lab_usable(checks):
            show_error("the lab cannot be used: see the failed checks above")
            return EXIT_NOT_RUN
        with reserve_range_for_run(
            lab,
            time_limit_s=request.time_limit_s,
            must_keep_guests=request.must_keep_guests,
            wait_s=request.wait_s,
            on_wait=show_text,
        ) as run:
            vmids, prefix = run.reserved_range.vmids, run.reserved_range.prefix
            show_text(f"reserved: the VMIDs {vmids[0]} to {vmids[-1]} and names that begin with {prefix}")
            exit_code = run_tests(run, request)
    _show_leftovers(run, request)
    return exit_code or (EXIT_FAILURE if run.failed_removals else 0)


def _show_leftovers(run: LabRun, request: LabTestRequest) -> None:
    """Print which guests and backups stay in the lab. The `finding` of a removal describes the guest or backup."""
    # Without LAB_PROXMOX_*, the lab was a stand-in. It has ended, and keeps no guests.
    if request.must_keep_guests and is_lab_configured(os.environ):
        expiry_text, prefix = utc_text(run.reserved_range.lease.expires_at_s), run.reserved_range.prefix
        show_text(f"guests named {prefix}-… are kept until {expiry_text}; then `smith lab-sweep` can remove them")
    for removal in run.failed_removals:
        show_error(f"{removal.finding.vmid} {removal.finding.name} was not removed: {removal.problem}")


@examples(
    "smith lab-sweep             what would be removed",
    "smith lab-sweep --apply     remove these guests and backups",
)
def lab_sweep(
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove the guests and backups (default: only list them).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the guests and backups that `smith lab-test` left in the lab.

    The lab is the Proxmox cluster that the variables LAB_PROXMOX_* name. The lab's VMIDs are
    LAB_PROXMOX_VMID_MIN to LAB_PROXMOX_VMID_MAX. A guest or backup is removed only if its VMID is one of the lab's, its
    name and its marker identify a run of `smith lab-test` in this lab, and this run's reservation has expired. The
    command fails if the agent's VMIDs (PROXMOX_VMID_MIN to PROXMOX_VMID_MAX) contain one of the lab's VMIDs. Exit code
    1: a guest or backup could not be removed.
    """
    lab = LabSettings.from_environment(os.environ)
    lab.require_enough_vmids_for_one_test_run()
    redactor.add(lab.token_secret)
    require_vmids_outside_agent_range(lab, load_settings())
    cluster = LabCluster(lab)
    # A finding is a guest or a backup, with the decision whether it may be removed, and the reason.
    findings = sweeper.list_findings(cluster)
    # Maps a finding to the reason why `sweep` did not remove it; '' if it was removed. Without an entry: it was kept.
    problem_by_finding = {}
    if apply:
        problem_by_finding = {each.finding: each.problem for each in sweeper.sweep(cluster, findings)}
    rows = []
    for finding in findings:
        outcome = ("would be removed" if finding.is_removable else "kept") if not apply else ""
        if apply:
            outcome = "removed" if problem_by_finding.get(finding) == "" else "kept"
        reason = problem_by_finding.get(finding) or finding.reason
        rows.append({"vmid": finding.vmid, "name": finding.name, "outcome": outcome, "reason": reason})
    if as_json:
        show_json({"guests": rows, "applied": apply})
    else:
        show_rows(rows, COLUMNS, if_empty="no guest or backup has one of the lab's VMIDs")
    if any(problem_by_finding.values()):
        raise typer.Exit(EXIT_FAILURE)
