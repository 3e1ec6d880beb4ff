"""A request that a node or its cluster cannot fulfil is refused before any change. Tenants do not read its limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from play_bench import Bench
from smith_lab.proxmox.stand_in import running_stand_in
from test_refusals import GIB, refused

from executor.runs.results import detail_for_tenants
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode


@pytest.fixture
def small_nodes(bench: Bench) -> Iterator[None]:
    """Both nodes have 8 CPUs, which the login may read."""
    bench.pve.control("grant", path="/nodes", privilege="Sys.Audit")
    for node in ("pve1", "pve2"):
        bench.pve.control("node", node=node, maxcpu=8)
    yield
    bench.pve.control("revoke", path="/nodes", privilege="Sys.Audit")


@pytest.mark.usefixtures("small_nodes")
def test_more_vcpus_than_the_node_has_cpus_are_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    for action, vm in (
        ("create", bench.vm(cores=16)),
        ("create", bench.vm(cores=3, sockets=3)),
        ("update", {**bench.add_vm(), "cores": 9}),
        ("update", {**bench.add_vm(status="running"), "cores": 5, "sockets": 2, "allow_reboot": True}),
        ("start", bench.add_vm(config={"cores": 9})),
        ("restart", bench.add_vm(config={"cores": 9}, status="running")),
        ("migrate", {**bench.add_vm(config={"cores": 9}, status="running"), "target_node": "pve2"}),
    ):
        done = refused(bench, action, vm)
        assert (done.code, " has 8)" in done.message) == ("CAPACITY", True), (pve_version, done.message)
    assert bench.play("create", bench.vm(cores=8)).rc == 0
    assert bench.play("update", {**bench.add_vm(config={"cores": 9}), "memory_mib": 1024, "cores": None}).rc == 0


def test_vcpus_are_not_limited_without_the_privilege_to_read_the_cpus_of_the_node(
    bench: Bench, pve_version: str
) -> None:
    bench.pve.control("node", node="pve1", maxcpu=8)
    assert bench.play("create", bench.vm(cores=16)).rc == 0, pve_version


@pytest.mark.proxmox(
    behaviour="a snapshot of a guest with a disk that cannot have one fails in its task; `feature` reports it before",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, vm_feature; pve-guest-common: PVE/AbstractConfig.pm, __snapshot_prepare",
    reaction="asks before the first change (`VM_STATE`)",
)
def test_a_snapshot_of_a_guest_that_supports_none_is_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    bench.pve.control("add_storage", storage="raw", type="dir", content="images,rootdir", avail=100 * GIB)
    vm = bench.add_vm()
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi1": f"raw:{vm['vmid']}/vm-{vm['vmid']}-disk-1.raw"})
    container = bench.add_container(config={"rootfs": "raw:1/vm-1-disk-0.raw,size=4G"})
    for guest in (vm, container):
        done = refused(bench, "snapshot", {**guest, "snapshot": "before"})
        assert (done.code, " on raw" in done.message) == ("VM_STATE", True), (pve_version, done.message)
        assert detail_for_tenants(ErrorCode.VM_STATE, done.message.partition(": ")[2]).endswith("supports no snapshots")
    assert bench.play("snapshot", {**bench.add_container(), "snapshot": "before"}).rc == 0


@pytest.mark.usefixtures("small_nodes")
def test_more_cores_than_the_node_has_are_refused_for_a_container(bench: Bench, pve_version: str) -> None:
    """Proxmox accepts more, but a container can use only its node's cores. One that has more can be changed."""
    new = {**bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template), "cores": 9}
    for action, vm in (("create", new), ("update", {**bench.add_container(), "cores": 9})):
        assert refused(bench, action, vm).code == "CAPACITY", pve_version
    large = bench.add_container(config={"cores": 16})
    for action, requested in (("update", {"cores": 9, "memory_mib": 1024}), ("start", {})):
        assert bench.play(action, {**large, **requested}).rc == 0


