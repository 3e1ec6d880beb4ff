# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Proxmox stand-in's server: fakepve with its gaps closed, a seeded cluster, and a control port.

Only ever run as a process of its own (`lab/smith_lab/proxmox_stand_in.py` starts it): it builds on fakepve, which is
AGPL, so it carries that licence, lives outside the shipped package, and nothing imports it.

    python fakepve_server.py settings.json

The settings file holds `host port control_port cert key user token_id token_secret time_scale ready`. Ports of 0 are
chosen by the system; the ones in use are written to the file named by `ready` once both answer. The process ends when
its standard input closes, so it never outlives the one that started it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from fakepve.lxc import SIZE_UNITS, format_size, parse_size
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.qemu import DRIVE_KEY, drives_of, is_cdrom, join_drive, split_drive, volume_ref, with_mac
from fakepve.routing import die, split_list
from fakepve.server import API, USER, FakePve, error, ok, params

GIB = 1024**3
#: What the token may do: reference "Least privilege", for Proxmox VE 9.
VM_PRIVILEGES = [
    *("VM.Audit", "VM.Clone", "VM.Allocate", "VM.PowerMgmt", "VM.Snapshot", "VM.Migrate"),
    "VM.Backup",
    *("VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk", "VM.Config.Options", "VM.Config.Network"),
    *("VM.Config.Cloudinit", "VM.Config.CDROM", "VM.Config.HWType", "VM.GuestAgent.Audit"),
]
STORAGE_PRIVILEGES = ["Datastore.AllocateSpace", "Datastore.Audit"]
#: Seconds of Proxmox time that a task of each type takes; nothing at time scale 0.
TASK_SECONDS = {
    "qmclone": 10,
    "qmstart": 2,
    "qmdestroy": 2,
    "resize": 1,
    "qmsnapshot": 2,
    "qmrollback": 3,
    "qmmove": 8,
    "vzdump": 5,
}
#: What a node has and uses, unless the control port says otherwise: room for as many VMs as any test makes.
NODE_STATS = {"cpu": 0.02, "maxcpu": 64, "mem": 8 * GIB, "maxmem": 4096 * GIB}
#: Seconds of Proxmox time between a start and the guest agent's first answer.
GUEST_AGENT_SECONDS = 5
CLOUD_INIT = re.compile(r"(?:^|/)vm-\d+-cloudinit")
CLOUD_INIT_KEYS = ("ciuser", "cipassword", "sshkeys", "nameserver", "searchdomain", "citype", "ciupgrade", "cicustom")
SECRET_PARAMS = ("cipassword", "password")


