"""The Proxmox stand-in shows guests and nodes as Proxmox does: late, and with missing or outdated facts.

A row is a member of the list `GET /cluster/resources`, which Proxmox makes from statistics that each node sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import proxmoxer
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

VMID = 700
#: How old the statistics in the rows are.
LAG_S = 10.0
MAX_WAIT_S = 30
#: The row of a guest without statistics.
IDENTITY = {"id": f"qemu/{VMID}", "type": "qemu", "node": "pve1", "vmid": VMID, "status": "unknown"}


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ProxmoxStandIn]:
    with running_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in: ProxmoxStandIn) -> Iterator[Any]:
    yield proxmoxer.ProxmoxAPI(
        stand_in.host,
        port=stand_in.port,
        user=stand_in.user,
        token_name=stand_in.token_id,
        token_value=stand_in.token_secret,
        verify_ssl=str(stand_in.ca_bundle),
    )
    stand_in.control("clear_faults")
    stand_in.control("time_scale", scale=0)
    stand_in.control("version", version="9.0.10")
    if stand_in.guest(VMID):
        stand_in.control("remove", vmid=VMID)


def row_of(api: Any, vmid: int = VMID) -> dict[str, Any]:
    return next(row for row in api.cluster.resources.get(type="vm") if row["vmid"] == vmid)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MAX_WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.proxmox(
    behaviour="for up to 10 s, the row of a new guest has only id, type, node, vmid and `status: unknown`",
    versions="8, 9",
    source="pve-manager: PVE/API2Tools.pm, extract_vm_stats",
    reaction="reads a missing fact from the guest's configuration; a missing fact is never taken as no",
)
def test_a_new_guests_row_has_only_its_identity(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("statistics", broadcast_interval_s=LAG_S)
    api.nodes("pve1").qemu(9000).clone.post(newid=VMID, name="web", full=1)
    assert row_of(api) == {**IDENTITY, "tags": "image"}  # the tags are those of the template
    stand_in.control("statistics", broadcast_interval_s=0.5)
    wait_until(lambda: "name" in row_of(api))
    assert (row_of(api)["name"], row_of(api)["status"], row_of(api)["template"]) == ("web", "stopped", 0)


@pytest.mark.proxmox(
    behaviour="the row of a new container has no name, but the module of community.proxmox reads the name there",
    versions="8, 9",
    source="pve-manager: PVE/API2Tools.pm, extract_vm_stats",
    reaction="passes the name to the module, and repeats a job that fails because of it",
)
def test_a_new_containers_row_has_no_name(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("statistics", broadcast_interval_s=LAG_S)
    stand_in.control("add_container", vmid=701, name="web", is_new=True)
    assert row_of(api, 701) == {**IDENTITY, "vmid": 701, "id": "lxc/701", "type": "lxc"}
    stand_in.control("remove", vmid=701)


@pytest.mark.proxmox(
    behaviour="the row of a guest whose VMID is reused soon has the name, status and uptime of the former guest",
    versions="8, 9",
    source="pve-cluster: PVE/Cluster.pm, rrd_dump",
    reaction="identifies a guest by its configuration, never by its row",
)
def test_the_row_of_a_reused_vmid_shows_the_deleted_guest(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="former", status="running")
    stand_in.control("statistics", broadcast_interval_s=LAG_S)
    stand_in.control("remove", vmid=VMID)
    stand_in.control("add", vmid=VMID, name="new", node="pve2", is_new=True)
    assert (row_of(api)["name"], row_of(api)["status"], row_of(api)["node"]) == ("former", "running", "pve2")


@pytest.mark.proxmox(
    behaviour="rows lack name, template and status 5 minutes after pvestatd's last broadcast; `/nodes` says `unknown`",
    versions="8, 9",
    source="pve-manager: PVE/API2Tools.pm, extract_node_stats",
    reaction="counts an unknown node as online for the quorum, and reads configurations instead of rows",
)
def test_a_node_without_statistics_has_the_status_unknown(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("statistics", silent_nodes=["pve1"])
    assert row_of(api, 9000) == {**IDENTITY, "id": "qemu/9000", "vmid": 9000, "tags": "image"}
    assert row_of(api, 9001)["name"] == "ubuntu-24.04"
    nodes = {node["node"]: node for node in api.nodes.get()}
    assert (nodes["pve1"]["status"], "maxcpu" in nodes["pve1"]) == ("unknown", False)
    storages = {row["node"]: row["status"] for row in api.cluster.resources.get(type="storage") if "ceph" in row["id"]}
    assert storages == {"pve1": "unknown", "pve2": "available"}


@pytest.mark.proxmox(
    behaviour="the lists of nodes and resources have a node's CPU and memory only with Sys.Audit on the node",
    versions="8, 9",
    source="pve-manager: PVE/API2Tools.pm, extract_node_stats",
    reaction="places each new VM on its template's node without this privilege; doctor says so",
)
def test_the_load_of_a_node_is_shown_only_with_the_privilege_sys_audit(stand_in: ProxmoxStandIn, api: Any) -> None:
    def read_node_lists() -> list[list[dict[str, Any]]]:
        return [api.nodes.get(), api.cluster.resources.get(type="node")]

    assert [set(row) & {"cpu", "mem", "maxcpu", "maxmem"} for rows in read_node_lists() for row in rows] == [set()] * 4
    assert [row["status"] for rows in read_node_lists() for row in rows] == ["online"] * 4
    stand_in.control("grant", path="/nodes", privilege="Sys.Audit")
    try:
        assert all(row["maxcpu"] and row["maxmem"] for rows in read_node_lists() for row in rows)
    finally:
        stand_in.control("revoke", path="/nodes", privilege="Sys.Audit")


@pytest.mark.proxmox(
    behaviour="a node that the cluster does not reach is `offline`; its guests' rows lose name, template and status",
    versions="8, 9",
    source="pve-manager: PVE/API2Tools.pm, extract_vm_stats",
    reaction="NODE_DOWN, retried later",
)
def test_the_rows_of_an_offline_nodes_guests_have_only_their_identity(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("node", node="pve1", online=False)
    assert {node["node"]: node["status"] for node in api.nodes.get()} == {"pve1": "offline", "pve2": "online"}
    assert (row_of(api, 9000)["status"], "template" in row_of(api, 9000)) == ("unknown", False)


@pytest.mark.proxmox(
    behaviour="a node's maintenance is `hastate` in `/cluster/resources?type=node`, for every user",
    versions="8, 9",
    source="pve-manager: PVE/API2/Cluster.pm, resources",
    reaction="places no VM on a node in maintenance",
)
def test_the_list_of_resources_names_a_node_in_maintenance(stand_in: ProxmoxStandIn, api: Any) -> None:
    assert ["hastate" in row for row in api.cluster.resources.get(type="node")] == [False, False]
    stand_in.control("node", node="pve2", maintenance=True)
    states = {row["node"]: row["hastate"] for row in api.cluster.resources.get(type="node")}
    assert states == {"pve1": "online", "pve2": "maintenance"}
    with pytest.raises(proxmoxer.ResourceException, match=r"/, Sys\.Audit"):
        api.cluster.ha.status.manager_status.get()


@pytest.mark.proxmox(
    behaviour="until its first drive is copied, a full clone has neither name nor tags, only the lock `clone`",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="an unnamed guest with this lock on a reserved VMID is the service's own: VM_LOCKED, retried later",
)
def test_a_clone_has_no_name_before_its_first_drive_is_copied(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add_template", vmid=9100, name="one-disk", node="pve1")
    stand_in.control("configure", vmid=9100, values={"ide2": None})
    stand_in.control("time_scale", scale=0.1)
    api.nodes("pve1").qemu(9100).clone.post(newid=VMID, name="web", full=1)
    config = api.nodes("pve1").qemu(VMID).config.get()
    del config["digest"]
    assert config == {"description": " qmclone temporary file", "lock": "clone"}
    assert api.nodes("pve1").qemu(VMID).status.current.get()["name"] == f"VM {VMID}"
    wait_until(lambda: "lock" not in api.nodes("pve1").qemu(VMID).config.get())
    assert api.nodes("pve1").qemu(VMID).config.get()["name"] == "web"
    stand_in.control("remove", vmid=9100)


def test_a_clone_whose_first_drive_is_its_cloud_init_drive_has_its_name_at_once(
    stand_in: ProxmoxStandIn, api: Any
) -> None:
    stand_in.control("time_scale", scale=0.1)
    api.nodes("pve1").qemu(9000).clone.post(newid=VMID, name="web", full=1)
    config = api.nodes("pve1").qemu(VMID).config.get()
    assert (config["name"], config["lock"]) == ("web", "clone")


@pytest.mark.proxmox(
    behaviour="a VM that moved is answered with `Configuration file '…' does not exist` on its old node",
    versions="8, 9",
    source="qemu-server: PVE/AbstractConfig.pm, load_config",
    reaction="looks the VM up again; only a proven absence is VM_NOT_FOUND",
)
def test_a_moved_vms_configuration_does_not_exist_on_its_old_node(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="web", node="pve2", status="running")
    with pytest.raises(proxmoxer.ResourceException, match=r"Configuration file 'nodes/pve1/qemu-server/700\.conf'"):
        api.nodes("pve1").qemu(VMID).config.set(cores=2)


@pytest.mark.proxmox(
    behaviour="a restart of a moved VM on its old node: `unable to find configuration file for VM N on node 'pve1'`",
    versions="8, 9",
    source="qemu-server: PVE/QemuConfig.pm, assert_config_exists_on_node",
    reaction="looks the VM up again; only a proven absence is VM_NOT_FOUND",
)
@pytest.mark.parametrize("version", ["9.2.11", "8.4.21"])
def test_a_moved_vm_cannot_be_restarted_on_its_old_node(stand_in: ProxmoxStandIn, api: Any, version: str) -> None:
    stand_in.control("version", version=version)
    stand_in.control("add", vmid=VMID, name="web", node="pve2", status="running")
    text = "unable to find configuration file for VM 700 on node 'pve1'"
    with pytest.raises(proxmoxer.ResourceException, match=text):
        api.nodes("pve1").qemu(VMID).status.reboot.post()


@pytest.mark.proxmox(
    behaviour="a stop of a container on another node than its own fails with `not running`, as if it were stopped",
    versions="8, 9",
    source="pve-container: PVE/API2/LXC/Status.pm, vm_stop",
    reaction="`PVE_CONFLICT`: repeats the job, which looks the container up",
)
def test_a_moved_container_is_reported_as_not_running_on_its_old_node(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add_container", vmid=VMID + 1, name="box", node="pve2", status="running")
    for action in ("stop", "shutdown"):
        with pytest.raises(proxmoxer.ResourceException, match="CT 701 not running"):
            api.nodes("pve1").lxc(VMID + 1).status(action).post()
    with pytest.raises(proxmoxer.ResourceException, match="CT 701 already running"):
        api.nodes("pve2").lxc(VMID + 1).status.start.post()
    stand_in.control("remove", vmid=VMID + 1)


@pytest.mark.proxmox(
    behaviour="a start or stop of an HA resource is a Proxmox task that ends at once; the HA manager acts later",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, vm_start",
    reaction="waits for the state of the guest, and reads its HA state",
)
def test_the_proxmox_task_of_an_ha_request_ends_before_the_guest_starts(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="web")
    stand_in.control("behave", vmid=VMID, ha_state="stopped")
    stand_in.control("time_scale", scale=0.05)
    upid = api.nodes("pve1").qemu(VMID).status.start.post()
    wait_until(lambda: api.nodes("pve1").tasks(upid).status.get()["status"] == "stopped")
    assert api.nodes("pve1").qemu(VMID).status.current.get()["status"] == "stopped"
    assert row_of(api)["hastate"] == "stopped"
    wait_until(lambda: api.nodes("pve1").qemu(VMID).status.current.get()["status"] == "running")
    assert ":hastart:" in upid


@pytest.mark.proxmox(
    behaviour="the HA manager refuses a request for a resource in error state; only the Proxmox task's log says why",
    versions="8, 9",
    source="pve-ha-manager: PVE/API2/HA/Resources.pm",
    reaction="VM_STATE",
)
def test_the_ha_manager_refuses_a_resource_in_error_state(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="web")
    stand_in.control("behave", vmid=VMID, ha_state="error")
    upid = api.nodes("pve1").qemu(VMID).status.start.post()
    task = api.nodes("pve1").tasks(upid)
    assert task.status.get()["exitstatus"] == "command 'ha-manager set vm:700 --state started' failed: exit code 255"
    log = [line["t"] for line in task.log.get()]
    assert "service 'vm:700' in error state, must be disabled and fixed first" in log


@pytest.mark.proxmox(
    behaviour="`/cluster/options` answers a caller without Sys.Audit on `/` with `allowed-tags` only",
    versions="8, 9",
    source="pve-manager: PVE/API2/Cluster.pm, get_options",
    reaction="doctor compares the agent's tags with it",
)
def test_the_options_without_sys_audit_contain_only_the_allowed_tags(stand_in: ProxmoxStandIn, api: Any) -> None:
    assert api.cluster.options.get() == {"allowed-tags": ["image"]}
    stand_in.control("options", user_allow="list", user_allow_list=["web"])
    assert api.cluster.options.get() == {"allowed-tags": ["web"]}


@pytest.mark.proxmox(
    behaviour="unless `user-tag-access` is free, and for registered tags, each changed tag needs Sys.Modify on `/`",
    versions="8, 9",
    source="pve-guest-common: PVE/GuestHelpers.pm, assert_tag_permissions",
    reaction="sets no tags then; the lines of the notes identify a VM and mark it for deletion; doctor warns",
)
def test_a_tag_that_is_not_allowed_is_refused(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="web", config={"tags": "old"})
    stand_in.control("options", user_allow="none")
    with pytest.raises(proxmoxer.ResourceException, match=r"403 .*Sys\.Modify for modifying tag 'smith'"):
        api.nodes("pve1").qemu(VMID).config.set(tags="old;smith")
    stand_in.control("options", registered_tags=["smith"])
    with pytest.raises(proxmoxer.ResourceException, match=r"403 .*Sys\.Modify for modifying tag 'smith'"):
        api.nodes("pve1").qemu(VMID).config.set(tags="old;smith")
    api.nodes("pve1").qemu(VMID).config.set(tags="old;web")


@pytest.mark.proxmox(
    behaviour="a VM's `description` in the configuration ends without white space",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, parse_vm_config",
)
def test_the_description_ends_without_a_newline(stand_in: ProxmoxStandIn, api: Any) -> None:
    stand_in.control("add", vmid=VMID, name="web")
    api.nodes("pve1").qemu(VMID).config.set(description="text\nsmith-uid=x\n")
    assert api.nodes("pve1").qemu(VMID).config.get()["description"] == "text\nsmith-uid=x"


@pytest.mark.proxmox(
    behaviour="9 shows the memory that a VM takes on its node (`memhost`) in its rows and its status, 8 does not",
    versions="8, 9",
    source="qemu-server: PVE/QemuServer.pm, vmstatus",
)
@pytest.mark.parametrize(("version", "is_shown"), [("8.4.1", False), ("9.0.10", True)])
def test_the_memory_of_a_vm_on_its_node_is_shown_since_version_9(
    stand_in: ProxmoxStandIn, api: Any, version: str, is_shown: bool
) -> None:
    stand_in.control("version", version=version)
    stand_in.control("add", vmid=VMID, name="web", node="pve1")
    wait_until(lambda: "maxmem" in row_of(api))
    vms = api.nodes("pve1").qemu
    listed = next(row for row in vms.get() if row["vmid"] == VMID)
    for shown in (row_of(api), listed, vms(VMID).status.current.get()):
        assert ("memhost" in shown) is is_shown
