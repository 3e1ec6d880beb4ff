"""`pytest -m lab` runs the lab tests on the cluster that LAB_PROXMOX_* names. Here this cluster is a stand-in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab_bench import LabBench
from play_bench import ROOT
from smith_lab.lab_test.lab_settings import REQUIRED_VARIABLES
from smith_lab.proxmox.stand_in import running_stand_in

#: Some of the tests that `-m lab` runs: enough to show that they work.
SAMPLE_OF_LAB_TESTS = (
    "test_a_second_start_or_stop or test_a_second_create or (test_check_mode_changes and (delete or migrate))"
)


def run_pytest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the lab tests in a separate process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LAB_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/playbooks", "-m", "lab"]
    return subprocess.run(
        [*command, *arguments], env=env | variables, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_lab_mark_without_a_lab_is_a_usage_error() -> None:
    done = run_pytest("--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert all(f"LAB_PROXMOX_{name}" in done.stderr for name in REQUIRED_VARIABLES)


def test_the_lab_tests_run_against_the_named_cluster_and_leave_no_guest(tmp_path: Path) -> None:
    with running_stand_in(folder=tmp_path) as cluster:
        cluster.control("add_template", vmid=9200, name="lab", node="pve1", storage="ceph")
        cluster.control("add", vmid=990_001, name="of-another-owner", node="pve1")
        before = cluster.guests()
        login = {name.removeprefix("PROXMOX_"): value for name, value in cluster.env().items()}
        place = {"NODE": "pve1", "TEMPLATE": "9200", "STORAGE": "ceph", "VMID_MIN": "990000", "VMID_MAX": "990003"}
        done = run_pytest(
            "-k", SAMPLE_OF_LAB_TESTS, **{f"LAB_PROXMOX_{name}": value for name, value in (login | place).items()}
        )
        after, changes = cluster.guests(), cluster.changing_requests()
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b3 passed, 1 skipped\b", done.stdout), done.stdout  # one node only: no migration
    assert after == before
    changed_vmids = {entry["path"].split("/")[4] for entry in changes if not entry["path"].endswith("/clone")}
    assert changed_vmids <= {"990000", "990002", "990003"}
    assert len(changed_vmids) > 1


PLACE = {"NODE": "pve1", "TEMPLATE": "9000", "STORAGE": "local-lvm", "VMID_MIN": "990000", "VMID_MAX": "990003"}


def test_a_running_guest_that_proxmoxs_list_shows_as_stopped_is_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxmox's list of guests shows a new guest's status only after the next broadcast of statistics."""
    with running_stand_in(folder=tmp_path / "pve") as cluster:
        login = {name.removeprefix("PROXMOX_"): value for name, value in cluster.env().items()}
        for name, value in (login | PLACE).items():
            monkeypatch.setenv(f"LAB_PROXMOX_{name}", value)
        lab = LabBench(tmp_path)
        vms = [lab.vm(), lab.vm()]
        for vm in vms:
            config = {"description": f"smith-uid={vm['service_id']}"}
            cluster.control("add", vmid=vm["vmid"], name=vm["name"], node="pve1", config=config, status="running")
        cluster.control("statistics", silent_nodes=["pve1"])
        assert {row["status"] for row in lab.cluster.rows()} != {"running"}
        assert {lab.cluster.guest(vm["vmid"])["status"] for vm in vms} == {"running"}  # type: ignore[index]
        cluster.fail_task("qmdestroy", "unable to remove", vmid=vms[0]["vmid"])
        with pytest.raises(RuntimeError, match=f"VM {vms[0]['vmid']}: .* has failed: unable to remove"):
            lab.clear()
        assert [bool(cluster.guest(vm["vmid"])) for vm in vms] == [True, False]