@pytest.mark.proxmox(
    behaviour="a storage that does not exist is named only to a login with privileges on /storage, else it is 403",
    versions="8, 9",
    source="pve-storage: PVE/API2/Storage/Content.pm, index",
    reaction="lists the new disk's storage before the first change: `NOT_FOUND`, not retried",
)
def test_a_storage_that_does_not_exist_is_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    bench.pve.control("grant", path="/storage", privilege="Datastore.AllocateSpace")
    blank = bench.vm(template_vmid=None, blank=True, node="pve1", storage="nosuch")
    requests: tuple[tuple[str, dict[str, Any]], ...] = (
        ("create", bench.vm(storage="nosuch")),
        ("create", bench.vm(disks=[{"disk": "scsi1", "size_gib": 1, "storage": "nosuch"}])),
        ("create", blank),
        ("update", {**bench.add_vm(), "disks": [{"disk": "scsi1", "size_gib": 1, "storage": "nosuch"}]}),
        ("update", {**bench.add_vm(), "disks": [{"disk": "scsi0", "storage": "nosuch"}]}),
    )
    try:
        for action, vm in requests:
            done = refused(bench, action, vm)
            assert (done.code, "property storage" in done.message) == ("NOT_FOUND", True), (pve_version, done.message)
    finally:
        bench.pve.control("revoke", path="/storage", privilege="Datastore.AllocateSpace")


def test_a_storage_that_does_not_accept_the_content_is_refused_before_any_change(
    bench: Bench, pve_version: str
) -> None:
    running = {**bench.add_vm(status="running"), "final_backup": "local-lvm"}
    for action, vm in (
        ("create", bench.vm(storage="backups")),
        ("update", {**bench.add_vm(), "disks": [{"disk": "scsi0", "storage": "backups"}]}),
        ("backup", {**bench.add_vm(), "backup_storage": "local-lvm"}),
        ("delete", running),
    ):
        assert refused(bench, action, vm).code == "INVALID_REQUEST", pve_version
    assert bench.guest(running)["status"] == "running", "a delete checks its final backup before it stops the VM"


def test_a_node_that_does_not_exist_is_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    for vm in (bench.vm(node="PVE9"), bench.vm(template_vmid=None, blank=True, node="pve9", storage="ceph")):
        assert refused(bench, "create", vm).code == "NOT_FOUND", pve_version


def test_a_node_whose_name_has_upper_case_letters_can_be_used(tmp_path: Path) -> None:
    """Proxmox takes the names of nodes from their host names, and keeps upper case."""
    with running_stand_in(folder=tmp_path) as pve:
        pve.control("add_node", node="PVE-A")
        pve.control("add_template", vmid=9060, name="shared", node="pve1", storage="ceph")
        bench = Bench(pve=pve, folder=tmp_path)
        vm = bench.vm(node="PVE-A", template_vmid=9060, disk_gib=10)
        for action, request, node in (
            ("create", {}, "PVE-A"),
            ("start", {}, "PVE-A"),
            ("update", {"cores": 4}, "PVE-A"),
            ("migrate", {"target_node": "pve1"}, "pve1"),
            ("migrate", {"target_node": "PVE-A"}, "PVE-A"),
            ("delete", {}, "PVE-A"),
        ):
            done = bench.play(action, {**vm, **request})
            assert (done.rc, done.result["node"]) == (0, node), (action, done.output)
        assert Settings(proxmox_nodes="PVE-A,pve1").proxmox_nodes == ("PVE-A", "pve1")


@pytest.mark.proxmox(
    behaviour="an unknown CPU model is refused only when the configuration is changed, after the clone",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer/CPUConfig.pm, validate_vm_cpu_conf; PVE/API2/Qemu/CPU.pm, index",
    reaction="reads the node's models before the first change (`INVALID_REQUEST`); a custom model is not checked",
)
def test_an_unknown_cpu_model_is_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    for action, vm in (("create", bench.vm(cpu_type="Pentium9")), ("update", {**bench.add_vm(), "cpu_type": "hosts"})):
        assert refused(bench, action, vm).code == "INVALID_REQUEST", pve_version
    assert bench.play("create", bench.vm(cpu_type="custom-ours")).rc == 0


