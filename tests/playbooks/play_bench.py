"""Runs playbooks as an operator does: `ansible-playbook` with PROXMOX_* set, on a stand-in of Proxmox."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import yaml
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from executor.runs.actions import collection_folder

if TYPE_CHECKING:
    from warm_plays import WarmPlays

T = TypeVar("T")
#: The folder of the collection: the checkout, or the copy in the installed executor.
ROOT = collection_folder()
#: The ansible-playbook to test. TEST_ANSIBLE_PLAYBOOK may name that of another version of Ansible.
ANSIBLE_PLAYBOOK = os.environ.get("TEST_ANSIBLE_PLAYBOOK", str(Path(sys.executable).with_name("ansible-playbook")))
ACTIONS = (
    "create",
    "start",
    "stop",
    "restart",
    "update",
    "resize",
    "migrate",
    "snapshot",
    "rollback",
    "backup",
    "delete",
)


class _Dumper(yaml.SafeDumper):
    """Writes every string as !unsafe, as the executor does."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("!unsafe", text))


@dataclass
class Outcome:
    """What one play has done, as the callback plugin `recorder` has recorded it."""

    rc: int
    output: str
    tasks: list[dict[str, Any]]
    custom: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return dict(self.custom.get("vm_result", {}))

    @property
    def message(self) -> str:
        """The message of the last failure; empty after a success."""
        failed = [task["msg"] for task in self.tasks if task["state"] == "failed"]
        return str(failed[-1]) if failed and self.rc else ""

    @property
    def code(self) -> str:
        return self.message.partition(":")[0]

    @property
    def module_runs(self) -> int:
        """The number of modules of community.proxmox that the play has executed."""
        by_tasks = sum(task["action"].startswith("community.") for task in self.tasks if task["state"] != "skipped")
        return by_tasks + sum(len(task["modules"]) for task in self.tasks)

    @property
    def changed(self) -> int:
        """The number of Ansible tasks that made a change."""
        return sum(task["changed"] for task in self.tasks)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Node, templates, storages and timeouts of a cluster; by default of the stand-in."""

    node: str = "pve1"
    second_node: str = "pve2"  #: '' in a lab of one node
    template: int = 9000  #: VMID of a template on `node` with a cloud-init drive
    disk_gib: int = 8  #: the size of the template's first disk
    storage: str = "local-lvm"
    other_storage: str = "ceph"  #: may be `storage` itself; is shared if there is a second node
    other_bridge: str = "vmbr1"
    backup_storage: str = "backups"
    os_template: str = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
    timeout_s: int = 60
    shutdown_s: int = 5
    is_real: bool = False  #: whether this is a lab, not the stand-in


@dataclass
class Bench:
    """Runs playbooks on a stand-in. Each VM has its own VMID and service."""

    pve: ProxmoxStandIn
    folder: Path
    #: Yields the VMID of the next guest.
    vmids: Iterator[int] = field(default_factory=lambda: itertools.count(20_000))
    place: Place = Place()
    warm: WarmPlays | None = None  #: runs the plays; None: ansible-playbook runs them

    def vm(self, **more: Any) -> dict[str, Any]:
        """Return the variables of a new VM, as the executor passes them."""
        service_id, vmid, place = str(uuid.uuid4()), next(self.vmids), self.place
        identity = {"service_id": service_id, "vmid": vmid, "name": f"web-{service_id[:8]}", "node": ""}
        shape = {"template_vmid": place.template, "cores": 2, "memory_mib": 2048, "tags": ["web"]}
        times = {"timeout_s": place.timeout_s, "shutdown_timeout_s": place.shutdown_s, "address_timeout_s": 2}
        return {**identity, **shape, "disk_gib": place.disk_gib, **times, **more}

    def container(self, **more: Any) -> dict[str, Any]:
        """Return the variables of a new container."""
        vm = self.vm(kind="lxc", cores=1, memory_mib=512, disk_gib=4, tags=[], **more)
        del vm["template_vmid"]
        return vm

    def add_vm(self, **more: Any) -> dict[str, Any]:
        """Add a VM of a service to the stand-in without a playbook; return its variables."""
        vm = self.vm()
        config = {
            **{"description": f"smith-uid={vm['service_id']}", "tags": "smith;web", "cores": 2, "sockets": 1},
            **{"memory": "2048", "agent": "enabled=1", "scsi0": f"local-lvm:vm-{vm['vmid']}-disk-0,size=8G"},
            **{"net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0", "boot": "order=scsi0"},
            **more.pop("config", {}),
        }
        self.pve.control("add", vmid=vm["vmid"], name=more.pop("name", vm["name"]), config=config, **more)
        return vm

    def add_container(self, **more: Any) -> dict[str, Any]:
        """Add a container of a service to the stand-in without a playbook; return its variables."""
        vm = self.container()
        config = {
            **{"description": f"smith-uid={vm['service_id']}", "tags": "smith", "cores": 1, "memory": 512},
            **{"hostname": vm["name"], "swap": 0, "rootfs": f"ceph:vm-{vm['vmid']}-disk-0,size=4G", "cmode": "tty"},
            **{"net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:11:33,ip=dhcp", "ostype": "debian"},
            **more.pop("config", {}),
        }
        self.pve.control("add_container", vmid=vm["vmid"], name=vm["name"], config=config, **more)
        return vm

    def guest(self, vm: dict[str, Any]) -> dict[str, Any]:
        guest = self.pve.guest(vm["vmid"])
        assert guest, f"VM {vm['vmid']} does not exist"
        return guest

    def command(self, action: str, vm: dict[str, Any], *arguments: str, folder: Path = ROOT / "playbooks") -> list[str]:
        """Return the command that runs an action's playbook with the extra var `vm`."""
        variables = self.folder / f"{uuid.uuid4().hex}.yml"
        variables.write_text(yaml.dump({"vm": vm}, Dumper=_Dumper))
        return [ANSIBLE_PLAYBOOK, "-e", f"@{variables}", *arguments, str(folder / f"{action}.yml")]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of such a command, with the login and a new file for the recorder."""
        return {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            **{"ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback_plugins")},
            **{"ANSIBLE_CALLBACKS_ENABLED": "recorder", "PLAY_RECORD": str(self.folder / uuid.uuid4().hex)},
            **self.pve.env(),
            **more,
        }

    def play(
        self, action: str, vm: dict[str, Any], *arguments: str, folder: Path = ROOT / "playbooks", **environment: str
    ) -> Outcome:
        """Run a playbook to its end; always with `ansible-playbook` if `folder` or `environment` is given."""
        command = self.command(action, vm, *arguments, folder=folder)
        if self.warm and folder == ROOT / "playbooks" and not environment:
            return self.warm.play(command)
        env = self.environment(**environment)
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        return read_record(Path(env["PLAY_RECORD"]), done.returncode, done.stdout + done.stderr)

    def changing_requests(self, play: Callable[[], T]) -> tuple[T, list[str]]:
        """Run a play; return its outcome and its changing requests."""
        self.pve.reset_request_log()
        outcome = play()
        return outcome, [f"{entry['method']} {entry['path']}" for entry in self.pve.changing_requests()]


def needs(what: object, name: str) -> None:
    """Skip the test if the setting LAB_PROXMOX_`name` of the lab has no value; the stand-in has every value."""
    if not what:
        pytest.skip(f"LAB_PROXMOX_{name} is not set")


def read_record(path: Path, rc: int, output: str) -> Outcome:
    """Return the outcome of a play from the file that the recorder has written."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    custom = next((line["custom"] for line in lines if "custom" in line), {})
    return Outcome(rc=rc, output=output, tasks=[line for line in lines if "action" in line], custom=custom)


def load(path: Path) -> ModuleType:
    """Import a Python file that is in no package."""
    spec = importlib.util.spec_from_file_location(f"under_test_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
