# SPDX-License-Identifier: AGPL-3.0-or-later
"""Adds nodes, storages and templates to a new cluster. Adds a user with an API token if the settings name a user."""

from __future__ import annotations

import time
from typing import Any

from smith_lab.proxmox.fakepve_server.cluster import Cluster

GIB = 1024**3
MIB = 1024**2
#: The privileges of Agent Smith on VMs and on storages of Proxmox VE 9. `deploy/pveum-role.sh --backup`, the script for
#: installations, grants the same privileges.
VM_PRIVILEGES = [
    *("VM.Audit", "VM.Clone", "VM.Allocate", "VM.PowerMgmt", "VM.Snapshot", "VM.Migrate"),
    "VM.Backup",  # the script grants it only with `--backup`
    *("VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk", "VM.Config.Options", "VM.Config.Network"),
    *("VM.Config.Cloudinit", "VM.Config.HWType", "VM.GuestAgent.Audit"),
]
STORAGE_PRIVILEGES = ["Datastore.AllocateSpace", "Datastore.Audit"]


def seed_cluster(cluster: Cluster, settings: dict[str, Any]) -> None:
    """Add two nodes, storages, two VM templates, a container template, a pool, and a user with a token.

    `settings` contains the user (`user`) and the token (`token_id`, `token_secret`). If `user` is empty, the cluster is
    in the state before `smith init`: Agent Smith has no pool, no token and no role.
    """
    for node in ("pve1", "pve2"):
        cluster.add_node(node)
    cluster.storages["local-lvm"].update(avail=2000 * GIB, total=2100 * GIB, volumes={})
    cluster.add_ceph_storage("ceph", pool="vms")
    cluster.storages["ceph"].update(avail=5000 * GIB, total=6000 * GIB, volumes={})
    cluster.storages["local"]["content"] += ",snippets"
    # `files` is the set of the names of ISO images. `volumes` maps the name of each other volume to its properties.
    cluster.storages["local"]["files"].add("debian-12.iso")
    container_template = {"content": "vztmpl", "format": "tzst", "size": 120 * MIB, "ctime": int(time.time())}
    local_volumes = cluster.storages["local"].setdefault("volumes", {})
    local_volumes["vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"] = container_template
    cluster.storages["backups"] = {
        "type": "nfs",
        "content": "backup",
        "shared": 1,
        "active": 1,
        "files": set(),
        "volumes": {},
    }
    add_template(cluster, 9000, "debian-12", node="pve1", disk_gib=8)
    add_template(cluster, 9001, "ubuntu-24.04", node="pve2", disk_gib=10)
    if not settings["user"]:
        return
    cluster.pools["smith"] = set()
    cluster.add_account(settings["user"], settings["token_id"])
    cluster.apitokens[f"{settings['user']}!{settings['token_id']}"] = settings["token_secret"]
    for user_or_token in (settings["user"], f"{settings['user']}!{settings['token_id']}"):
        grant_privileges(cluster, user_or_token)


def grant_privileges(cluster: Cluster, user_or_token: str) -> None:
    """Grant a user or token exactly the privileges that `deploy/pveum-role.sh --backup` grants."""
    cluster.grant(user_or_token, "/vms", *VM_PRIVILEGES)
    for storage in ("local-lvm", "ceph", "backups"):
        cluster.grant(user_or_token, f"/storage/{storage}", *STORAGE_PRIVILEGES)
    cluster.grant(user_or_token, "/storage/local", "Datastore.Audit")  # for ISO images and container templates
    cluster.grant(user_or_token, "/sdn/zones/localnetwork", "SDN.Use")


def add_template(
    cluster: Cluster, vmid: int, name: str, *, node: str, disk_gib: int, storage: str = "local-lvm"
) -> None:
    """Add a VM template with one disk, a cloud-init drive and one NIC. Its configuration enables the guest agent."""
    disk = f"base-{vmid}-disk-0"
    volume = {"content": "images", "format": "raw", "size": disk_gib * GIB, "vmid": vmid, "ctime": int(time.time())}
    cluster.storages[storage].setdefault("volumes", {})[disk] = volume
    config = {
        "name": name,
        "description": f"{name} cloud image",
        "tags": "image",
        "template": 1,
        "cores": 1,
        "sockets": 1,
        "memory": "1024",
        "agent": "enabled=1",
        "ostype": "l26",
        "scsihw": "virtio-scsi-pci",
        "scsi0": f"{storage}:{disk},size={disk_gib}G",
        "ide2": f"{cluster._add_cloud_init_volume(storage, vmid)},media=cdrom",
        "net0": f"virtio=BC:24:11:00:00:{vmid % 100:02X},bridge=vmbr0",
        "boot": "order=scsi0",
        "serial0": "socket",
    }
    cluster.add_vm(vmid, name, node=node, config=config, template=True)