def test_a_disk_with_snapshots_is_not_moved(bench: Bench, pve_version: str) -> None:
    vm = bench.add_vm()
    assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    moved = {**vm, "disks": [{"disk": "scsi0", "storage": "ceph"}], "cores": 4}
    assert refused(bench, "update", moved).code == "VM_STATE", pve_version


def test_a_new_disk_on_a_storage_that_stores_files_can_have_snapshots(bench: Bench, pve_version: str) -> None:
    """A raw file cannot have snapshots, and without a requested format Proxmox creates a raw file."""
    bench.pve.control("add_storage", storage="files", type="dir", content="images", avail=100 * GIB)
    added = {**bench.add_vm(), "disks": [{"disk": "scsi1", "size_gib": 1, "storage": "files"}]}
    moved = {**bench.add_vm(), "disks": [{"disk": "scsi0", "storage": "files"}]}
    blank = bench.vm(template_vmid=None, blank=True, node="pve1", storage="files")
    for action, vm in (("update", added), ("update", moved), ("create", blank), ("create", bench.vm(storage="files"))):
        done = bench.play(action, vm)
        assert done.rc == 0, (pve_version, done.output)
        assert ".qcow2" in str(bench.guest(vm)["config"])
        assert bench.play("snapshot", {**vm, "snapshot": "after"}).rc == 0


@pytest.mark.proxmox(
    behaviour="the lock of a hibernated VM (suspended) does not end; only a start and a deletion are accepted",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, vm_start and destroy_vm; pve-guest-common: check_lock",
    reaction="refuses every other change at once (`VM_STATE`)",
)
def test_a_hibernated_vm_is_not_changed_until_it_is_started(bench: Bench, pve_version: str) -> None:
    vm = bench.add_vm()
    assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    bench.pve.control("lock", vmid=vm["vmid"], lock="suspended")
    for action, requested in (
        ("update", {"cores": 4}),
        ("resize", {"disk_gib": 9}),
        ("snapshot", {"snapshot": "more"}),
        ("rollback", {"snapshot": "before"}),
        ("backup", {"backup_storage": "backups"}),
        ("migrate", {"target_node": "pve2"}),
        ("delete", {"final_backup": "backups"}),
    ):
        assert refused(bench, action, {**vm, **requested}).code == "VM_STATE", (pve_version, action)
    assert bench.play("delete", vm).rc == 0


@pytest.mark.parametrize(
    ("code", "text", "shown"),
    [
        (
            "CAPACITY",
            "property cores: no more vCPUs than (16 requested, pve1 has 8)",
            "property cores: no more vCPUs than",
        ),
        ("NOT_FOUND", "property storage: it does not exist (ssd2)", "property storage: it does not exist"),
        ("INVALID_REQUEST", "property storage: it takes no disks (ssd2)", "property storage: it takes no disks"),
        ("INVALID_REQUEST", "property cloud_init.vendor_snippet: no (ssd2)", "property cloud_init.vendor_snippet: no"),
        ("CAPACITY", "local-lvm has 3 GiB free", "there is not enough free capacity for this request"),
        ("NOT_FOUND", "pool 'gold' does not exist", "an object that the job needs, such as a template, does not exist"),
        ("NOT_FOUND", "VM 100 has no snapshot before", "VM 100 has no snapshot before"),
        ("INVALID_REQUEST", "boot_order names scsi9 (it does not exist)", "boot_order names scsi9 (it does not exist)"),
    ],
)
def test_tenants_read_the_property_and_not_the_limits_of_a_node(code: str, text: str, shown: str) -> None:
    assert detail_for_tenants(ErrorCode(code), text) == shown
