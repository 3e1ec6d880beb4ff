"""Requests that Proxmox would refuse or ignore: for each action some such requests, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from play_bench import Bench

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
CLOUD_INIT = {"ide2": "local-lvm:vm-1-cloudinit,media=cdrom"}
#: On the stand-in: the VMID of a template with a balloon, a storage of raw files, and the number of CPUs of each node.
BALLOON, RAW, CPUS = 9080, "raw", 8
Vm = dict[str, Any]


@dataclass(frozen=True)
class ImpossibleRequest:
    """A request that cannot be fulfilled: its variable `vm`, and the code of its refusal."""

    code: str
    vm: Callable[[Bench], Vm]


def for_new_vm(code: str, **request: Any) -> ImpossibleRequest:
    """Return a request for a VM from a template."""
    return ImpossibleRequest(code, lambda bench: bench.vm(**request))


def for_blank_vm(code: str, **request: Any) -> ImpossibleRequest:
    """Return a request for a VM without a template."""
    return for_new_vm(code, **{"template_vmid": None, "blank": True, "node": "pve1", "storage": "ceph", **request})


def for_existing_vm(code: str, config: Vm | None = None, status: str = "stopped", **request: Any) -> ImpossibleRequest:
    """Return a request for an existing VM with this configuration and status."""
    return ImpossibleRequest(code, lambda bench: {**bench.add_vm(config=config or {}, status=status), **request})


def for_new_container(code: str, **request: Any) -> ImpossibleRequest:
    """Return a request for a container that does not exist yet."""
    place = {"node": "pve1", "storage": "ceph", "os_template": Bench.place.os_template}
    return ImpossibleRequest(code, lambda bench: {**bench.container(**place), **request})


def for_existing_container(code: str, config: Vm | None = None, **request: Any) -> ImpossibleRequest:
    """Return a request for an existing container with this configuration."""
    return ImpossibleRequest(code, lambda bench: {**bench.add_container(config=config or {}), **request})


def for_hibernated_vm(code: str = "VM_STATE", **request: Any) -> ImpossibleRequest:
    """Return a request for a hibernated VM with a snapshot."""

    def add(bench: Bench) -> Vm:
        vm = add_vm_with_snapshot(bench)
        bench.pve.control("lock", vmid=vm["vmid"], lock="suspended")
        return {**vm, **request}

    return ImpossibleRequest(code, add)


def add_vm_with_snapshot(bench: Bench) -> Vm:
    vm = bench.add_vm()
    assert bench.play("snapshot", {**vm, "snapshot": "before"}).rc == 0
    return vm


def add_vm_with_raw_disk(bench: Bench) -> Vm:
    """Return a VM with a disk that can have no snapshots."""
    vm = bench.add_vm()
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi1": f"{RAW}:{vm['vmid']}/vm-{vm['vmid']}-disk-1.raw"})
    return vm


#: Why these actions cannot make such a request: it is about a member of `vm` that they do not use.
NO_CONFIGURATION = dict.fromkeys(
    ("start", "stop", "restart", "migrate", "snapshot", "rollback", "backup", "delete"), "it takes no configuration"
)
TOO_MANY_CORES = {"cores": CPUS + 1}
MOVED_TO_NO_STORAGE = {"disks": [{"disk": "scsi0", "storage": "nosuch"}]}
ADDED_ON_NO_STORAGE = {"disks": [{"disk": "scsi1", "size_gib": 1, "storage": "nosuch"}]}
SNIPPET = {"cloud_init": {"vendor_snippet": "nosuch:snippets/vendor.yml"}}
SNIPPET_ON_STORAGE_WITHOUT_SNIPPETS = {"cloud_init": {"vendor_snippet": "ceph:snippets/vendor.yml"}}
BAD_KEY, TWO_SIZES = {"cloud_init": {"ssh_public_keys": [SSH_KEY[:-4]]}}, {"disks": [{"disk": "scsi0", "size_gib": 30}]}
ADDRESS_WITHOUT_MODE = {"network": {"ipv4_cidr": "192.0.2.9/24"}}
GATEWAY_OUTSIDE = {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "198.51.100.1"}}
ADDRESS_WITHOUT_PREFIX = {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9"}}

#: For each action: requests, or the reason why there is none.
Row = dict[str, ImpossibleRequest | list[ImpossibleRequest] | str]
IMPOSSIBLE_REQUESTS: dict[str, Row] = {
    "more vCPUs than the node has CPUs": {
        "create": [
            for_new_vm("CAPACITY", **TOO_MANY_CORES),
            for_new_vm("CAPACITY", cores=3, sockets=3),
            for_new_container("CAPACITY", **TOO_MANY_CORES),
        ],
        "update": [for_existing_vm("CAPACITY", **TOO_MANY_CORES), for_existing_container("CAPACITY", **TOO_MANY_CORES)],
        "start": for_existing_vm("CAPACITY", TOO_MANY_CORES),
        "restart": for_existing_vm("CAPACITY", TOO_MANY_CORES, "running"),
        "migrate": for_existing_vm("CAPACITY", TOO_MANY_CORES, "running", target_node="pve2"),
        "backup": for_existing_vm("CAPACITY", TOO_MANY_CORES, backup_storage="backups"),
        "delete": for_existing_vm("CAPACITY", TOO_MANY_CORES, final_backup="backups"),
        "stop": "it starts no VM",
        "resize": "it takes no CPUs, and starts no VM",
        "snapshot": "it takes no CPUs, and starts no VM",
        "rollback": "the VM is stopped afterwards, and the start is refused",
    },
    "an SSH key that Proxmox refuses": {
        "create": [for_new_vm("INVALID_REQUEST", **BAD_KEY), for_new_container("INVALID_REQUEST", **BAD_KEY)],
        "update": for_existing_vm("INVALID_REQUEST", CLOUD_INIT, **BAD_KEY),
        "resize": "it takes no login",
        **NO_CONFIGURATION,
    },
    "a balloon above the memory": {
        "create": [
            for_new_vm("INVALID_REQUEST", memory_mib=1024, balloon_mib=2048),
            for_new_vm("INVALID_REQUEST", template_vmid=BALLOON, memory_mib=1024),
            for_blank_vm("INVALID_REQUEST", memory_mib=1024, balloon_mib=2048),
        ],
        "update": [
            for_existing_vm("INVALID_REQUEST", balloon_mib=4096),
            for_existing_vm("INVALID_REQUEST", {"balloon": 2048}, memory_mib=1024),
        ],
        "resize": "it takes no memory",
        **NO_CONFIGURATION,
    },
    "two sizes of one disk": {
        "create": [for_new_vm("INVALID_REQUEST", **TWO_SIZES), for_blank_vm("INVALID_REQUEST", **TWO_SIZES)],
        "update": for_existing_vm("INVALID_REQUEST", disk_gib=20, **TWO_SIZES),
        "resize": for_existing_vm("INVALID_REQUEST", disk_gib=20, **TWO_SIZES),
        **NO_CONFIGURATION,
    },
    "a disk that would shrink": {
        "create": for_new_vm("INVALID_REQUEST", disk_gib=4),
        "update": for_existing_vm("INVALID_REQUEST", disk_gib=4),
        "resize": for_existing_vm("INVALID_REQUEST", disk_gib=4),
        **NO_CONFIGURATION,
    },
    "an address that contradicts its mode": {
        "create": [
            for_new_vm("INVALID_REQUEST", **ADDRESS_WITHOUT_MODE),
            for_new_container("INVALID_REQUEST", **ADDRESS_WITHOUT_MODE),
        ],
        "update": [
            for_existing_vm("INVALID_REQUEST", CLOUD_INIT, **ADDRESS_WITHOUT_MODE),
            for_existing_container("INVALID_REQUEST", **ADDRESS_WITHOUT_MODE),
        ],
        "resize": "it takes no addresses",
        **NO_CONFIGURATION,
    },
    "a gateway outside the network": {
        "create": [
            for_new_vm("INVALID_REQUEST", **GATEWAY_OUTSIDE),
            for_new_container("INVALID_REQUEST", **GATEWAY_OUTSIDE),
        ],
        "update": [
            for_existing_vm("INVALID_REQUEST", CLOUD_INIT, **GATEWAY_OUTSIDE),
            for_existing_container("INVALID_REQUEST", **GATEWAY_OUTSIDE),
        ],
        "resize": "it takes no addresses",
        **NO_CONFIGURATION,
    },
    "an address without its prefix length": {
        "create": [
            for_new_vm("INVALID_REQUEST", **ADDRESS_WITHOUT_PREFIX),
            for_new_container("INVALID_REQUEST", **ADDRESS_WITHOUT_PREFIX),
        ],
        "update": [
            for_existing_vm("INVALID_REQUEST", CLOUD_INIT, **ADDRESS_WITHOUT_PREFIX),
            for_existing_container("INVALID_REQUEST", **ADDRESS_WITHOUT_PREFIX),
        ],
        "resize": "it takes no addresses",
        **NO_CONFIGURATION,
    },
    "name servers for a VM without a cloud-init drive": {
        "create": for_blank_vm("INVALID_REQUEST", network={"dns_servers": ["192.0.2.53"]}),
        "update": for_existing_vm("INVALID_REQUEST", network={"dns_servers": ["192.0.2.53"]}),
        "resize": "it takes no name servers",
        **NO_CONFIGURATION,
    },
    "a move of a disk that has snapshots": {
        "create": "a new VM has no snapshots",
        "update": ImpossibleRequest(
            "VM_STATE",
            lambda bench: {**add_vm_with_snapshot(bench), "disks": [{"disk": "scsi0", "storage": "ceph"}], "cores": 4},
        ),
        "resize": "it moves no disks",
        **NO_CONFIGURATION,
        "migrate": "it takes no storage",
    },
    "a change of a hibernated VM": {
        "create": for_hibernated_vm(cores=4),
        "update": for_hibernated_vm(cores=4),
        "resize": for_hibernated_vm(disk_gib=9),
        "migrate": for_hibernated_vm(target_node="pve2"),
        "snapshot": for_hibernated_vm(snapshot="more"),
        "rollback": for_hibernated_vm(snapshot="before"),
        "backup": for_hibernated_vm(backup_storage="backups"),
        "delete": [for_hibernated_vm(final_backup="backups"), for_hibernated_vm(grace_s=3600)],
        "restart": for_hibernated_vm("VM_NOT_RUNNING"),
        "start": "Proxmox starts a hibernated VM",
        "stop": "a hibernated VM is stopped, so nothing changes",
    },
    "a bridge that does not exist": {
        "create": [
            for_new_vm("NOT_FOUND", bridge="vmbr9"),
            for_blank_vm("NOT_FOUND", bridge="vmbr9"),
            for_new_container("NOT_FOUND", bridge="vmbr9"),
        ],
        "update": [
            for_existing_vm("NOT_FOUND", network={"bridge": "vmbr9"}),
            for_existing_container("NOT_FOUND", networks=[{}, {"bridge": "vmbr9"}]),
        ],
        "resize": "it takes no bridge",
        **NO_CONFIGURATION,
        "start": "a bridge of the VM may exist although Proxmox does not list it, so only the start itself can fail",
        "restart": "as for a start",
        "migrate": "as for a start",
        "backup": "as for a start",
        "delete": "as for a start",
    },
    "a storage of disks that does not exist": {
        "create": [
            for_new_vm("NOT_FOUND", storage="nosuch"),
            for_new_vm("NOT_FOUND", **ADDED_ON_NO_STORAGE),
            for_blank_vm("NOT_FOUND", storage="nosuch"),
            for_new_container("NOT_FOUND", storage="nosuch"),
        ],
        "update": [
            for_existing_vm("NOT_FOUND", **ADDED_ON_NO_STORAGE),
            for_existing_vm("NOT_FOUND", **MOVED_TO_NO_STORAGE),
        ],
        "resize": for_existing_vm("INVALID_REQUEST", **MOVED_TO_NO_STORAGE),
        **NO_CONFIGURATION,
    },
    "a storage of backups that does not exist": {
        "backup": [
            for_existing_vm("NOT_FOUND", backup_storage="nosuch"),
            for_existing_container("NOT_FOUND", backup_storage="nosuch"),
        ],
        "delete": [
            for_existing_vm("NOT_FOUND", status="running", final_backup="nosuch"),
            for_existing_container("NOT_FOUND", final_backup="nosuch"),
        ],
        **dict.fromkeys(
            ("create", "update", "start", "stop", "restart", "resize", "migrate", "snapshot", "rollback"),
            "it makes no backup",
        ),
    },
    "a storage of other content": {
        "create": [
            for_new_vm("INVALID_REQUEST", storage="backups"),
            for_new_container("INVALID_REQUEST", storage="backups"),
        ],
        "update": for_existing_vm("INVALID_REQUEST", disks=[{"disk": "scsi0", "storage": "backups"}]),
        "backup": for_existing_vm("INVALID_REQUEST", backup_storage="local-lvm"),
        "delete": for_existing_vm("INVALID_REQUEST", status="running", final_backup="local-lvm"),
        "resize": for_existing_vm("INVALID_REQUEST", disks=[{"disk": "scsi0", "storage": "backups"}]),
        **dict.fromkeys(("start", "stop", "restart", "migrate", "snapshot", "rollback"), "it takes no storage"),
    },
    "a snippet on a storage that does not exist": {
        "create": for_new_vm("NOT_FOUND", **SNIPPET),
        "update": for_existing_vm("NOT_FOUND", CLOUD_INIT, **SNIPPET),
        "resize": "it takes no snippet",
        **NO_CONFIGURATION,
    },
    "a snippet on a storage of other content": {
        "create": for_new_vm("INVALID_REQUEST", **SNIPPET_ON_STORAGE_WITHOUT_SNIPPETS),
        "update": for_existing_vm("INVALID_REQUEST", CLOUD_INIT, **SNIPPET_ON_STORAGE_WITHOUT_SNIPPETS),
        "resize": "it takes no snippet",
        **NO_CONFIGURATION,
    },
    "a snapshot of a disk that can have none": {
        "snapshot": [
            ImpossibleRequest("VM_STATE", add_vm_with_raw_disk),
            for_existing_container("VM_STATE", {"rootfs": f"{RAW}:1/vm-1-disk-0.raw,size=4G"}),
        ],
        "rollback": ImpossibleRequest("NOT_FOUND", add_vm_with_raw_disk),
        **dict.fromkeys(
            ("create", "update", "start", "stop", "restart", "resize", "migrate", "backup", "delete"),
            "it takes no snapshot",
        ),
    },
    "an unknown CPU model": {
        "create": [
            for_new_vm("INVALID_REQUEST", cpu_type="Pentium9"),
            for_blank_vm("INVALID_REQUEST", cpu_type="Pentium9"),
        ],
        "update": for_existing_vm("INVALID_REQUEST", cpu_type="Pentium9"),
        "resize": "it takes no CPU model",
        **NO_CONFIGURATION,
    },
    "a node that does not exist": {
        "create": [
            for_blank_vm("NOT_FOUND", node="pve9"),
            for_new_container("NOT_FOUND", node="pve9"),
            for_new_vm("NOT_FOUND", node="pve9"),
        ],
        "migrate": for_existing_vm("NOT_FOUND", target_node="pve9"),
        **dict.fromkeys(
            ("update", "start", "stop", "restart", "resize", "snapshot", "rollback", "backup", "delete"),
            "`node` is only a hint where to look for the VM",
        ),
    },
}
