"""`smith doctor` against simulator and stand-in: each trouble is named, with what to do and the area's exit code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem, running_lab

from executor.agent import disk_space as space
from executor.doctor.checks import Check, Status, exit_code
from executor.doctor.machine import COLLECTION_RANGE, LEAST_ANSIBLE_CORE
from executor.doctor.run import examine
from executor.proxmox.privileges import Need, needs
from executor.redaction import redactor

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 120
STORAGE = "local-lvm"
NEEDS = needs(9, storages=[STORAGE], bridge="vmbr0")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with running_lab(tmp_path_factory.mktemp("lab")) as system:
        yield system
        redactor.discard(system.ids.agent_token, system.proxmox.token_secret)


@dataclass
class Found:
    """What an examination found."""

    checks: list[Check]

    @property
    def code(self) -> int:
        return exit_code(self.checks)

    def named(self, name: str, *statuses: Status) -> list[Check]:
        return [check for check in self.checks if check.name == name and (not statuses or check.status in statuses)]

    def only(self, name: str) -> Check:
        (check,) = self.named(name)
        return check

    @property
    def failed(self) -> set[tuple[str, str]]:
        return {(check.area.value, check.name) for check in self.checks if check.status is Status.FAILED}


Examine = Callable[..., Found]


@pytest.fixture
def doctor(lab: LabSystem, tmp_path: Path) -> Examine:
    """Return an examination of the lab, with settings of the test's own; an empty value takes one away."""

    def look(**variables: str) -> Found:
        environ = lab.environment() | {"SMITH_DATA_DIR": str(tmp_path / "data")} | variables
        return Found(list(examine(env_file=None, environ={name: text for name, text in environ.items() if text})))

    return look


@pytest.fixture(autouse=True)
def whole(lab: LabSystem) -> Iterator[None]:
    yield
    lab.core.clear_faults()
    lab.core.switch(database_down=False, vault_off=False)
    lab.proxmox.control("clear_faults")


def test_a_whole_system_is_well(doctor: Examine) -> None:
    found = doctor()
    assert (found.code, found.failed) == (0, set())
    areas = {check.area.value for check in found.checks}
    assert areas == {"settings", "fulcrum", "proxmox", "database", "machine"}


# Settings


def test_wrong_settings_are_told_line_by_line_and_nothing_else_is_tried(doctor: Examine) -> None:
    found = doctor(PROXMOX_PORT="none", SMITH_CONCURRENCY="-1")
    assert found.code == 3
    assert len(found.named("readable", Status.FAILED)) == 2
    assert {check.status for check in found.checks if check.area != "settings"} == {Status.SKIPPED}


def test_missing_settings_of_one_side_leave_the_other_to_be_looked_at(doctor: Examine) -> None:
    found = doctor(FULCRUM_API_TOKEN="")
    assert found.code == 3
    assert "FULCRUM_API_TOKEN is missing" in found.only("complete").text
    assert found.only("quorum").status is Status.OK


def test_secret_files_that_others_can_read_are_told_with_the_remedy(
    doctor: Examine, lab: LabSystem, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(lab.ids.agent_token)
    file.chmod(0o644)
    found = doctor(FULCRUM_API_TOKEN="", FULCRUM_API_TOKEN_FILE=str(file))
    check = found.only("secret files")
    assert (check.status, check.hints) == (Status.WARNING, (f"chmod 600 {file}",))
    file.chmod(0o600)
    assert doctor(FULCRUM_API_TOKEN="", FULCRUM_API_TOKEN_FILE=str(file)).only("secret files").status is Status.OK


# FulcrumCore


def test_a_wrong_token_is_told_and_proxmox_still_looked_at(doctor: Examine) -> None:
    found = doctor(FULCRUM_API_TOKEN="not-the-token")
    assert (found.code, found.failed) == (4, {("fulcrum", "token")})
    assert "wrong, revoked or expired" in found.only("token").text
    assert found.only("quorum").status is Status.OK


def test_a_fulcrum_that_is_away_is_told(doctor: Examine) -> None:
    found = doctor(FULCRUM_API_URL="http://127.0.0.1:9")
    assert (found.code, found.failed) == (4, {("fulcrum", "reachable")})


def test_a_disabled_agent_and_a_wrong_clock_are_warnings(doctor: Examine, lab: LabSystem) -> None:
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disabled"})
    lab.core.advance(3600)
    found = doctor()
    lab.core.advance(-3600)
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"status": "Disconnected"})
    assert found.only("enabled").status is Status.WARNING
    assert found.only("clock").status is Status.WARNING
    assert "ahead of ours" in found.only("clock").text
    assert found.code == 0


def test_an_action_without_a_playbook_is_told(doctor: Examine, lab: LabSystem) -> None:
    path = f"/service-types/{lab.ids.service_type_id}"
    before = lab.admin.call("GET", path)["lifecycleSchema"]
    first = before["actions"][0]
    more = {**before, "actions": [*before["actions"], {**first, "name": "defrost"}]}
    lab.admin.call("PATCH", path, {"lifecycleSchema": more})
    found = doctor()
    lab.admin.call("PATCH", path, {"lifecycleSchema": before})
    assert found.code == 4
    assert "defrost" in found.only("type proxmox-vm").text


