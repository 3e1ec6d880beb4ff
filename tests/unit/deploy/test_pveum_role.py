"""deploy/pveum-role.sh, run with a stand-in for pveum, grants exactly the privileges that `smith doctor` requires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from executor.proxmox.privileges import PLACEMENT_NEED, list_privilege_needs
from executor.proxmox.template_needs import privilege_needs_of_template

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"

#: A stand-in for pveum: it stores its state in a file and refuses what the real pveum refuses.
FAKE_PVEUM = """\
#!/usr/bin/env python3
import json, os, sys
path = os.environ["PVE_STATE"]
state = json.load(open(path))
args = sys.argv[1:]
state["calls"].append(args)
def option(name): return args[args.index(name) + 1]
def refuse(text): json.dump(state, open(path, "w")); sys.exit(text)
def privileges():
    names = option("--privs").split(",")
    unknown = set(names) & {"VM.Monitor" if state["version"] >= 9 else "VM.GuestAgent.Audit"}
    if unknown or not all(names): refuse(f"invalid privilege {unknown or names}")
    return names
what = " ".join(word for word in args if word.isalpha())
if args[:2] == ["role", "list"]:
    print(json.dumps([{"privs": ",".join(held), "roleid": name} for name, held in state["roles"].items()]))
elif args[:2] == ["role", "add"]:
    if args[2] in state["roles"]: refuse("role already exists")
    state["roles"][args[2]] = sorted(privileges())
elif args[:2] == ["role", "modify"]:
    held = state["roles"][args[2]] if "--append" in args else []
    state["roles"][args[2]] = sorted({*held, *privileges()})
elif args[:3] == ["user", "token", "list"]:
    if args[3] not in state["users"]: refuse("no such user")
    print(json.dumps([{"privsep": 1, "tokenid": name} for name in state["users"][args[3]]], indent=1))
elif args[:3] == ["user", "token", "add"]:
    if args[4] in state["users"][args[3]]: refuse("Token already exists.")
    assert option("--privsep") == "1"
    state["users"][args[3]].append(args[4])
    value = "0f0e0d0c-aaaa-bbbb-cccc-000000000001"
    print(json.dumps({"full-tokenid": "!".join(args[3:5]), "info": {"privsep": "1"}, "value": value}))
elif args[:2] == ["user", "list"]:
    print(json.dumps([{"enable": 1, "userid": name} for name in state["users"]]))
elif args[:2] == ["user", "add"]:
    if args[2] in state["users"]: refuse("user already exists")
    state["users"][args[2]] = []
elif args[:2] == ["acl", "modify"]:
    if option("--roles") not in state["roles"]: refuse("no such role")
    for who in (option("--users"), option("--tokens")):
        user, _, token = who.partition("!")
        if user not in state["users"] or (token and token not in state["users"][user]): refuse("no such user or token")
        entry = [args[2], who, option("--roles")]
        if entry not in state["acl"]: state["acl"].append(entry)
else:
    refuse(f"unknown command {args}")
