"""The record of the versions of Proxmox, Ansible and Python with which the tests have run, and docs/support.md.

docs/support.md shows the record. It counts the changing requests that each version of the stand-in has accepted.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support import support_record

ROOT = Path(__file__).parents[3]
#: The versions that form one environment. A row also has the version of Proxmox, which is not part of it.
ENVIRONMENT = {"ansible_core": "2.19.1", "community_proxmox": "1.4.0", "python": "3.11.2"}


def test_a_test_run_replaces_only_the_rows_of_its_own_environment(tmp_path: Path) -> None:
    file = tmp_path / "support.json"
    rows_of_an_earlier_test_run = [{"proxmox": "8.4.1", "kind": "stand-in", **ENVIRONMENT, "changes": 9}]
    rows_of_another_python = [
        {"proxmox": "9.0.10", "kind": "stand-in", **ENVIRONMENT, "python": "3.13.1", "changes": 8}
    ]
    rows_of_a_real_proxmox = [{"proxmox": "9.2.11", "kind": "real", **ENVIRONMENT, "tests": 31}]
    for rows in (
        rows_of_an_earlier_test_run,
        rows_of_another_python,
        rows_of_a_real_proxmox,
        [{"proxmox": "9.0.10", "kind": "stand-in", **ENVIRONMENT, "changes": 7}],
    ):
        support_record.write_rows(file, rows)
    assert [(row["proxmox"], row["python"]) for row in support_record.read_rows(file)] == [
        ("9.2.11", "3.11.2"),
        ("9.0.10", "3.11.2"),
        ("9.0.10", "3.13.1"),
    ]


def test_a_stand_in_counts_accepted_changes_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "changes"
    monkeypatch.setenv(support_record.CHANGES_FILE, str(file))
    with running_stand_in(folder=tmp_path / "pve") as pve:
        for version, vmids in (("8.4.1", (500,)), ("9.0.10", (501, 502))):
            pve.control("version", version=version)
            for vmid in vmids:
                assert _clone(pve, vmid) == 200
        assert _clone(pve, 502) != 200, "a refused request does not count"
    assert support_record.read_changes(file) == {"8.4.1": 1, "9.0.10": 2}


def _clone(pve: ProxmoxStandIn, vmid: int) -> int:
    token = f"PVEAPIToken={pve.user}!{pve.token_id}={pve.token_secret}"
    url = f"https://{pve.host}:{pve.port}/api2/json/nodes/pve1/qemu/9000/clone"
    answer = requests.post(
        url, data={"newid": vmid}, headers={"Authorization": token}, verify=str(pve.ca_bundle), timeout=9
    )
    return answer.status_code


def test_a_test_run_with_the_option_support_record_writes_the_record(tmp_path: Path) -> None:
    test = "tests/integration/lab/test_support_record.py::test_a_test_run_replaces_only_the_rows_of_its_own_environment"
    file = tmp_path / "support.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--support-record",
        file,
        test,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(file.read_text()) == [], "no stand-in has run"


def test_the_page_of_supported_versions_is_up_to_date() -> None:
    """If this test fails, run `python docs/generate.py`."""
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert page == pages["support.md"]()
    rows = support_record.read_rows(ROOT / "tests" / "data" / "support.json")
    assert {row["proxmox"].partition(".")[0] for row in rows} == {"8", "9"}
    assert all(f"| {row['proxmox']} " in page for row in rows)
