"""Each privilege that we document is needed, and an action without its privilege fails with PVE_PERMISSION.

Each test revokes one privilege of the token and runs the action that needs it. The VM must neither be changed nor
treated as deleted.
"""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import LabSystem, run_lab_system, wait_for

from executor.model import JobResult, PlaybookRun
from executor.placement.snapshot import MAX_SNAPSHOT_AGE_S
from executor.proxmox import template_needs
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.privileges import list_privilege_needs
from executor.redaction import Redactor
from executor.runs import results
from executor.runs.actions import collection_folder
from executor.runs.runner import Runner, RunnerPaths
from executor.shared.error_codes import ErrorCode

pytestmark = pytest.mark.timeout(900)

#: How long the jobs of a service may take.
PATIENCE_S = 250.0
STORAGE = "local-lvm"
BACKUP_STORAGE = "backups"
#: All needs, also those of the optional settings.
ALL_NEEDS = list_privilege_needs(
    9,
    disk_storages=[STORAGE],
    bridges={"vmbr0": "localnetwork"},
    iso_and_vztmpl_storages=["local"],
    backup_storage=BACKUP_STORAGE,
)
#: The first need of each role. The storage for backups has the role of the storages for disks.
NEEDS = {need.role: need for need in reversed(ALL_NEEDS)}
#: What a create or an update requests unless the case says otherwise.
DEFAULT_REQUEST = {"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 8, "tags": ["web"]}
WITHOUT_TEMPLATE = {"iso": "local:iso/debian-12.iso", "storage": STORAGE, "bridge": "vmbr0", "template_vmid": None}
#: By role and privilege, an action with its variables that needs the privilege.
NEEDED_FOR: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("SmithVM", "VM.Allocate"): ("delete", {}),
    ("SmithVM", "VM.Audit"): ("start", {}),
    ("SmithVM", "VM.Clone"): ("create", {}),
    ("SmithVM", "VM.Config.CPU"): ("update", {"cores": 8}),
    ("SmithVM", "VM.Config.Disk"): ("resize", {"disk_gib": 9}),
    ("SmithVM", "VM.Config.HWType"): ("create", WITHOUT_TEMPLATE),
    ("SmithVM", "VM.Config.Memory"): ("update", {"memory_mib": 4096}),
    ("SmithVM", "VM.Config.Network"): ("update", {"network": {"mode": "dhcp", "vlan": 7}}),
    ("SmithVM", "VM.Config.Options"): ("update", {"tags": ["gold"]}),
    ("SmithVM", "VM.Migrate"): ("migrate", {"target_node": "pve2"}),
    ("SmithVM", "VM.PowerMgmt"): ("start", {}),
    ("SmithVM", "VM.Snapshot"): ("snapshot", {}),
    ("SmithStore", "Datastore.AllocateSpace"): ("create", {}),
    ("SmithNet", "SDN.Use"): ("create", {}),
    ("SmithImages", "Datastore.Audit"): ("create", WITHOUT_TEMPLATE),
    ("SmithBackup", "VM.Backup"): ("backup", {"backup_storage": BACKUP_STORAGE}),
}
#: Where the stand-in has granted the privileges of a role, unless it is the path of the need.
GRANTED_ON = {"SmithNet": "/sdn/zones/localnetwork"}
#: By a value of a template's configuration, the path and the privilege that a clone of it needs.
NEEDED_FOR_TEMPLATE = {
    ("hostpci0", "mapping=gpu,pcie=1"): ("/mapping/pci/gpu", "Mapping.Use"),
    ("usb0", "mapping=key"): ("/mapping/usb/key", "Mapping.Use"),
    ("virtiofs0", "dirid=share"): ("/mapping/dir/share", "Mapping.Use"),
    ("rng0", "source=/dev/hwrng"): ("/mapping/hwrng", "Mapping.Use"),
    ("cpu", "custom-slow"): ("/mapping/cpu/slow", "Mapping.Use"),
    ("ide0", "cdrom,media=cdrom"): ("/", "Sys.Console"),
    ("vmstatestorage", "backups"): ("/storage/backups", "Datastore.AllocateSpace"),
}
#: Without one of these, an action does or reports less, but does not fail; each has a test below.
MISSING_WITHOUT_FAILURE = {
    ("SmithVM", "VM.Config.Cloudinit"),
    ("SmithVM", "VM.GuestAgent.Audit"),
    ("SmithStore", "Datastore.Audit"),
}