json.dump(state, open(path, "w"))
"""
SECRET = "0f0e0d0c-aaaa-bbbb-cccc-000000000001"


class Node:
    """A Proxmox node: a folder, first in PATH, with stand-ins for the programs pveum and pveversion."""

    def __init__(self, folder: Path, version: int) -> None:
        self.state_file = folder / "state.json"
        self.state_file.write_text(json.dumps({"version": version, "roles": {}, "users": {}, "acl": [], "calls": []}))
        self._path = folder / "bin"
        self._path.mkdir()
        python = f"#!{os.path.realpath(sys.executable)} -IS"  # starts in a third of the time
        self._program("pveum", FAKE_PVEUM.replace("#!/usr/bin/env python3", python, 1))
        self._program(
            "pveversion", f"#!/bin/sh\necho 'pve-manager/{version}.0.3/0123456789abcdef (running kernel: 6)'\n"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self._path}:{os.environ['PATH']}", "PVE_STATE": str(self.state_file)}
        script = DEPLOY / "pveum-role.sh"
        return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)

    def state(self) -> Mapping[str, Any]:
        return dict(json.loads(self.state_file.read_text()))

    def _program(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)
        (self._path / name).chmod(0o755)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, 9)


STORAGE_OPTIONS = ("--storage", "local-lvm", "--storage", "ceph")


@pytest.mark.parametrize("version", [8, 9])
def test_the_script_grants_exactly_what_the_doctor_requires(tmp_path: Path, version: int) -> None:
    node = Node(tmp_path, version)
    done = node.run(*STORAGE_OPTIONS, "--bridge", "vmbr0")
    assert done.returncode == 0, done.stderr
    state = node.state()
    needs = list_privilege_needs(
        state["version"], disk_storages=["local-lvm", "ceph"], bridges={"vmbr0": "localnetwork"}
    )
    assert {name: set(held) for name, held in state["roles"].items()} == {need.role: need.privileges for need in needs}
    granted = {(need.path, who, need.role) for need in needs for who in ("smith@pve", "smith@pve!job")}
    assert {tuple(entry) for entry in state["acl"]} == granted


def test_the_script_grants_the_optional_privileges(node: Node) -> None:
    assert node.run(*STORAGE_OPTIONS).returncode == 0
    without_options = node.state()
    assert node.run(*STORAGE_OPTIONS, "--placement", "--backup", "--images", "local").returncode == 0
    with_options = node.state()
    roles = {name: held for name, held in with_options["roles"].items() if name not in without_options["roles"]}
    assert roles == {"SmithNodes": ["Sys.Audit"], "SmithBackup": ["VM.Backup"], "SmithImages": ["Datastore.Audit"]}
    granted = {(path, role) for path, _who, role in with_options["acl"] if role in roles}
    assert granted == {("/nodes", "SmithNodes"), ("/vms", "SmithBackup"), ("/storage/local", "SmithImages")}
    needs = list_privilege_needs(
        9, disk_storages=["local-lvm"], iso_and_vztmpl_storages=["local", "local-lvm"], backup_storage="local-lvm"
    )
    assert {(need.path, need.role) for need in (*needs, PLACEMENT_NEED) if need.role in roles} == granted


def test_the_script_grants_bridges_and_mappings_one_by_one(node: Node) -> None:
    bridges = ("--bridge", "vmbr1", "--bridge", "tenants/vnet7", "--zone", "localnetwork")
    mappings = [f"--mapping={name}".replace("=", " ").split() for name in ("pci/gpu", "usb/key", "dir/x", "hwrng")]
    done = node.run(*STORAGE_OPTIONS, *bridges, *(word for words in mappings for word in words))
    assert done.returncode == 0, done.stderr
    state = node.state()
    granted = {(path, role) for path, _who, role in state["acl"] if role in ("SmithNet", "SmithMapping")}
    assert granted == {
        *{("/sdn/zones/localnetwork/vmbr1", "SmithNet"), ("/sdn/zones/tenants/vnet7", "SmithNet")},
        *{(f"/mapping/{name}", "SmithMapping") for name in ("pci/gpu", "usb/key", "dir/x", "hwrng")},
    }
    assert state["roles"]["SmithMapping"] == ["Mapping.Use"]


def test_the_script_grants_what_a_template_with_a_physical_cd_drive_needs(node: Node) -> None:
    assert node.run(*STORAGE_OPTIONS).returncode == 0
    assert "SmithConsole" not in node.state()["roles"], "without the option the token gets no privilege on /"
    assert node.run(*STORAGE_OPTIONS, "--cd-drive").returncode == 0
    (need,) = privilege_needs_of_template({"ide0": "cdrom,media=cdrom"})
    state = node.state()
    assert set(state["roles"][need.role]) == need.privileges
    granted = {(path, who) for path, who, role in state["acl"] if role == need.role}
    assert granted == {(need.path, who) for who in ("smith@pve", "smith@pve!job")}


@pytest.mark.parametrize("zone", ["localnetwork", "tenants"])
def test_without_a_bridge_the_script_grants_the_whole_zone(node: Node, zone: str) -> None:
    assert node.run(*STORAGE_OPTIONS, "--zone", zone).returncode == 0
    assert {path for path, _who, role in node.state()["acl"] if role == "SmithNet"} == {f"/sdn/zones/{zone}"}


def test_the_script_prints_the_secret_once_and_alone_on_standard_output(node: Node) -> None:
    first, second = node.run(*STORAGE_OPTIONS), node.run(*STORAGE_OPTIONS)
    assert first.stdout == f"{SECRET}\n"
    assert SECRET not in first.stderr
    assert second.stdout == ""
    assert "its secret was printed when it was created" in second.stderr


def test_running_the_script_twice_changes_nothing(node: Node) -> None:
    assert node.run(*STORAGE_OPTIONS).returncode == 0
    before = node.state()
    again = node.run(*STORAGE_OPTIONS)
    assert again.returncode == 0, again.stderr
    after = node.state()
    assert {key: after[key] for key in ("roles", "users", "acl")} == {
        key: before[key] for key in ("roles", "users", "acl")
    }


def test_the_script_adds_privileges_to_a_role_and_removes_none(node: Node) -> None:
    state = dict(node.state()) | {"roles": {"SmithVM": ["VM.Audit", "VM.Console"]}}
    node.state_file.write_text(json.dumps(state))
    assert node.run(*STORAGE_OPTIONS).returncode == 0
    held = set(node.state()["roles"]["SmithVM"])
    assert held >= list_privilege_needs(state["version"], disk_storages=[])[0].privileges | {"VM.Console"}


def test_a_dry_run_prints_every_command_and_runs_none(node: Node) -> None:
    before = node.state()
    done = node.run("--dry-run", *STORAGE_OPTIONS)
    assert done.returncode == 0, done.stderr
    after = node.state()
    assert {key: after[key] for key in ("roles", "users", "acl")} == {
        key: before[key] for key in ("roles", "users", "acl")
    }
    assert {tuple(call[:2]) for call in after["calls"]} == {("role", "list"), ("user", "list")}
    for line in ("pveum role add SmithVM", "pveum user token add smith@pve job", "pveum acl modify /storage/ceph"):
        assert line in done.stderr


def test_the_script_writes_the_secret_to_a_file_with_mode_0600(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    done = node.run(*STORAGE_OPTIONS, "--secret-file", str(file))
    assert done.returncode == 0, done.stderr
    assert file.read_text() == f"{SECRET}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert SECRET not in done.stdout + done.stderr
    assert node.run(*STORAGE_OPTIONS, "--secret-file", str(file)).returncode == 0, "the second run creates no secret"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--storage is missing"),
        (("--storage", "a; reboot"), "needs a name"),
        (("--storage", "--zone"), "needs a name"),
        (("--storage",), "needs a value"),
        (("--storage", "local", "--user", "smith"), "needs a realm"),
        (("--shelf", "local"), "unknown argument"),
        (("--storage", "local", "--mapping", "gpu"), "--mapping needs pci/NAME"),
    ],
)
def test_the_script_refuses_bad_arguments_before_any_change(
    node: Node, arguments: tuple[str, ...], message: str
) -> None:
    done = node.run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert node.state()["calls"] == []


def test_the_script_refuses_an_unknown_version_of_proxmox(tmp_path: Path) -> None:
    node = Node(tmp_path, 7)
    done = node.run(*STORAGE_OPTIONS)
    assert done.returncode != 0
    assert "this is for Proxmox VE 8 and 9" in done.stderr
    assert node.state()["calls"] == []
