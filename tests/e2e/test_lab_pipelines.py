"""Two pipelines test in one lab at once, one is killed, and the sweeper removes what it has left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.lab_test.lab_settings import PREFIX
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import wait_for
from support import clock_shift
from support.lab_settings import FIRST, SIZE, lab_settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "lab"
TIMEOUT_S = 240.0
#: A run's time limit, the time to remove its guests, and the sweeper's grace, together.
EXPIRED_AFTER_S = 600 + 300 + 120
#: A test of a provider that waits, with its VM, for the end of the other pipeline.
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


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[ProxmoxStandIn]:
    """A stand-in as the lab of several pipelines, with a foreign VM in the lab's VMIDs."""
    with running_stand_in(folder=tmp_path / "pve") as running:
        running.control("add", vmid=FIRST + 5, name="smith-lab-0123ab-web-8f2c0a11", node="pve1")
        running.reset_request_log()
        yield running


def environment(stand_in: ProxmoxStandIn | None, **more: str) -> dict[str, str]:
    """Return the environment of a pipeline."""
    env = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "PROXMOX_", "PYTEST_"))}
    return env | (lab_settings(stand_in).variables() if stand_in else {}) | more


def start(arguments: list[str], env: dict[str, str], folder: Path) -> subprocess.Popen[str]:
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
    swept = start(["lab-sweep", "--json", *arguments], environment(stand_in, **env), folder)
    output, _none = swept.communicate(timeout=TIMEOUT_S)
    assert swept.returncode == 0, output
    return list(json.loads(output)["guests"])


def report_counts(report: Path) -> tuple[str | None, ...]:
    """Return how many tests ran, failed, and were skipped, by a JUnit report."""
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
        start([*arguments, f"{number}.xml"], environment(stand_in, SIGNS=str(signs)), tmp_path) for number in (1, 2)
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
    left = lab_vmids(stand_in) - before
    assert (len(all_vmids), len(left)) == (4, 2)  # each pipeline had a lease and a VM

    dry = sweep(stand_in, tmp_path, "--apply")
    assert {row["outcome"] for row in dry} == {"kept"}
    assert lab_vmids(stand_in) == before | left
    (tmp_path / "shift").write_text(str(EXPIRED_AFTER_S))
    later = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(tmp_path / "shift")}
    dry = sweep(stand_in, tmp_path, **later)
    assert {row["vmid"] for row in dry if row["outcome"] == "would be removed"} == left
    assert lab_vmids(stand_in) == before | left
    swept = sweep(stand_in, tmp_path, "--apply", **later)
    assert {row["vmid"] for row in swept if row["outcome"] == "removed"} == left
    assert lab_vmids(stand_in) == before
    touched = {
        int(entry["path"].split("/")[4])
        for entry in stand_in.changing_requests()
        if re.match(r"/nodes/\w+/(qemu|lxc)/\d+", entry["path"]) and not entry["path"].endswith("/clone")
    }
    assert touched == all_vmids
    cloned = [entry["path"] for entry in stand_in.changing_requests() if entry["path"].endswith("/clone")]
    assert set(cloned) == {"/nodes/pve1/qemu/9000/clone"}


def test_the_example_of_the_documentation_passes_without_a_lab(tmp_path: Path) -> None:
    reports = ["--junit", str(tmp_path / "report.xml"), "--html", str(tmp_path / "report.html")]
    production = {"PROXMOX_VMID_MIN": "100"}  # its VMIDs contain the stand-in's
    run = start(["lab-test", "tests", *reports], environment(None, **production), EXAMPLE)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, output
    assert report_counts(tmp_path / "report.xml") == ("4", "0", "0")
    assert "test_park_takes_a_snapshot_and_stops_the_vm" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({f"{PREFIX}NODE": ""}, "the lab needs LAB_PROXMOX_NODE"),
        ({"PROXMOX_VMID_MIN": "90010", "PROXMOX_VMID_MAX": "90019"}, "meet those of the production"),
        ({f"{PREFIX}TEMPLATE": "123"}, "the lab is not fit for the tests"),
    ],
)
def test_a_lab_that_cannot_be_used_is_refused_before_any_change(
    stand_in: ProxmoxStandIn, tmp_path: Path, changed: dict[str, str], problem: str
) -> None:
    run = start(["lab-test", "-k", "nothing"], environment(stand_in, **changed), tmp_path)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, problem in output) == (4, True), output
    assert stand_in.changing_requests() == []


def test_the_sweeper_refuses_vmids_of_the_production(stand_in: ProxmoxStandIn, tmp_path: Path) -> None:
    env = environment(stand_in, PROXMOX_VMID_MIN=str(FIRST), PROXMOX_VMID_MAX=str(FIRST))
    run = start(["lab-sweep", "--apply"], env, tmp_path)
    output, _none = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, "meet those of the production" in output) == (3, True), output