def test_a_password_that_fulcrum_would_show_to_everybody_is_told(doctor: Examine, lab: LabSystem) -> None:
    path = f"/service-types/{lab.ids.service_type_id}"
    before = lab.admin.call("GET", path)["propertySchema"]
    members = before["properties"]
    plain = {key: rule for key, rule in members["ciPassword"].items() if key != "secret"}
    lab.admin.call("PATCH", path, {"propertySchema": {**before, "properties": {**members, "ciPassword": plain}}})
    found = doctor()
    lab.admin.call("PATCH", path, {"propertySchema": before})
    (check,) = found.named("type proxmox-vm", Status.WARNING)
    assert "ciPassword is not marked secret" in check.text
    assert found.code == 0


def test_backups_without_a_place_to_go_to_are_told(doctor: Examine) -> None:
    assert {check.status for check in doctor().named("backups")} == {Status.WARNING}
    with_one = doctor(PROXMOX_BACKUP_STORAGE="backups")
    assert with_one.named("backups") == []
    assert with_one.failed == set()


def test_a_containers_template_that_no_node_has_is_told(doctor: Examine) -> None:
    assert doctor().only("os templates").status is Status.OK
    missing = doctor(PROXMOX_OS_TEMPLATES="alpine=local:vztmpl/alpine.tar.xz").only("os templates")
    assert (missing.status, "alpine" in missing.text) == (Status.FAILED, True)


def test_a_token_that_may_make_no_backups_is_told_how_it_may(doctor: Examine, lab: LabSystem) -> None:
    lab.proxmox.control("revoke", path="/vms", privilege="VM.Backup")
    try:
        found = doctor(PROXMOX_BACKUP_STORAGE="backups")
    finally:
        lab.proxmox.control("grant", path="/vms", privilege="VM.Backup")
    (check,) = found.named("privileges", Status.FAILED)
    assert "VM.Backup" in check.text
    assert any("SmithBackup" in hint for hint in check.hints)


def test_missing_metric_types_are_told_with_the_call_that_makes_them(doctor: Examine, lab: LabSystem) -> None:
    (found_type,) = [row for row in lab.admin.list_all("metric-types") if row["name"] == "vm.cpu.usage"]
    lab.admin.call("DELETE", f"/metric-types/{found_type['id']}")
    check = doctor().only("metric types")
    off = doctor(SMITH_METRICS_INTERVAL_S="0").only("metric types")
    lab.admin.create("metric-types", name="vm.cpu.usage", entityType="Resource")
    assert check.status is Status.WARNING
    assert any("vm.cpu.usage" in hint for hint in check.hints)
    assert off.status is Status.OK


def test_the_configuration_of_fulcrum_is_what_proxmox_is_asked_with(doctor: Examine, lab: LabSystem) -> None:
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"configuration": {"apiHost": "127.0.0.2", "apiPort": 9}})
    found = doctor(SMITH_REMOTE_CONFIG="true")
    assert found.only("configuration").status is Status.OK
    assert ("proxmox", "reachable") in found.failed
    assert found.code == 5
    lab.core.switch(vault_off=True)
    found = doctor(SMITH_REMOTE_CONFIG="true")
    assert (found.code, found.only("configuration").status) == (4, Status.FAILED), "it asks once and does not wait"


# Proxmox


def test_an_unknown_certificate_is_told_with_what_to_do(doctor: Examine) -> None:
    found = doctor(PROXMOX_CA_BUNDLE="")
    (check,) = [check for check in found.named("reachable") if check.area == "proxmox"]
    assert (found.code, check.status) == (5, Status.FAILED)
    assert "PVE_TLS" in check.text
    assert any("PROXMOX_CA_BUNDLE" in hint for hint in check.hints)
    insecure = doctor(PROXMOX_CA_BUNDLE="", PROXMOX_VALIDATE_CERTS="false")
    assert insecure.code == 0
    assert [check.status for check in insecure.named("tls") if check.area == "proxmox"] == [Status.WARNING]


def test_a_wrong_secret_is_told(doctor: Examine) -> None:
    found = doctor(PROXMOX_TOKEN_SECRET="not-the-secret")
    assert (found.code, found.failed) == (5, {("proxmox", "reachable")})