@dataclass
class StandInBench:
    """A Proxmox stand-in and a runner of playbooks."""

    pve: ProxmoxStandIn
    runner: Runner
    vmids: Iterator[int] = field(default_factory=lambda: itertools.count(20_000))

    def add_vm(self, action: str, requested: dict[str, Any]) -> dict[str, Any]:
        """Add a VM that the action would change (for a create, none); return its variables."""
        service_id, vmid = str(uuid.uuid4()), next(self.vmids)
        vm = {"service_id": service_id, "vmid": vmid, "name": f"web-{service_id[:8]}", "node": "pve1"}
        vm |= {"timeout_s": 60, "shutdown_timeout_s": 5, "address_timeout_s": 1}
        if action != "create":
            config = {
                **{"description": f"smith-uid={service_id}", "tags": "smith;web", "cores": 2, "sockets": 1},
                **{"memory": "2048", "agent": "enabled=1", "scsi0": f"{STORAGE}:vm-{vmid}-disk-0,size=8G"},
                **{"ide2": f"{STORAGE}:vm-{vmid}-cloudinit,media=cdrom", "boot": "order=scsi0"},
                **{"net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0"},
            }
            status = "running" if action in ("resize", "migrate", "snapshot") else "stopped"
            self.pve.control("add", vmid=vmid, name=vm["name"], config=config, status=status)
        variables = {**vm, **(DEFAULT_REQUEST if action in ("create", "update") else {}), **requested}
        return {name: value for name, value in variables.items() if value is not None}

    @contextmanager
    def without_privilege(self, role: str, privilege: str, path: str = "") -> Iterator[None]:
        """Revoke a privilege of the token while the block runs."""
        path = path or GRANTED_ON.get(role, NEEDS[role].path)
        self.pve.control("revoke", path=path, privilege=privilege)
        try:
            yield
        finally:
            self.pve.control("grant", path=path, privilege=privilege)

    def play(self, action: str, vm: dict[str, Any]) -> JobResult:
        run = PlaybookRun(
            ident=f"{action}-{uuid.uuid4().hex[:8]}",
            action=action,
            playbook=collection_folder() / "playbooks" / f"{action}.yml",
            vm=vm,
            timeout_s=120,
        )
        return results.read_result(self.runner.run(run))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInBench]:
    folder = tmp_path_factory.mktemp("privileges")
    with running_stand_in(folder=folder / "pve") as pve:
        credentials = {
            **{"api_host": pve.host, "api_port": pve.port, "api_user": pve.user, "api_token_id": pve.token_id},
            **{"api_token_secret": pve.token_secret, "validate_certs": True},
        }
        paths = RunnerPaths(
            collection_folder=collection_folder(), run_dir=folder / "run", artifacts_dir=folder / "artifacts"
        )
        runner = Runner(paths, lambda: credentials, ca_bundle=pve.ca_bundle, redactor=Redactor())
        runner.end_earlier_runs()
        runner.start_warm_server()
        yield StandInBench(pve, runner)
        runner.stop_warm_server()


def test_every_privilege_of_the_table_is_tested() -> None:
    table = {(need.role, privilege) for need in NEEDS.values() for privilege in need.privileges}
    assert {*NEEDED_FOR} | MISSING_WITHOUT_FAILURE == table


@pytest.mark.parametrize(("role", "privilege"), NEEDED_FOR, ids=lambda part: part)
def test_an_action_without_its_privilege_fails_with_pve_permission(
    bench: StandInBench, role: str, privilege: str
) -> None:
    action, requested = NEEDED_FOR[role, privilege]
    vm = bench.add_vm(action, requested)
    before = bench.pve.guest(vm["vmid"])
    with bench.without_privilege(role, privilege):
        done = bench.play(action, vm)
    assert done.code is ErrorCode.PVE_PERMISSION, done
    assert privilege in done.detail
    after = bench.pve.guest(vm["vmid"])
    assert after == before, "the action made a partial change"