class Cluster(FakePve):
    """fakepve with what our playbooks need and it lacks."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slow_s = 0.0
        self.faults: list[dict[str, Any]] = []
        self.task_faults: list[dict[str, Any]] = []
        self.task_seconds = dict(TASK_SECONDS)
        self.without_guest_agent: set[int] = set()
        self.request_log: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ requests and faults

    async def _answer(self, request: web.Request, handler: Any, generic: Any, path_node: str | None) -> Any:
        path = request.path.removeprefix(API)
        self.request_log.append({"method": request.method, "path": path, "params": await _shown_params(request)})
        await asyncio.sleep(self.slow_s)
        fault = self._take_fault(request.method, path)
        if fault is None:
            return await super()._answer(request, handler, generic, path_node)
        if fault["after"]:
            await super()._answer(request, handler, generic, path_node)
        await asyncio.sleep(fault["delay_s"])
        if not fault["status"]:
            if request.transport is not None:
                request.transport.close()
            raise ConnectionResetError("stand-in: connection dropped")
        return error(fault["status"], fault["text"])

    def _take_fault(self, method: str, path: str) -> dict[str, Any] | None:
        for fault in self.faults:
            if fault["method"] in ("*", method) and fnmatch.fnmatchcase(path, fault["path"]):
                fault["times"] -= 1
                if fault["times"] == 0:
                    self.faults.remove(fault)
                return fault
        return None

    # ------------------------------------------------------------------ tasks

    async def task(  # noqa: PLR0917 - fakepve's own signature
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a task that takes its type's time, and fails when a task fault says so."""

        async def whole() -> Any:
            await self.pause(self.task_seconds.get(ttype, 0))
            self._raise_task_fault(ttype, tid, vm)
            note = await body()
            if ttype == "qmclone" and vm is not None:
                self._give_own_cloud_init(vm)
            return note

        return str(await super().task(node, ttype, tid, user, whole, vm=vm, **kwargs))

    def _raise_task_fault(self, ttype: str, tid: Any, vm: Any) -> None:
        for fault in self.task_faults:
            if fault["type"] != ttype or fault["vmid"] not in (None, int(tid or 0), getattr(vm, "vmid", None)):
                continue
            fault["times"] -= 1
            if fault["times"] == 0:
                self.task_faults.remove(fault)
            for guests in (self.vms, self.cts):
                if ttype in ("qmclone", "qmcreate", "vzcreate") and vm in guests:
                    guests.remove(vm)  # Proxmox rolls back what it could not make
            raise TaskError(fault["text"])

    def _give_own_cloud_init(self, vm: FakeVm) -> None:
        """Proxmox makes a new cloud-init volume for a clone; fakepve leaves the template's in place."""
        for key, volume, props in drives_of(vm.config):
            storage, name = volume_ref(volume)
            if storage and CLOUD_INIT.search(name):
                vm.config[key] = join_drive(self._new_cloud_init(storage, vm.vmid), props)

    def _new_cloud_init(self, storage: str, vmid: int) -> str:
        name = f"vm-{vmid}-cloudinit"
        volume = {"content": "images", "format": "raw", "size": 4 * 1024**2, "vmid": vmid, "ctime": int(time.time())}
        self.storages[storage].setdefault("volumes", {})[name] = volume
        return f"{storage}:{name}"

    # ------------------------------------------------------------------ permissions

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        """With a path, Proxmox answers for exactly that path; fakepve lists where the grants stand."""
        held: dict[str, dict[str, int]] = await super()._permissions(v, user)
        if v.get("path") is None:
            return held
        merged = {privilege: 1 for privileges in held.values() for privilege in privileges}
        return {v["path"]: merged}

    async def _cluster_status(self, request: web.Request) -> web.Response:
        self.require(request[USER], "/", "Sys.Audit")  # fakepve lets everybody
        return await super()._cluster_status(request)

    async def _resources(self, request: web.Request) -> web.Response:
        """Proxmox lists the storages that may be looked at; fakepve lists all."""
        answer = json.loads((await super()._resources(request)).text)
        shown = [
            row
            for row in answer["data"]
            if row["type"] != "storage" or self.allowed(request[USER], f"/storage/{row['storage']}", "Datastore.Audit")
        ]
        return ok(shown)

    async def _nodes(self, request: web.Request) -> web.Response:
        """Without quorum, the node that answers sees itself alone."""
        answer = json.loads((await super()._nodes(request)).text)
        for node in answer["data"]:
            if node["status"] == "online":
                node.update({**NODE_STATS, **self.nodes[node["node"]].get("stats", {})})
        for node in answer["data"][1:]:
            node["status"] = node["status"] if self.quorate else "offline"
        return ok(answer["data"])

    async def _ha_manager_status(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """As Proxmox nests it, which fakepve's generic answer does not."""
        self.require(user, "/", "Sys.Audit")
        states = {
            name: "maintenance" if node.get("maintenance") else "online" for name, node in sorted(self.nodes.items())
        }
        return {"manager_status": {"node_status": states}, "quorum": {"node": "pve1", "quorate": 1}, "lrm_status": {}}

    def _config_priv(self, key: str) -> str:
        if key in CLOUD_INIT_KEYS or key.startswith("ipconfig"):
            return "VM.Config.Cloudinit"
        return str(super()._config_priv(key))

    def _check_bridges(self, user: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if re.fullmatch(r"net\d+", key) and (bridge := re.search(r"bridge=([^,]+)", str(value))):
                self.require(user, f"/sdn/zones/localnetwork/{bridge.group(1)}", "SDN.Use")

    async def _qm_clone(self, v: dict[str, Any], user: str) -> str:
        source = self.find(v["node"], v["vmid"])
        self._check_bridges(user, source.config)
        local = [volume for _key, volume, _props in drives_of(source.config) if not self._is_shared(volume)]
        if local and v.get("target") not in (None, "", v["node"]):
            raise die(f"can't clone VM to node '{v['target']}' (VM uses local storage)")
        return str(await super()._qm_clone(v, user))

    # ------------------------------------------------------------------ configuration

    async def _config_get(self, request: web.Request) -> web.Response:
        """Without `current`, Proxmox answers with the pending values merged in."""
        vm = self._vm(request, "VM.Audit")
        config = dict(vm.config)
        if request.query.get("current") not in ("1", "true"):
            merged = {**config, **vm.pending}
            config = {key: value for key, value in merged.items() if value is not None}
        return ok(_as_read(config, vm.digest()))

    async def _pending(self, request: web.Request) -> web.Response:
        answer = json.loads((await super()._pending(request)).text)
        for item in answer["data"]:
            for slot in ("value", "pending"):
                if item["key"] == "cipassword" and slot in item:
                    item[slot] = "**********"
        return ok(answer["data"])

    async def _apply_config(self, vm: FakeVm, user: str, p: dict[str, Any]) -> None:
        """Allocate new disks, keep detached ones as unused, normalise tags, apply what hot-plugs."""
        updates = dict(p)
        self._check_bridges(user, updates)
        self._check_lock(vm)
        for key in list(updates):
            if DRIVE_KEY.match(key):
                self._qm_check_drive(user, vm.vmid, None, key, updates[key], None)
                updates[key], _made = self._qm_new_drive(vm.vmid, key, updates[key], None)
            elif re.fullmatch(r"net\d+", key):
                updates[key] = with_mac(updates[key])
        if "tags" in updates:
            updates["tags"] = ";".join(sorted({tag.lower() for tag in split_list(updates["tags"])}))
        dropped = {key: vm.config[key] for key in split_list(updates.get("delete")) if key in vm.config}
        await super()._apply_config(vm, user, updates)
        self._settle_disks(vm, dropped)
        self._settle_pending(vm)

    def _settle_disks(self, vm: FakeVm, dropped: dict[str, str]) -> None:
        for key, value in dropped.items():
            volume, props = split_drive(value)
            if key.startswith("unused"):
                vm.config.pop(key, None)
                self._qm_free(volume)
            elif DRIVE_KEY.match(key):
                vm.config.pop(key, None)
                vm.pending.pop(key, None)
                if is_cdrom(volume, props):
                    self._qm_free(volume)
                else:
                    vm.config[self._free_unused(vm)] = volume

    @staticmethod
    def _free_unused(vm: FakeVm) -> str:
        return next(f"unused{n}" for n in range(256) if f"unused{n}" not in vm.config)

    @staticmethod
    def _settle_pending(vm: FakeVm) -> None:
        """Network, disks and USB hot-plug by default; a pending value equal to the one in force is none."""
        hotplug = split_list(vm.config.get("hotplug", "network,disk,usb"))
        for key, value in list(vm.pending.items()):
            hot = (
                ("network" in hotplug and re.fullmatch(r"net\d+", key))
                or ("disk" in hotplug and DRIVE_KEY.match(key))
                or ("usb" in hotplug and key.startswith("usb"))
                or ("memory" in hotplug and key == "memory")
            )
            if hot and value is not None:
                vm.config[key] = value
            if hot or str(vm.config.get(key)) == str(value):
                del vm.pending[key]

    # ------------------------------------------------------------------ routes that fakepve only answers

    def _routes_stand_in(self) -> list[tuple[str, str, Any]]:
        one = "/nodes/{node}/qemu/{vmid}"
        return [
            ("PUT", one + "/resize", self._resize),
            ("POST", one + "/migrate", self._migrate),
            ("POST", one + "/move_disk", self._move_disk),
            ("PUT", one + "/unlink", self._unlink),
            ("POST", "/nodes/{node}/vzdump", self._vzdump),
            ("GET", "/cluster/ha/status/manager_status", self._ha_manager_status),
        ]

    async def _resize(self, v: dict[str, Any], user: str) -> str:
        vm = self.find(v["node"], v["vmid"])
        disk, wanted = v["disk"], str(v["size"])
        self.need_quorum()
        self._check_lock(vm)
        if disk not in vm.config:
            raise die(f"disk '{disk}' does not exist")
        volume, props = split_drive(vm.config[disk])
        if is_cdrom(volume, props):
            raise die("you can't resize a cdrom")

        async def body() -> None:
            self._check_lock_in_task(vm)
            before = parse_size(props.get("size", "0")) or 0
            after = (before if wanted.startswith("+") else 0) + _bytes_of(wanted.removeprefix("+"))
            if after < before:
                raise TaskError("shrinking disks is not supported")
            self._take_space(volume, after - before)
            vm.config[disk] = join_drive(volume, dict(props, size=format_size(after)))

        return await self.task(vm.node, "resize", vm.vmid, user, body, vm=vm)

    @staticmethod
    def _check_lock_in_task(vm: FakeVm) -> None:
        if vm.lock:
            raise TaskError(f"VM is locked ({vm.lock})")

    def _take_space(self, volume: str, amount: int) -> None:
        storage, name = volume_ref(volume)
        store = self.storages.get(storage or "", {})
        if amount > store.get("avail", float("inf")):
            raise TaskError(f"unable to write to storage '{storage}': No space left on device")
        if "avail" in store:
            store["avail"] -= amount
        if name in store.get("volumes", {}):
            store["volumes"][name]["size"] += amount

    async def _migrate(self, v: dict[str, Any], user: str) -> str:
        vm = self.find(v["node"], v["vmid"])
        target = v["target"]
        self.need_quorum()
        self._check_lock(vm)
        if target not in self.nodes:
            raise die(f"no such cluster node '{target}'")
        if target == vm.node:
            raise die(f"target is local node '{target}'")
        if vm.status == "running" and not v.get("online"):
            raise die("can't migrate running VM without --online")
        local = [vol for _key, vol, _props in drives_of(vm.config, skip_cdrom=True) if not self._is_shared(vol)]
        if vm.status == "running" and local and not v.get("with-local-disks"):
            raise die("can't live migrate attached local disks without with-local-disks option")
        return str(await self.migrate(vm.vmid, target, user=user))

    def _is_shared(self, volume: str) -> bool:
        return bool(self.storages.get(volume_ref(volume)[0] or "", {}).get("shared"))

    async def _move_disk(self, v: dict[str, Any], user: str) -> str:
        vm = self.find(v["node"], v["vmid"])
        disk, storage = v["disk"], v.get("storage")
        self._check_lock(vm)
        if disk not in vm.config:
            raise die(f"disk '{disk}' does not exist")
        if not storage:
            raise die("you must specify a storage")
        self._qm_image_store(storage, user)

        async def body() -> None:
            volume, props = split_drive(vm.config[disk])
            moved, _format = self._qm_alloc(storage, vm.vmid, v.get("format"), parse_size(props.get("size", "0")) or 0)
            vm.config[disk] = join_drive(moved, props)
            if v.get("delete"):
                self._qm_free(volume)
            else:
                vm.config[self._free_unused(vm)] = volume

        return await self.task(vm.node, "qmmove", vm.vmid, user, body, vm=vm)

    async def _vzdump(self, v: dict[str, Any], user: str) -> str:
        """A backup of one guest: locked meanwhile, and an archive on the storage afterwards."""
        vmid, storage = int(v["vmid"]), str(v.get("storage") or "local")
        vm = self.ct(vmid) or self.find(v["node"], vmid)
        self.need_quorum()
        self.require(user, f"/vms/{vm.vmid}", "VM.Backup")
        self.require(user, f"/storage/{storage}", "Datastore.AllocateSpace")
        if "backup" not in split_list(self._store(storage).get("content")):
            raise die(f"can't use storage '{storage}' for backups - wrong content type")

        async def body() -> None:
            self._check_lock_in_task(vm)
            self._qm_lock(vm, "backup")
            try:
                await self.pause(self.task_seconds["vzdump"])
            finally:
                self._qm_lock(vm, None)
            volumes = self.storages[storage].setdefault("volumes", {})
            volume = {"content": "backup", "format": "vma.zst", "size": GIB, "vmid": vm.vmid, "ctime": int(time.time())}
            volumes[f"backup/vzdump-qemu-{vm.vmid}-{len(volumes):04d}.vma.zst"] = volume

        return await self.task(vm.node, "vzdump", vm.vmid, user, body, vm=vm)

    async def _unlink(self, v: dict[str, Any], user: str) -> None:
        vm = self.find(v["node"], v["vmid"])
        await self._apply_config(vm, user, {"delete": v["idlist"]})

    # ------------------------------------------------------------------ guest agent and metrics

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        vm = self.find(values["node"], values["vmid"])
        enabled = re.search(r"(?:^|enabled=)(\d)", str(vm.config.get("agent", "0")))
        if not enabled or enabled.group(1) != "1":
            raise PveError(500, "No QEMU guest agent configured")
        vm.agent = self._guest_agent_of(vm)
        return await super()._agent_call(match, values)

    def _guest_agent_of(self, vm: FakeVm) -> dict[str, Any] | None:
        """None until the guest has had time to start it. A clone of fakepve never has one."""
        booting = time.time() < (vm.started_at or 0) + GUEST_AGENT_SECONDS * self.time_scale
        if vm.vmid in self.without_guest_agent or vm.status != "running" or booting:
            return None
        inside = [_interface("docker0", "02:42:0a:0b:0c:0d", ["172.17.0.1/16"])]  # nobody outside can reach it
        return {"interfaces": [_interface("lo", "00:00:00:00:00:00", ["127.0.0.1/8"]), *_guest_interfaces(vm), *inside]}

    def _vm_usage(self, vm: FakeVm) -> dict[str, Any]:
        """Counters that grow while the VM runs, so that rates can be shown."""
        usage = dict(super()._vm_usage(vm))
        if vm.status == "running":
            age = time.time() - (vm.started_at or time.time())
            wave = (vm.vmid * 7 + int(age)) % 60
            usage.update(cpu=round(0.02 + wave / 100, 4), mem=int(usage["maxmem"] * (0.2 + wave / 200)))
            usage.update(
                netin=int(age * 2000), netout=int(age * 900), diskread=int(age * 4000), diskwrite=int(age * 7000)
            )
        return usage


def _interface(name: str, mac: str, addresses: list[str]) -> dict[str, Any]:
    listed = []
    for address in addresses:
        ip, _, prefix = address.partition("/")
        kind = "ipv6" if ":" in ip else "ipv4"
        listed.append({"ip-address": ip, "ip-address-type": kind, "prefix": int(prefix or 24)})
    return {"name": name, "hardware-address": mac, "ip-addresses": listed}


def _guest_interfaces(vm: FakeVm) -> list[dict[str, Any]]:
    """One for each NIC: the static address of ipconfigN, or one made from the VMID."""
    found = []
    for key in sorted(key for key in vm.config if re.fullmatch(r"net\d+", key)):
        index = int(key[3:])
        mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", str(vm.config[key]))
        static = re.search(r"ip=(\d[^,]+)", str(vm.config.get(f"ipconfig{index}", "")))
        address = static.group(1) if static else f"10.{100 + index}.{vm.vmid // 250 % 250}.{vm.vmid % 250 + 1}/16"
        hardware = mac.group(1).lower() if mac else "00:00:00:00:00:01"
        found.append(_interface(f"eth{index}", hardware, [address, "fe80::be24:11ff:fe00:1/64"]))
    return found


def _as_read(config: dict[str, Any], digest: str) -> dict[str, Any]:
    """A configuration as Proxmox sends it: memory is text, the password stars, the description ends a line."""
    shown = {key: value for key, value in config.items() if not key.startswith("snap")}
    if "memory" in shown:
        shown["memory"] = str(shown["memory"])
    if "cipassword" in shown:
        shown["cipassword"] = "**********"
    if shown.get("description"):
        shown["description"] = str(shown["description"]).rstrip("\n") + "\n"
    for key in ("cores", "sockets", "onboot", "protection", "template"):
        if key in shown and str(shown[key]).isdigit():
            shown[key] = int(shown[key])
    return {**shown, "digest": digest}


def _bytes_of(text: str) -> int:
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * SIZE_UNITS.get(unit, 1))


async def _shown_params(request: web.Request) -> dict[str, Any]:
    try:
        values = await params(request)
    except PveError:
        return {}
    return {key: "***" if key in SECRET_PARAMS else value for key, value in values.items()}


# ---------------------------------------------------------------------- what the cluster holds at the start


def seed(cluster: Cluster, settings: dict[str, Any]) -> None:
    """Two nodes, storages, two templates, one user with one token."""
    for node in ("pve1", "pve2"):
        cluster.add_node(node)
    cluster.storages["local-lvm"].update(avail=2000 * GIB, total=2100 * GIB, volumes={})
    cluster.add_ceph_storage("ceph", "vms")
    cluster.storages["ceph"].update(avail=5000 * GIB, total=6000 * GIB, volumes={})
    cluster.storages["local"]["files"].add("debian-12.iso")
    template = {"content": "vztmpl", "format": "tzst", "size": 120 * 1024**2, "ctime": int(time.time())}
    cluster.storages["local"].setdefault("volumes", {})["vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"] = template
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
    cluster.pools["smith"] = set()
    cluster.apitokens[f"{settings['user']}!{settings['token_id']}"] = settings["token_secret"]
    for who in (settings["user"], f"{settings['user']}!{settings['token_id']}"):
        grant_least(cluster, who)


def grant_least(cluster: Cluster, who: str) -> None:
    """What the documentation tells an operator to grant, and nothing more."""
    cluster.grant(who, "/vms", *VM_PRIVILEGES)
    for storage in ("local-lvm", "ceph", "backups"):
        cluster.grant(who, f"/storage/{storage}", *STORAGE_PRIVILEGES)
    cluster.grant(who, "/storage/local", "Datastore.Audit")  # for ISO images and container templates
    cluster.grant(who, "/sdn/zones/localnetwork", "SDN.Use")


def add_template(
    cluster: Cluster, vmid: int, name: str, *, node: str, disk_gib: int, storage: str = "local-lvm"
) -> None:
    """A cloud image: one disk, a cloud-init drive, one NIC, the guest agent on."""
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
        "ide2": f"{cluster._new_cloud_init(storage, vmid)},media=cdrom",
        "net0": f"virtio=BC:24:11:00:00:{vmid % 100:02X},bridge=vmbr0",
        "boot": "order=scsi0",
        "serial0": "socket",
    }
    cluster.add_vm(vmid, name, node=node, config=config, template=True)