@pytest.mark.parametrize(("need", "privilege"), [(need, each) for need in NEEDS for each in sorted(need.privileges)])
def test_a_missing_privilege_is_told_with_the_commands_that_grant_it(
    need: Need, privilege: str, doctor: Examine, lab: LabSystem
) -> None:
    lab.proxmox.control("revoke", path=need.path, privilege=privilege)
    found = doctor(PROXMOX_STORAGE=STORAGE)
    lab.proxmox.control("grant", path=need.path, privilege=privilege)
    (check,) = found.named("privileges")
    assert found.code == 5
    assert check.text.startswith(f"{privilege} missing on {need.path}")
    assert check.hints[0].startswith(f"pveum role add {need.role} --privs ")
    assert privilege in check.hints[0]
    assert check.hints[1:] == (
        f"pveum acl modify {need.path} --users smith@pve --roles {need.role}",
        f"pveum acl modify {need.path} --tokens 'smith@pve!job' --roles {need.role}",
    )


def test_with_all_privileges_nothing_is_told(doctor: Examine) -> None:
    assert doctor(PROXMOX_STORAGE=STORAGE).only("privileges").status is Status.OK


def test_a_cluster_without_quorum_is_told(doctor: Examine, lab: LabSystem) -> None:
    lab.proxmox.control("quorum", quorate=False)
    found = doctor()
    lab.proxmox.control("quorum", quorate=True)
    assert ("proxmox", "quorum") in found.failed


@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [
        ({"PROXMOX_TEMPLATES": "a=9000,b=5555"}, "templates", "b: VM 5555 does not exist"),
        ({"PROXMOX_STORAGE": "elsewhere"}, "storage", "there is no elsewhere"),
        ({"PROXMOX_BRIDGE": "vmbr9"}, "bridge", "vmbr9 does not exist on pve1, pve2"),
        ({"PROXMOX_NODES": "pve1,pve7"}, "nodes", "there is no pve7, only pve1, pve2"),
        ({"PROXMOX_VMID_MIN": "9000", "PROXMOX_VMID_MAX": "9001"}, "vmid range", "0 of 2 between 9000 and 9001"),
    ],
)
def test_what_vms_are_made_of_must_be_there(variables: dict[str, str], name: str, words: str, doctor: Examine) -> None:
    found = doctor(**variables)
    assert found.code == 5
    (check,) = found.named(name, Status.FAILED)
    assert words in check.text


def test_a_vm_is_no_template(doctor: Examine, lab: LabSystem) -> None:
    lab.proxmox.control("add", vmid=7000, name="just-a-vm", node="pve1")
    found = doctor(PROXMOX_TEMPLATES="a=7000")
    lab.proxmox.control("remove", vmid=7000)
    assert "qemu 7000 (just-a-vm) is no VM template" in found.only("templates").text


def test_a_node_that_is_down_is_a_warning_and_all_down_a_failure(doctor: Examine, lab: LabSystem) -> None:
    lab.proxmox.control("node", node="pve2", online=False)
    some, one = doctor(), doctor(PROXMOX_NODES="pve2")
    lab.proxmox.control("node", node="pve2", online=True)
    assert some.only("nodes").status is Status.WARNING
    assert one.only("nodes").status is Status.FAILED


# Database and machine


def test_a_database_is_not_made_by_looking(doctor: Examine, tmp_path: Path) -> None:
    assert doctor().only("usable").status is Status.OK
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_no_database_is_told(doctor: Examine, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smith.db").write_text("this is no database, however long one looks at it" * 100)
    found = doctor()
    assert (found.code, found.failed) == (6, {("database", "usable")})


def test_an_old_schema_is_a_warning_because_the_start_brings_it_up(doctor: Examine, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "smith.db").touch()
    found = doctor()
    assert (found.code, found.only("schema").status) == (0, Status.WARNING)


def test_a_full_disk_and_missing_tools_are_the_machines(
    doctor: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(space.MIN_FREE_MIB, "data", 10**12)
    monkeypatch.setattr(sys, "path", [])
    found = doctor()
    assert found.code == 1
    assert ("machine", "data folder") in found.failed
    assert ("machine", "community.proxmox") in found.failed


def test_the_least_versions_are_those_that_are_declared() -> None:
    declared = re.search(r'"ansible-core>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    assert declared[1] == ".".join(map(str, LEAST_ANSIBLE_CORE))
    (least_major, least_minor), (below_major, _) = COLLECTION_RANGE
    wanted = f'version: ">={least_major}.{least_minor}.0,<{below_major}.0.0"'
    assert wanted in (ROOT / "requirements.yml").read_text()


# Codes and the command


def test_the_first_area_that_failed_names_the_code(doctor: Examine) -> None:
    found = doctor(FULCRUM_API_TOKEN="not-the-token", PROXMOX_TOKEN_SECRET="not-the-secret")
    assert found.failed == {("fulcrum", "token"), ("proxmox", "reachable")}
    assert found.code == 4


def test_the_command_shows_a_table_or_json_and_what_to_do(lab: LabSystem, tmp_path: Path) -> None:
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
    command = [sys.executable, "-m", "executor", "doctor", *arguments]
    return subprocess.run(
        command, env=env, cwd=lab.folder, capture_output=True, text=True, timeout=GIVE_UP_S, check=False
    )


def test_this_interpreter_has_the_tools() -> None:
    """What the others assume."""
    assert shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) is not None