def test_a_backup_needs_space_on_its_storage(bench: StandInBench) -> None:
    """Proxmox's backup does not check Datastore.Audit. The doctor and the lists of archives need this privilege."""
    privilege = "Datastore.AllocateSpace"
    (need,) = [need for need in ALL_NEEDS if need.path == f"/storage/{BACKUP_STORAGE}"]
    assert privilege in need.privileges
    vm = bench.add_vm("backup", {"backup_storage": BACKUP_STORAGE})
    with bench.without_privilege(need.role, privilege, need.path):
        done = bench.play("backup", vm)
    assert (done.code, privilege in done.detail) == (ErrorCode.PVE_PERMISSION, True), done
    assert bench.play("backup", vm).succeeded


def test_without_the_cloud_init_privilege_the_cloud_init_values_of_a_running_vm_are_still_changed(
    bench: StandInBench,
) -> None:
    vm = bench.add_vm("update", {"cloud_init": {"user": "ops"}})
    bench.pve.control("power", vmid=vm["vmid"], status="running")
    with bench.without_privilege("SmithVM", "VM.Config.Cloudinit"):
        done = bench.play("update", vm)
    assert done.succeeded, done
    assert done.vm["reboot_required"] is True
    assert (bench.pve.guest(vm["vmid"]) or {})["config"]["ciuser"] == "ops"


@pytest.mark.parametrize(("version", "privilege"), [("8.4.1", "VM.Monitor"), ("9.0.10", "VM.GuestAgent.Audit")])
def test_without_the_guest_agent_privilege_a_vm_starts_without_reported_addresses(
    bench: StandInBench, version: str, privilege: str
) -> None:
    vm = bench.add_vm("start", {})
    bench.pve.control("version", version=version)
    try:
        with bench.without_privilege("SmithVM", privilege):
            done = bench.play("start", vm)
        assert done.succeeded, done
        assert (done.vm["status"], done.vm["ip_addresses"]) == ("running", [])
        with_privilege = bench.play("start", vm | {"address_timeout_s": 20})
        assert with_privilege.vm["ip_addresses"] != []
    finally:
        bench.pve.control("version", version="9.0.10")


def test_without_the_audit_privilege_a_storage_is_still_used(bench: StandInBench) -> None:
    reader = ProxmoxReader(
        ProxmoxConnection(
            host=bench.pve.host,
            port=bench.pve.port,
            user=bench.pve.user,
            token_id=bench.pve.token_id,
            token_secret=bench.pve.token_secret,
            verify=bench.pve.ca_bundle,
        )
    )
    with bench.without_privilege("SmithStore", "Datastore.Audit"):
        assert STORAGE not in {row.name for row in reader.storages()}, "the storage's usage must be invisible"
        assert bench.play("create", bench.add_vm("create", {"storage": STORAGE})).succeeded


@pytest.mark.parametrize("device", NEEDED_FOR_TEMPLATE, ids=lambda device: device[0])
def test_a_clone_of_a_template_with_a_device_needs_its_privilege(bench: StandInBench, device: tuple[str, str]) -> None:
    path, privilege = NEEDED_FOR_TEMPLATE[device]
    needs = template_needs.privilege_needs_of_template(dict([device]))
    assert [(need.path, privilege in need.privileges) for need in needs] == [(path, True)]
    template_vmid = next(bench.vmids)
    bench.pve.control("add_template", vmid=template_vmid, name=f"with-{device[0]}", node="pve1")
    bench.pve.control("configure", vmid=template_vmid, values=dict([device]))
    vm = bench.add_vm("create", {"template_vmid": template_vmid})
    bench.pve.control("revoke", path=path, privilege=privilege)
    refused = bench.play("create", vm)
    assert (refused.code, privilege in refused.detail) == (ErrorCode.PVE_PERMISSION, True), refused
    assert bench.pve.guest(vm["vmid"]) is None
    bench.pve.control("grant", path=path, privilege=privilege)
    assert bench.play("create", vm).succeeded


