"""Pipelines that run `smith lab-test` in one lab at the same time.

If one is killed, the sweeper (`smith lab-sweep`) removes the guests that it has left behind, and no others.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.lab_settings import VARIABLE_PREFIX
from smith_lab.lab_test.reserved_range import ReservedRange, new_lease
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import wait_for
from support import clock_shift
from support.lab_settings import FIRST, SIZE, lab_settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "lab"
TIMEOUT_S = 240.0
#: After this time the sweeper removes the guests of a run: its time limit, the time that it has to remove its guests
#: itself, and the sweeper's grace period.
EXPIRED_AFTER_S = 600 + 300 + 120
#: A provider's test that has a VM and waits. It creates a file in the folder SIGNS, and ends when `go` exists there.
WAITING_TEST = """
import os, pathlib, time

def test_a_vm_is_there(lab_vm, proxmox):
    folder = pathlib.Path(os.environ["SIGNS"])
    (folder / str(lab_vm["vmid"])).touch()
    deadline = time.monotonic() + 200
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert proxmox.vm_config(lab_vm["node"], lab_vm["vmid"])["name"] == lab_vm["name"]
"""
#: A provider's test that shows the lab's secret in its output and in its failure.
SHOWING_TEST = """
def test_it_shows_all(lab_run):
    print("printed", lab_run.settings.token_secret)
    assert lab_run.settings.token_secret == "", "failed"
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[ProxmoxStandIn]:
    """A stand-in as the lab of several pipelines. A VM that belongs to none of them has one of the lab's VMIDs."""
    with running_stand_in(folder=tmp_path / "pve") as running:
        running.control("add", vmid=FIRST + 5, name="smith-lab-0123ab-web-8f2c0a11", node="pve1")
        running.reset_request_log()
        yield running


