"""`smith doctor`: the checks of the settings, the database and the machine, the output and the exit code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem
from support import fork_server
from support.doctor_results import Doctor

from executor.agent import disk_space as space
from executor.doctor.checks import Status
from executor.doctor.machine import COMMUNITY_PROXMOX_VERSION_RANGE, MIN_ANSIBLE_CORE

ROOT = Path(__file__).parents[3]
COMMAND_TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def restored_lab(lab: LabSystem) -> Iterator[None]:
    yield
    lab.core.clear_faults()
    lab.core.set_switches(database_down=False, vault_off=False)
    lab.proxmox.control("clear_faults")


def test_a_working_system_passes_all_checks(doctor: Doctor) -> None:
    results = doctor()
    assert (results.code, results.failed) == (0, set())
    areas = {check.area.value for check in results.checks}
    assert areas == {"settings", "fulcrum", "proxmox", "database", "machine"}


# Settings


def test_each_wrong_setting_is_a_failed_check_and_the_other_areas_are_skipped(doctor: Doctor) -> None:
    results = doctor(PROXMOX_PORT="none", SMITH_CONCURRENCY="-1")
    assert results.code == 3
    assert len(results.named("readable", Status.FAILED)) == 2
    assert {check.status for check in results.checks if check.area != "settings"} == {Status.SKIPPED}


def test_proxmox_is_checked_although_fulcrumcores_settings_are_missing(doctor: Doctor) -> None:
    results = doctor(FULCRUM_API_TOKEN="")
    assert results.code == 3
    assert "FULCRUM_API_TOKEN is missing" in results.only("complete").text
    assert results.only("quorum").status is Status.OK


def test_secret_files_that_others_can_read_are_a_warning_with_a_hint(
    doctor: Doctor, lab: LabSystem, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(lab.ids.agent_token)
    file.chmod(0o644)
    results = doctor(FULCRUM_API_TOKEN="", FULCRUM_API_TOKEN_FILE=str(file))
    check = results.only("secret files")
    assert (check.status, check.hints) == (Status.WARNING, (f"chmod 600 {file}",))
    file.chmod(0o600)
    assert doctor(FULCRUM_API_TOKEN="", FULCRUM_API_TOKEN_FILE=str(file)).only("secret files").status is Status.OK


# Database and machine


def test_the_checks_do_not_create_the_database(doctor: Doctor, tmp_path: Path) -> None:
    assert doctor().only("usable").status is Status.OK
    assert not (tmp_path / "data").exists()


def test_the_check_of_a_file_that_is_not_a_database_fails(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smith.db").write_text("this is not a database" * 100)
    results = doctor()
    assert (results.code, results.failed) == (6, {("database", "usable")})


def test_an_outdated_schema_is_a_warning_because_the_agents_start_migrates_it(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smith.db").touch()
    results = doctor()
    assert (results.code, results.only("schema").status) == (0, Status.WARNING)


def test_too_little_space_and_a_missing_collection_fail_in_the_area_machine(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(space.MIN_FREE_MIB, "data", 10**12)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    results = doctor()
    assert results.code == 1
    assert ("machine", "data folder") in results.failed
    assert ("machine", "community.proxmox") in results.failed


def test_doctor_checks_for_the_versions_that_the_project_files_declare() -> None:
    declared = re.search(r'"ansible-core>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    assert declared[1] == ".".join(map(str, MIN_ANSIBLE_CORE))
    (min_major, min_minor), (first_unsupported_major, _) = COMMUNITY_PROXMOX_VERSION_RANGE
    wanted = f'version: ">={min_major}.{min_minor}.0,<{first_unsupported_major}.0.0"'
    assert wanted in (ROOT / "requirements.yml").read_text()


# The exit code and the command


def test_the_exit_code_is_that_of_the_first_failed_area(doctor: Doctor) -> None:
    results = doctor(FULCRUM_API_TOKEN="not-the-token", PROXMOX_TOKEN_SECRET="not-the-secret")
    assert results.failed == {("fulcrum", "token"), ("proxmox", "reachable")}
    assert results.code == 4


def test_the_command_prints_a_table_or_json_with_hints(lab: LabSystem, tmp_path: Path) -> None:
    env = lab.environment() | {"PROXMOX_STORAGE": "elsewhere", "SMITH_DATA_DIR": str(tmp_path)}
    shown, as_json = (_smith(lab, env, *arguments) for arguments in ([], ["--json"]))
    assert (shown.returncode, as_json.returncode) == (5, 5)
    document = json.loads(as_json.stdout)
    assert document["exit_code"] == 5
    assert {"area", "name", "status", "text", "hints"} == set(document["checks"][0])
    assert "pveum acl modify /storage/elsewhere --users smith@pve --roles SmithStore" in shown.stdout.splitlines()
    for secret in (lab.ids.agent_token, lab.proxmox.token_secret):
        assert secret not in shown.stdout + shown.stderr + as_json.stdout


def _smith(lab: LabSystem, env: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    return fork_server.run(["doctor", *arguments], env=env, cwd=lab.folder, timeout=COMMAND_TIMEOUT_S)


def test_ansible_playbook_is_installed_beside_this_interpreter() -> None:
    """Otherwise, the checks of the machine in the other tests would fail."""
    assert shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) is not None