def test_a_clone_of_a_template_with_an_unmapped_device_is_refused_before_any_change(bench: StandInBench) -> None:
    template_vmid = next(bench.vmids)
    bench.pve.control("add_template", vmid=template_vmid, name="with-raw-device", node="pve1")
    bench.pve.control("configure", vmid=template_vmid, values={"hostpci0": "0000:01:00.0"})
    vm = bench.add_vm("create", {"template_vmid": template_vmid})
    assert bench.play("create", vm).code is ErrorCode.PVE_PERMISSION
    assert bench.pve.guest(vm["vmid"]) is None


def test_a_bridge_and_a_vnet_need_only_their_own_privilege(bench: StandInBench) -> None:
    """The privilege on the whole zone is not needed. That for a VNet is granted below the VNet's own zone."""
    bench.pve.control("vnet", name="vnet7", zone="tenants")
    with bench.without_privilege("SmithNet", "SDN.Use"):
        for bridge, path in (("vmbr0", "/sdn/zones/localnetwork/vmbr0"), ("vnet7", "/sdn/zones/tenants/vnet7")):
            vm = bench.add_vm("create", WITHOUT_TEMPLATE | {"bridge": bridge})
            assert bench.play("create", vm).code is ErrorCode.PVE_PERMISSION
            bench.pve.control("grant", path=path, privilege="SDN.Use")
            assert bench.play("create", vm).succeeded
            bench.pve.control("revoke", path=path, privilege="SDN.Use")
    bench.pve.control("vnet", name="vnet7", zone="")


def test_a_vm_with_a_cd_drive_is_created_without_the_privilege_for_cd_drives(bench: StandInBench) -> None:
    assert not any("VM.Config.CDROM" in need.privileges for need in NEEDS.values())
    assert bench.play("create", bench.add_vm("create", WITHOUT_TEMPLATE)).succeeded


def test_a_create_in_a_pool_needs_no_additional_privilege(bench: StandInBench) -> None:
    vm = bench.add_vm("create", {"pool": "smith"})
    assert bench.play("create", vm).succeeded
    assert (bench.pve.guest(vm["vmid"]) or {})["pool"] == "smith"


# --- end to end ----------------------------------------------------------------------------------------


def test_an_agent_whose_token_sees_no_vm_treats_none_as_deleted(tmp_path: Path) -> None:
    """Proxmox answers such a token with 200 and empty lists."""
    with run_lab_system(tmp_path) as lab:
        lab.start_executor()
        services = {
            action: lab.order_service(action, cores=1, memoryMb=512, diskGb=8) for action in ("start", "delete")
        }
        for service in services.values():
            assert lab.wait_for_jobs(service, PATIENCE_S)["status"] == "Stopped"
        before = {vm["vmid"]: vm for vm in lab.proxmox.guests()}
        lab.proxmox.control("revoke", path="/vms", privilege="VM.Audit")
        for action, service in services.items():
            lab.admin.request_action(service, action)
        time.sleep(MAX_SNAPSHOT_AGE_S)  # until then, placement uses the earlier list
        services["create"] = lab.order_service("create", cores=1, memoryMb=512, diskGb=8)

        for action, service in services.items():
            job = wait_for(functools.partial(_failed_job, lab, service), PATIENCE_S, f"{action} to fail")
            assert job["action"] == action
            assert job["errorMessage"].startswith("PVE_PERMISSION: "), job["errorMessage"]
            assert "VM.Audit" in job["errorMessage"]
        assert {row["state"] for row in lab.run_smith_json("mappings", "list")} == {"active"}
        assert {vm["vmid"]: vm for vm in lab.proxmox.guests()} == before


def _failed_job(lab: LabSystem, service: str) -> dict[str, Any] | None:
    job = lab.last_job(service)
    return job if job["status"] == "Failed" else None