def environment(stand_in: ProxmoxStandIn | None, **more: str) -> dict[str, str]:
    """Return the environment of a pipeline."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((VARIABLE_PREFIX, "PROXMOX_", "PYTEST_"))
    }
    return env | (lab_settings(stand_in).variables() if stand_in else {}) | more


def start_smith(arguments: list[str], env: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "executor", *arguments]
    return subprocess.Popen(
        command,
        env=env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lab_vmids(stand_in: ProxmoxStandIn) -> set[int]:
    return {guest["vmid"] for guest in stand_in.guests() if FIRST <= guest["vmid"] < FIRST + 3 * SIZE}


def sweep(stand_in: ProxmoxStandIn, folder: Path, *arguments: str, **env: str) -> list[dict[str, Any]]:
    process = start_smith(["lab-sweep", "--json", *arguments], environment(stand_in, **env), folder)
    output, _none = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return list(json.loads(output)["guests"])


def report_counts(report: Path) -> tuple[str | None, ...]:
    """Return how many tests ran, failed, and were skipped, according to a JUnit report."""
    suite = ET.parse(report).find("testsuite")  # noqa: S314 (pytest has just written it)
    assert suite is not None
    return tuple(suite.get(name) for name in ("tests", "failures", "skipped"))


def test_a_killed_pipeline_is_swept_and_nothing_else_is_touched(stand_in: ProxmoxStandIn, tmp_path: Path) -> None:
    (tmp_path / "test_waiting.py").write_text(WAITING_TEST)
    signs, library = tmp_path / "signs", clock_shift.build(tmp_path)
    signs.mkdir()
    arguments = ["lab-test", "test_waiting.py", "--time-limit", "600", "--junit"]
    before = lab_vmids(stand_in)
    pipelines = [
        start_smith([*arguments, f"{number}.xml"], environment(stand_in, SIGNS=str(signs)), tmp_path)
        for number in (1, 2)
    ]
    try:
        wait_for(lambda: len(list(signs.iterdir())) == 2, TIMEOUT_S, "both pipelines to have a VM")
        all_vmids = lab_vmids(stand_in) - before
        os.killpg(pipelines[0].pid, signal.SIGKILL)
        (signs / "go").touch()
        output, _none = pipelines[1].communicate(timeout=TIMEOUT_S)
    finally:
        for pipeline in pipelines:
            if pipeline.poll() is None:
                os.killpg(pipeline.pid, signal.SIGKILL)
            pipeline.communicate()
    assert pipelines[1].returncode == 0, output
    assert report_counts(tmp_path / "2.xml") == ("1", "0", "0")
    vmids_left = lab_vmids(stand_in) - before
    assert (len(all_vmids), len(vmids_left)) == (4, 2)  # each pipeline had a lease and a VM

    early = sweep(stand_in, tmp_path, "--apply")
    assert {row["outcome"] for row in early} == {"kept"}
    assert lab_vmids(stand_in) == before | vmids_left
    (tmp_path / "shift").write_text(str(EXPIRED_AFTER_S))
    clock_ahead = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(tmp_path / "shift")}
    early = sweep(stand_in, tmp_path, "--apply", **clock_ahead)  # on a machine whose clock is ahead
    assert {row["outcome"] for row in early} == {"kept"}
    stand_in.control("clock", shift_s=EXPIRED_AFTER_S)
    dry_run_rows = sweep(stand_in, tmp_path)
    assert {row["vmid"] for row in dry_run_rows if row["outcome"] == "would be removed"} == vmids_left
    assert lab_vmids(stand_in) == before | vmids_left
    swept = sweep(stand_in, tmp_path, "--apply")
    assert {row["vmid"] for row in swept if row["outcome"] == "removed"} == vmids_left
    assert lab_vmids(stand_in) == before
    changed_vmids = {
        int(entry["path"].split("/")[4])
        for entry in stand_in.changing_requests()
        if re.match(r"/nodes/\w+/(qemu|lxc)/\d+", entry["path"]) and not entry["path"].endswith("/clone")
    }
    assert changed_vmids == all_vmids
    cloned = [entry["path"] for entry in stand_in.changing_requests() if entry["path"].endswith("/clone")]
    assert set(cloned) == {"/nodes/pve1/qemu/9000/clone"}


def test_the_example_of_the_documentation_passes_without_a_lab(tmp_path: Path) -> None:
    reports = ["--junit", str(tmp_path / "report.xml"), "--html", str(tmp_path / "report.html")]
    production = {"PROXMOX_VMID_MIN": "100"}  # the production's VMIDs contain the stand-in's
    run = start_smith(["lab-test", "tests", *reports], environment(None, **production), EXAMPLE)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, output
    assert report_counts(tmp_path / "report.xml") == ("4", "0", "0")
    assert "test_park_takes_a_snapshot_and_stops_the_vm" in (tmp_path / "report.html").read_text()


def test_the_lab_suite_skips_nothing_on_a_stand_in(tmp_path: Path) -> None:
    """This runs only the tests of `lab/suite` that a lab with one node and no backup storage or OS template skips."""
    optional = "(check_mode_changes and (migrate or backup)) or (test_containers and not keeps)"
    run = start_smith(
        ["lab-test", "-k", optional, "--junit", str(tmp_path / "report.xml")], environment(None), tmp_path
    )
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, output
    count, failures, skipped = report_counts(tmp_path / "report.xml")
    assert (int(count or 0) >= 3, failures, skipped) == (True, "0", "0"), output


def test_no_report_contains_the_secret_of_the_lab(stand_in: ProxmoxStandIn, tmp_path: Path) -> None:
    (tmp_path / "test_secret.py").write_text(SHOWING_TEST)
    reports = ["--junit", "report.xml", "--html", "report.html"]
    run = start_smith(["lab-test", "test_secret.py", *reports], environment(stand_in), tmp_path)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, "printed" in output, "failed" in output) == (1, True, True), output
    for text in (output, *((tmp_path / name).read_text() for name in ("report.xml", "report.html"))):
        assert "test_it_shows_all" in text
        assert stand_in.token_secret not in text


@contextmanager
def waiting_pipeline(stand_in: ProxmoxStandIn, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A pipeline whose test waits, with a VM, until the file `go` is in the folder `signs`."""
    (folder / "test_waiting.py").write_text(WAITING_TEST)
    (folder / "signs").mkdir()
    command = ["lab-test", "test_waiting.py", "--time-limit", "600", "--junit", "report.xml", *arguments]
    pipeline = start_smith(command, environment(stand_in, SIGNS=str(folder / "signs")), folder)
    try:
        wait_for(lambda: list((folder / "signs").iterdir()), TIMEOUT_S, "the pipeline to have a VM")
        yield pipeline
    finally:
        if pipeline.poll() is None:
            os.killpg(pipeline.pid, signal.SIGKILL)
        pipeline.communicate()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_pipeline_writes_its_report_and_leaves_nothing(
    stand_in: ProxmoxStandIn, tmp_path: Path, signal_number: int
) -> None:
    before = lab_vmids(stand_in)
    with waiting_pipeline(stand_in, tmp_path) as pipeline:
        pipeline.send_signal(signal_number)  # only to this process, as CI systems do
        output, _none = pipeline.communicate(timeout=TIMEOUT_S)
    assert pipeline.returncode == 2, output
    assert output.startswith(f"lab: {stand_in.host}:{stand_in.port}\n")
    assert report_counts(tmp_path / "report.xml")[0] is not None
    assert lab_vmids(stand_in) == before