# ---------------------------------------------------------------------- the control port


class Control:
    """What tests and the demo may do to the cluster, as JSON over HTTP on the loopback."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def app(self) -> web.Application:
        """Return the control port's application: GET reads, POST /<verb> calls the method of that name."""
        app = web.Application()
        app.router.add_get("/{what}", self._read)
        app.router.add_post("/{verb}", self._do)
        return app

    async def _read(self, request: web.Request) -> web.Response:
        readers = {
            "guests": self._guests,
            "requests": lambda: self.cluster.request_log,
            "tasks": lambda: [{k: v for k, v in t.items() if k != "log"} for t in self.cluster.tasklog],
            "storages": lambda: {
                n: {"avail": s.get("avail"), "volumes": sorted(s.get("volumes", {}))}
                for n, s in self.cluster.storages.items()
            },
            "health": lambda: {"ok": True},
        }
        reader = readers.get(request.match_info["what"])
        return web.json_response(reader()) if reader else web.json_response({"error": "unknown"}, status=404)

    async def _do(self, request: web.Request) -> web.Response:
        verb = getattr(self, "do_" + request.match_info["verb"], None)
        if verb is None:
            return web.json_response({"error": "unknown verb"}, status=404)
        try:
            return web.json_response({"done": verb(**(await request.json()))})
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            return web.json_response({"error": f"{type(exc).__name__}: {exc}"}, status=400)

    def _guests(self) -> list[dict[str, Any]]:
        shown = []
        for vm in sorted([*self.cluster.vms, *self.cluster.cts], key=lambda vm: vm.vmid):
            facts = {key: getattr(vm, key) for key in ("vmid", "name", "node", "status", "template", "lock", "pool")}
            config = {key: "***" if key in SECRET_PARAMS else value for key, value in vm.config.items()}
            shown.append({**facts, "config": config, "pending": dict(vm.pending), "snapshots": list(vm.snapshots)})
        return shown

    def _vm(self, vmid: int) -> FakeVm:
        vm = self.cluster.vm(vmid) or self.cluster.ct(vmid)
        if vm is None:
            raise KeyError(f"no VM {vmid}")
        return vm

    def do_fail(
        self,
        *,
        method: str,
        path: str,
        status: int = 500,
        text: str = "injected",
        times: int = 1,
        after: bool = False,
        delay_s: float = 0,
    ) -> None:
        """Answer requests with an error. `after`: the request takes effect first. Status 0: no answer at all."""
        rule = {"method": method, "path": path, "status": status, "text": text, "times": times}
        self.cluster.faults.append({**rule, "after": after, "delay_s": delay_s})

    def do_fail_task(self, type: str, text: str, times: int = 1, vmid: int | None = None) -> None:
        """End tasks of a type (qmclone, qmstart, resize, ...) with an error, after the time that they take."""
        self.cluster.task_faults.append({"type": type, "text": text, "times": times, "vmid": vmid})

    def do_clear_faults(self) -> None:
        """Forget every fault, slowness, offline node and lost quorum."""
        self.cluster.faults.clear()
        self.cluster.task_faults.clear()
        self.cluster.slow_s = 0.0
        self.cluster.quorate = True
        for state in self.cluster.nodes.values():
            state.update(online=True, maintenance=False, stats={})

    def do_lock(self, vmid: int, lock: str | None) -> None:
        """Set or clear a VM's lock (backup, clone, migrate, snapshot, ...)."""
        self.cluster._qm_lock(self._vm(vmid), lock)

    def do_node(self, node: str, online: bool = True, maintenance: bool = False, **stats: float) -> None:
        """Take a node away or bring it back; say what it has (maxcpu, maxmem) and uses (cpu, mem) from now on."""
        self.cluster.nodes[node].update(online=online, maintenance=maintenance, stats=stats)

    def do_quorum(self, quorate: bool) -> None:
        """Lose the cluster's quorum, or find it again."""
        self.cluster.quorate = quorate

    def do_slow(self, seconds: float) -> None:
        """Delay every answer by real seconds."""
        self.cluster.slow_s = seconds

    def do_time_scale(self, scale: float) -> None:
        """Real seconds per Proxmox second; 0 ends every task before its request is answered."""
        self.cluster.time_scale = scale

    def do_task_seconds(self, type: str, seconds: float) -> None:
        """How many Proxmox seconds a task type takes."""
        self.cluster.task_seconds[type] = seconds

    def do_remove(self, vmid: int) -> None:
        """Take a VM away behind everybody's back."""
        guest = self._vm(vmid)
        (self.cluster.vms if guest in self.cluster.vms else self.cluster.cts).remove(guest)

    def do_add(
        self,
        vmid: int,
        name: str,
        node: str = "pve1",
        status: str = "stopped",
        config: dict[str, Any] | None = None,
        *,
        copies: int = 1,
    ) -> None:
        """Put a VM there that nobody asked for; or so many, with the ids that follow."""
        for one in range(vmid, vmid + copies):
            self.cluster.add_vm(one, name, node=node, status=status, config=dict(config or {}))

    def do_add_container(
        self, vmid: int, name: str, node: str = "pve1", status: str = "stopped", config: dict[str, Any] | None = None
    ) -> None:
        """Put a container there that nobody asked for."""
        self.cluster.add_ct(vmid, name, node=node, status=status, config=config or {})

    def do_add_template(self, vmid: int, name: str, node: str, disk_gib: int = 8, storage: str = "local-lvm") -> None:
        """Add one more cloud image."""
        add_template(self.cluster, vmid, name, node=node, disk_gib=disk_gib, storage=storage)

    def do_recycle(self, vmid: int, name: str = "somebody-elses") -> None:
        """Replace the VM on an id by another one, running, without our marker."""
        old = self.cluster.vm(vmid)
        node = old.node if old else "pve1"
        if old:
            self.cluster.vms.remove(old)
        self.cluster.add_vm(vmid, name, node=node, status="running", config={"cores": 1, "memory": "512"})

    def do_rename(self, vmid: int, name: str) -> None:
        """Give a VM another name, as an operator would in the web interface."""
        vm = self._vm(vmid)
        vm.name = vm.config["name"] = name

    def do_configure(self, vmid: int, values: dict[str, Any]) -> None:
        """Set configuration values directly; null removes one."""
        vm = self._vm(vmid)
        for key, value in values.items():
            if value is None:
                vm.config.pop(key, None)
            else:
                vm.config[key] = value

    def do_protect(self, vmid: int, protection: bool) -> None:
        """Set or clear Proxmox's protection flag."""
        self.do_configure(vmid, {"protection": 1 if protection else None})

    def do_power(self, vmid: int, status: str) -> None:
        """Switch a VM on or off behind everybody's back."""
        vm = self._vm(vmid)
        vm.status = vm.qmpstatus = status
        vm.started_at = time.time() if status == "running" else None

    def do_move(self, vmid: int, node: str) -> None:
        """Move a VM to another node, as a migration by an operator or HA would."""
        self._vm(vmid).node = node

    def do_behave(self, vmid: int, **attributes: Any) -> None:
        """Set how a guest behaves: acpi, shutdown_secs, start_secs, stop_secs, start_error, ha_state, agent_hangs."""
        vm = self._vm(vmid)
        if "agent" in attributes:
            silent = self.cluster.without_guest_agent
            (silent.discard if attributes.pop("agent") else silent.add)(vmid)
        for key, value in attributes.items():
            if not hasattr(vm, key):
                raise ValueError(f"no such attribute: {key}")
            setattr(vm, key, value)

    def do_storage(self, storage: str, **values: Any) -> None:
        """Set a storage's `avail` (bytes) or `active`."""
        self.cluster.storages[storage].update(values)

    def do_revoke(self, path: str, privilege: str) -> None:
        """Take one privilege from everybody but root."""
        for entries in (self.cluster.acl or {}).values():
            for where, privileges in entries:
                if where == path:
                    privileges.discard(privilege)

    def do_grant(self, path: str, privilege: str) -> None:
        """Give one privilege to the user and its token."""
        for who in list(self.cluster.acl or {}):
            self.cluster.grant(who, path, privilege)

    def do_token_secret(self, secret: str) -> None:
        """Change the secret of every token, as a rotation would."""
        for token in self.cluster.apitokens:
            self.cluster.apitokens[token] = secret

    def do_reset_requests(self) -> None:
        """Empty the request log."""
        self.cluster.request_log.clear()


# ---------------------------------------------------------------------- the process


async def serve(settings: dict[str, Any]) -> None:
    """Serve until standard input closes."""
    cluster = Cluster(user="root@pam", password=settings["root_password"], host=settings["host"], port=settings["port"])
    cluster.time_scale = settings["time_scale"]
    seed(cluster, settings)
    await cluster.start(settings["cert"], settings["key"])
    runner = web.AppRunner(Control(cluster).app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", settings["control_port"]).start()
    announce(Path(settings["ready"]), {"port": cluster.port, "control_port": runner.addresses[0][1]})
    await stdin_closed()
    await runner.cleanup()
    await cluster.stop()


def announce(path: Path, ports: dict[str, int]) -> None:
    """Write the ports in one step, so that a reader never sees half a file."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(ports))
    draft.replace(path)


async def stdin_closed() -> None:
    """Return when the process that started us is gone, or lets go of us."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(sys.stdin.fileno(), "rb"))
    while await reader.read(1024):
        pass


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
