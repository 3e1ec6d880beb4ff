"""The Proxmox stand-in refuses invalid requests as Proxmox does: at once, or by a Proxmox task that fails."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import proxmoxer
import pytest
import requests
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

VMID, MISSING_VMID = 700, 999
GIB = 1024**3


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in: ProxmoxStandIn) -> Iterator[Any]:
    yield connect(stand_in)
    stand_in.control("clear_faults")
    stand_in.control("version", version="9.0.10")


@pytest.fixture
def vm(stand_in: ProxmoxStandIn, api: Any) -> Iterator[Any]:
    """Yield the API of a VM: a stopped clone of the template on pve1."""
    exit_status_of(api, api.nodes("pve1").qemu(9000).clone.post(newid=VMID, name="web", full=1))
    yield api.nodes("pve1").qemu(VMID)
    stand_in.control("behave", vmid=VMID, keeps_devices=False)
    stand_in.control("remove", vmid=VMID)


def connect(stand_in: ProxmoxStandIn, secret: str | None = None) -> Any:
    return proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=secret or stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )


def exit_status_of(api: Any, upid: str) -> str:
    """Return how the Proxmox task ended: "OK" or its error."""
    return str(api.nodes(upid.split(":")[1]).tasks(upid).status.get()["exitstatus"])


def expect_refusal(request: Any, **values: Any) -> tuple[int, str]:
    """Send a request that must be refused; return the status and the text of the response."""
    with pytest.raises(proxmoxer.ResourceException) as refusal:
        request(**values)
    return refusal.value.status_code, str(refusal.value)


@pytest.mark.proxmox(
    behaviour="an answer 401 has a reason and no body, and comes after 3 s; the reason does not name the cause",
    versions="8, 9",
    source="pve-manager: PVE/HTTPServer.pm, auth_handler",
    reaction="leaves the empty body out of its texts",
)
def test_a_refused_login_has_an_empty_body_and_is_delayed(stand_in: ProxmoxStandIn) -> None:
    url = f"https://{stand_in.host}:{stand_in.port}/api2/json/version"
    stand_in.control("logins", delay_s=3)
    began = time.monotonic()
    status, text = expect_refusal(connect(stand_in, secret="wrong").version.get)
    assert (status, time.monotonic() - began >= 3) == (401, True)
    assert text == "401 Unauthorized: Authentication failed! - {'errors': b''}"
    stand_in.control("clear_faults")
    answer = requests.get(url, timeout=10, verify=str(stand_in.ca_bundle))
    assert (answer.status_code, answer.reason, answer.content) == (401, "No ticket", b"")


@pytest.mark.proxmox(
    behaviour="while pmxcfs restarts, Proxmox refuses every login with 401 as if the secret were wrong",
    versions="8, 9",
    source="pve-manager: PVE/HTTPServer.pm, auth_handler",
    reaction="repeats the request a few times before `PVE_AUTH`",
)
def test_a_login_is_refused_while_the_cluster_file_system_restarts(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("logins", accepted=False)
    assert expect_refusal(api.version.get)[0] == 401
    stand_in.control("logins", accepted=True)
    assert api.version.get()["version"]


@pytest.mark.proxmox(
    behaviour="start, stop, shutdown and resize of a missing VM start a Proxmox task, which fails",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, vm_start and resize_vm",
    reaction="reads the end of the Proxmox task; no text of Proxmox proves that a VM does not exist",
)
@pytest.mark.parametrize("action", ["start", "stop", "shutdown", "resize"])
def test_a_request_for_a_missing_vm_fails_in_its_proxmox_task(api: Any, action: str) -> None:
    guest = api.nodes("pve1").qemu(MISSING_VMID)
    request = guest.resize.put(disk="scsi0", size="9G") if action == "resize" else guest.status(action).post()
    assert (
        exit_status_of(api, request)
        == f"Configuration file 'nodes/pve1/qemu-server/{MISSING_VMID}.conf' does not exist"
    )


@pytest.mark.proxmox(
    behaviour="a resize of a missing disk or of a CD-ROM starts a Proxmox task, which fails",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, resize_vm",
    reaction="refuses it before the first change",
)
@pytest.mark.parametrize(
    ("disk", "text"), [("scsi7", "disk 'scsi7' does not exist"), ("ide2", "you can't resize a cdrom")]
)
def test_a_resize_of_a_missing_disk_or_a_cdrom_fails_in_its_proxmox_task(
    api: Any, vm: Any, disk: str, text: str
) -> None:
    assert exit_status_of(api, vm.resize.put(disk=disk, size="20G")) == text


@pytest.mark.proxmox(
    behaviour="a shutdown of a stopped VM is a Proxmox task that ends with OK",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, vm_stop",
    reaction="sends no request if the VM is stopped already",
)
def test_a_shutdown_of_a_stopped_vm_ends_with_ok(api: Any, vm: Any) -> None:
    assert exit_status_of(api, vm.status.shutdown.post()) == "OK"


@pytest.mark.proxmox(
    behaviour="a guest agent request for a stopped VM is refused because the VM is not running",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer/Agent.pm, assert_agent_available",
    reaction="repeats the request until the time limit for addresses; missing addresses never fail an action",
)
def test_a_guest_agent_request_for_a_stopped_vm_is_refused(vm: Any) -> None:
    assert "VM 700 is not running" in expect_refusal(vm.agent("network-get-interfaces").get)[1]


@pytest.mark.proxmox(
    behaviour="cloud-init values need VM.Config.Cloudinit or VM.Config.Network; generating the drive needs Cloudinit",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, check_vm_modify_config_perm, cloudinit_update",
    reaction="changes the values with either one; without Cloudinit, warns that the drive was not generated again",
)
def test_a_cloud_init_value_needs_one_of_two_privileges(stand_in: ProxmoxStandIn, vm: Any) -> None:
    def revoke(privilege: str) -> None:
        stand_in.control("revoke", path="/vms", privilege=privilege)

    try:
        for privilege in ("VM.Config.Cloudinit", "VM.Config.Network"):
            revoke(privilege)
            vm.config.put(ciuser=f"without-{privilege[10:].lower()}")
            if privilege == "VM.Config.Cloudinit":
                assert expect_refusal(vm.cloudinit.put)[0] == 403
                stand_in.control("grant", path="/vms", privilege=privilege)
        revoke("VM.Config.Cloudinit")
        status, text = expect_refusal(vm.config.put, ciuser="x")
        assert (status, "VM.Config.Cloudinit|VM.Config.Network" in text) == (403, True), text
    finally:
        for privilege in ("VM.Config.Cloudinit", "VM.Config.Network"):
            stand_in.control("grant", path="/vms", privilege=privilege)


@pytest.mark.proxmox(
    behaviour="the guest agent's data need VM.Monitor in 8, and VM.GuestAgent.Audit in 9",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu/Agent.pm, register_command",
    reaction="succeeds without addresses; doctor and `pveum-role.sh` require the privilege of the version",
)
@pytest.mark.parametrize(
    ("version", "privilege", "required"),
    [
        ("8.4.1", "VM.Monitor", "VM.Monitor"),
        ("9.0.10", "VM.GuestAgent.Audit", "VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted"),
    ],
)
def test_the_guest_agents_data_need_the_privilege_of_the_version(
    stand_in: ProxmoxStandIn, vm: Any, version: str, privilege: str, required: str
) -> None:
    stand_in.control("version", version=version)
    addresses = vm.agent("network-get-interfaces")
    assert "VM 700 is not running" in expect_refusal(addresses.get)[1]  # not refused for a lack of privileges
    stand_in.control("revoke", path="/vms", privilege=privilege)
    try:
        status, text = expect_refusal(addresses.get)
    finally:
        stand_in.control("grant", path="/vms", privilege=privilege)
    assert (status, f"Permission check failed (/vms/700, {required})" in text) == (403, True)


@pytest.mark.proxmox(
    behaviour="a start with more vCPUs than the node has CPUs fails in its Proxmox task",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, config_to_command",
)
def test_a_vm_with_more_cpus_than_its_node_does_not_start(stand_in: ProxmoxStandIn, api: Any, vm: Any) -> None:
    stand_in.control("node", node="pve1", maxcpu=2)
    vm.config.put(cores=2, sockets=2)
    assert exit_status_of(api, vm.status.start.post()) == "MAX 2 vcpus allowed per VM on this node"


#: A change of the configuration, and the status and the text of the response.
CONFIG_REFUSALS = [
    ({"delete": "nosuch"}, 400, "unknown option 'nosuch'"),
    ({"revert": "nosuch"}, 400, "unknown option 'nosuch'"),
    ({"lock": "backup"}, 500, "only root can set 'lock' config"),
    ({"startup": "order=1"}, 403, "Permission check failed (/, Sys.Modify)"),
    ({"args": "-S"}, 500, "only root can set 'args' config"),
    ({"parallel0": "/dev/parport0"}, 500, "only root can set 'parallel0' config"),
    ({"serial1": "/dev/ttyS0"}, 500, "only root can set 'serial1' config for real devices"),
    ({"usb0": "host=1234:5678"}, 500, "only root can set 'usb0' config for real devices"),
    ({"hostpci0": "0000:01:00.0"}, 500, "only root can set 'hostpci0' config for non-mapped devices"),
    ({"hookscript": "local:snippets/x.pl"}, 400, "script 'local:snippets/x.pl' does not exist"),
    ({"balloon": 4096}, 500, "balloon value too large (must be smaller than assigned memory)"),
    ({"cpu": "nosuch"}, 400, "Built-in cputype 'nosuch' is not defined (missing 'custom-' prefix?)"),
    ({"boot": "order=scsi9"}, 500, "invalid bootorder: device 'scsi9' does not exist'"),
    ({"sshkeys": "garbage"}, 500, "SSH public key validation error"),
]


@pytest.mark.proxmox(
    behaviour="an invalid value of a VM's configuration is refused with 400 or 500, depending on the option",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api",
    reaction="derives the error code from the text, not from the status",
)
@pytest.mark.parametrize(("change", "status", "text"), CONFIG_REFUSALS, ids=[next(iter(c[0])) for c in CONFIG_REFUSALS])
def test_an_invalid_value_of_the_configuration_is_refused(
    vm: Any, change: dict[str, Any], status: int, text: str
) -> None:
    actual_status, actual_text = expect_refusal(vm.config.put, **change)
    assert actual_status == status
    assert text in actual_text
    assert "''" not in actual_text


def build_ssh_key(kind: str, *fields: bytes) -> str:
    """Return an SSH public key of this type with these fields."""
    data = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return f"{kind} {base64.b64encode(data).decode()} me@example.net"


@pytest.mark.proxmox(
    behaviour="SSH keys are checked by `ssh-keygen -l`: the data must be complete and of the named type",
    versions="8, 9",
    source="pve-common: PVE/Tools.pm, validate_ssh_public_keys",
    reaction="refuses other keys before the first change",
)
def test_an_ssh_key_must_have_complete_data_of_its_type(vm: Any) -> None:
    valid = build_ssh_key("ssh-ed25519", b"ssh-ed25519", bytes(32))
    vm.config.put(sshkeys=requests.utils.quote(valid, safe=""))
    for invalid in (
        build_ssh_key("ssh-ed25519", b"ssh-ed25519", bytes(31)),
        build_ssh_key("ssh-ed25519", b"ssh-rsa", bytes(32)),
        valid.replace("me@example.net", "").rstrip()[:-8],
        "ssh-ed25519 not*base64",
    ):
        assert expect_refusal(vm.config.put, sshkeys=requests.utils.quote(invalid, safe=""))[0] == 500


@pytest.mark.proxmox(
    behaviour="`revert` removes a pending value",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api",
)
def test_a_pending_value_is_reverted(vm: Any) -> None:
    vm.status.start.post()
    vm.config.put(cores=4)
    vm.config.put(revert="cores")
    assert [row for row in vm.pending.get() if "pending" in row] == []


@pytest.mark.proxmox(
    behaviour="a running guest that does not release a device: 400 `hotplug problem`, and the removal stays pending",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, vmconfig_hotplug_pending",
)
def test_the_removal_of_a_device_that_the_guest_does_not_release_stays_pending(
    stand_in: ProxmoxStandIn, vm: Any
) -> None:
    vm.config.put(net1="virtio,bridge=vmbr0")
    vm.status.start.post()
    stand_in.control("behave", vmid=VMID, keeps_devices=True)
    status, text = expect_refusal(vm.config.put, delete="net1")
    assert (status, "hotplug problem - error on hot-unplugging device 'net1'" in text) == (400, True)
    assert next(row for row in vm.pending.get() if row["key"] == "net1")["delete"] == 1
    stand_in.control("behave", vmid=VMID, keeps_devices=False)
    vm.config.put(delete="net1")
    assert "net1" not in vm.config.get()


@pytest.mark.proxmox(
    behaviour="move_disk to the same storage and format is refused with 500",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, move_vm_disk",
    reaction="sends no request if the disk is on its storage already",
)
def test_a_move_of_a_disk_to_its_own_storage_is_refused(vm: Any) -> None:
    refusal = expect_refusal(vm.move_disk.post, disk="scsi0", storage="local-lvm")
    assert (refusal[0], "you can't move to the same storage with same format" in refusal[1]) == (500, True)


@pytest.mark.proxmox(
    behaviour="a disk with snapshots cannot be moved if its source is to be deleted",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, move_vm_disk",
    reaction="`VM_STATE`",
)
def test_a_move_of_a_disk_with_snapshots_is_refused_if_its_source_is_to_be_deleted(api: Any, vm: Any) -> None:
    assert exit_status_of(api, vm.snapshot.post(snapname="s1")) == "OK"
    text = expect_refusal(vm.move_disk.post, disk="scsi0", storage="ceph", delete=1)[1]
    assert "you can't move a disk with snapshots and delete the source" in text


@pytest.mark.proxmox(
    behaviour="a migration to the VM's own node is refused with 400, one to an unknown node with 500",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, migrate_vm",
    reaction="sends no request to its own node, and refuses an unknown node before the first change",
)
def test_a_migration_to_the_same_or_to_an_unknown_node_is_refused(vm: Any) -> None:
    same_node, unknown_node = (
        expect_refusal(vm.migrate.post, target="pve1"),
        expect_refusal(vm.migrate.post, target="nosuch"),
    )
    assert (same_node[0], "target is local node." in same_node[1]) == (400, True)
    assert (unknown_node[0], "no such cluster node 'nosuch'" in unknown_node[1]) == (500, True)


@pytest.mark.proxmox(
    behaviour="a clone to an unknown node is refused because of the node, before the disks are checked",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="`NOT_FOUND`",
)
def test_a_clone_to_an_unknown_node_is_refused(api: Any) -> None:
    assert (
        "no such cluster node 'nosuch'"
        in expect_refusal(api.nodes("pve1").qemu(9000).clone.post, newid=701, target="nosuch")[1]
    )


@pytest.mark.proxmox(
    behaviour="the deletion of a template with linked clones fails in its Proxmox task, but on LVM-thin it succeeds",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, destroy_vm",
)
def test_the_deletion_of_a_template_with_linked_clones_fails(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add_storage", storage="files", type="dir", content="images", avail=100 * GIB)
    pve1 = api.nodes("pve1")
    exit_status_of(api, pve1.qemu.post(vmid=710, name="base", scsi0="files:1,format=qcow2"))
    pve1.qemu(710).template.post()
    assert exit_status_of(api, pve1.qemu(710).clone.post(newid=711, name="linked", full=0)) == "OK"
    assert "is still in use by linked cloned" in exit_status_of(api, pve1.qemu(710).delete())
    exit_status_of(api, pve1.qemu(711).delete())
    assert exit_status_of(api, pve1.qemu(710).delete()) == "OK"


@pytest.mark.proxmox(
    behaviour="a new disk on a dir storage is raw unless its format is given, and a raw disk there has no snapshots",
    versions="8, 9",
    source="pve-storage: PVE/Storage/Plugin.pm, default_format",
)
def test_a_new_disk_on_a_dir_storage_is_raw_and_has_no_snapshots(stand_in: ProxmoxStandIn, api: Any, vm: Any) -> None:
    stand_in.control("add_storage", storage="files", type="dir", content="images", avail=100 * GIB)
    vm.config.put(scsi1="files:1")
    assert vm.config.get()["scsi1"].startswith("files:700/vm-700-disk-0.raw")
    assert exit_status_of(api, vm.snapshot.post(snapname="s1")) == "snapshot feature is not available"


@pytest.mark.proxmox(
    behaviour="a request for an unknown node is 500 `hostname lookup`, one for an unknown path 501",
    versions="8, 9",
    source="pve-common: PVE/RESTHandler.pm, handle",
    reaction="`NODE_DOWN`: a name that cannot be resolved may be a node that is away",
)
@pytest.mark.parametrize("path", ["nodes/nosuch/qemu/100/config", "nodes/nosuch/tasks", "nodes/nosuch/qemu"])
def test_a_request_for_an_unknown_node_is_answered_with_500(api: Any, path: str) -> None:
    status, text = expect_refusal(api(path).get)
    assert (status, "hostname lookup 'nosuch' failed" in text) == (500, True)


def test_a_request_for_an_unknown_path_is_answered_with_501(api: Any) -> None:
    assert expect_refusal(api("nosuch").get)[0] == 501