def test_a_pipeline_whose_reservation_was_taken_ends_its_tests_and_removes_nothing(
    stand_in: ProxmoxStandIn, tmp_path: Path
) -> None:
    """As after a suspension of its machine: its reservation has expired, and another run has taken the VMIDs."""
    cluster = LabCluster(lab_settings(stand_in))
    with waiting_pipeline(stand_in, tmp_path) as pipeline:
        holder = next(guest for guest in cluster.guests(range(FIRST, FIRST + 3 * SIZE)) if "-lease" in guest.name)
        other_run = ReservedRange(
            vmids=range(holder.vmid, holder.vmid + SIZE), lease=new_lease(0), lab_name_prefix="smith-lab"
        )
        cluster.replace_name_and_notes(holder, other_run.lease_name, other_run.lease.notes())
        vmids_left = lab_vmids(stand_in)
        output, _none = pipeline.communicate(timeout=TIMEOUT_S)
    assert f"VM {holder.vmid} no longer reserves VMIDs for this run: pytest is interrupted" in output
    assert pipeline.returncode == 2, output
    assert holder.vmid in lab_vmids(stand_in) <= vmids_left


def test_a_lab_that_cannot_be_reached_at_the_end_does_not_hide_that_the_tests_passed(
    stand_in: ProxmoxStandIn, tmp_path: Path
) -> None:
    with waiting_pipeline(stand_in, tmp_path) as pipeline:
        stand_in.control("fail", method="GET", path="/cluster/resources", status=0, times=1000)
        (tmp_path / "signs" / "go").touch()
        output, _none = pipeline.communicate(timeout=TIMEOUT_S)
    assert report_counts(tmp_path / "report.xml")[0] == "1"
    assert "the guests of this run cannot be removed" in output
    assert pipeline.returncode == 1, output


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({f"{VARIABLE_PREFIX}NODE": ""}, "the lab needs LAB_PROXMOX_NODE"),
        ({"PROXMOX_VMID_MIN": "90010", "PROXMOX_VMID_MAX": "90019"}, "overlap the VMIDs of production"),
        ({f"{VARIABLE_PREFIX}TEMPLATE": "123"}, "the lab cannot be used"),
    ],
)
def test_a_lab_that_cannot_be_used_is_refused_before_any_change(
    stand_in: ProxmoxStandIn, tmp_path: Path, changed: dict[str, str], problem: str
) -> None:
    run = start_smith(["lab-test", "-k", "nothing"], environment(stand_in, **changed), tmp_path)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, problem in output) == (4, True), output
    assert stand_in.changing_requests() == []


def test_the_sweeper_refuses_vmids_of_the_production(stand_in: ProxmoxStandIn, tmp_path: Path) -> None:
    env = environment(stand_in, PROXMOX_VMID_MIN=str(FIRST), PROXMOX_VMID_MAX=str(FIRST))
    run = start_smith(["lab-sweep", "--apply"], env, tmp_path)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, "overlap the VMIDs of production" in output) == (3, True), output
