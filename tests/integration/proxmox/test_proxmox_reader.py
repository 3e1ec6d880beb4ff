"""ProxmoxReader against the Proxmox stand-in: lists, configurations, VMIDs, quorum, privileges and markers."""

from __future__ import annotations

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from support.proxmox_connections import MARKED_UID, failing

from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader

TEMPLATE_VMID = 9000


def test_vms_and_templates_of_all_nodes_are_listed(reader: ProxmoxReader, vm: int) -> None:
    rows_by_vmid = {row.vmid: row for row in reader.vms()}
    row = rows_by_vmid[vm]
    assert (row.node, row.name, row.status, row.kind, row.is_template) == ("pve2", "web-1", "running", "qemu", False)
    assert (row.cores, row.max_memory_bytes, row.tags) == (2, 512 * 1024 * 1024, ("smith", "web"))
    assert rows_by_vmid[TEMPLATE_VMID].is_template


def test_the_configuration_of_a_vm_has_its_marker(reader: ProxmoxReader, vm: int) -> None:
    config = reader.vm_config("pve2", vm)
    assert int(config["cores"]) == 2
    assert reader.service_id_in_marker(config) == MARKED_UID


def test_a_vm_that_is_not_on_the_node_is_a_conflict_because_it_may_have_moved(reader: ProxmoxReader, vm: int) -> None:
    """The error is not VM_NOT_FOUND, because the VM may exist on another node."""
    with failing("PVE_CONFLICT"):
        reader.vm_config("pve1", vm)


def test_a_vmid_is_free_until_a_vm_has_it(reader: ProxmoxReader, vm: int) -> None:
    assert not reader.is_vmid_free(vm)
    assert reader.is_vmid_free(711)


def test_an_outage_is_an_error_and_no_answer_whether_a_vmid_is_free(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn, vm: int
) -> None:
    for status in (401, 403, 404, 500, 503, 596):
        stand_in.fail("GET", "/cluster/nextid", status=status, times=-1)
        answers: list[bool] = []
        with pytest.raises(JobError):
            answers.append(reader.is_vmid_free(vm))
        assert answers == []
        stand_in.control("clear_faults")


def test_offline_nodes_are_listed_too(reader: ProxmoxReader, stand_in: ProxmoxStandIn) -> None:
    stand_in.control("node", node="pve2", online=False)
    nodes = {node.name: node.is_online for node in reader.nodes()}
    stand_in.control("node", node="pve2", online=True)
    assert nodes["pve1"] is True
    assert nodes["pve2"] is False


def test_a_cluster_without_quorum_is_not_quorate(reader: ProxmoxReader, stand_in: ProxmoxStandIn) -> None:
    assert reader.is_quorate()
    stand_in.control("quorum", quorate=False)
    assert not reader.is_quorate()


def test_the_privileges_on_a_path_are_returned(reader: ProxmoxReader, vm: int) -> None:
    assert {"VM.Audit", "VM.PowerMgmt"} <= reader.permissions(f"/vms/{vm}")
    assert "Permissions.Modify" not in reader.permissions(f"/vms/{vm}")


def test_without_sys_audit_more_than_half_of_the_nodes_must_be_online(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn
) -> None:
    stand_in.control("revoke", path="/", privilege="Sys.Audit")
    try:
        assert reader.is_quorate()
        for node in reader.nodes():
            stand_in.control("node", node=node.name, online=False)
        assert not reader.is_quorate()
    finally:
        stand_in.control("clear_faults")
        stand_in.control("grant", path="/", privilege="Sys.Audit")


def test_a_token_without_vm_audit_may_not_see_all_vms(reader: ProxmoxReader, stand_in: ProxmoxStandIn) -> None:
    assert reader.may_see_all_vms()
    stand_in.control("revoke", path="/vms", privilege="VM.Audit")
    try:
        assert not reader.may_see_all_vms()
        assert reader.vms() == []  # with HTTP 200: an empty list does not prove absence
    finally:
        stand_in.control("grant", path="/vms", privilege="VM.Audit")


def test_a_services_vm_is_found_by_its_marker_and_not_by_its_name_alone(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn, vm: int
) -> None:
    stand_in.control("add", vmid=711, name="other-web-1", node="pve1", config={"description": "smith-uid=none"})
    try:
        found = reader.find_vm_by_marker(reader.vms(), MARKED_UID.upper(), name_suffix="web-1")
        assert found
        assert (found.vmid, found.node) == (vm, "pve2")
        assert reader.find_vm_by_marker(reader.vms(), MARKED_UID, name_suffix="web-2") is None
        assert reader.find_vm_by_marker(reader.vms(), MARKED_UID.replace("e5", "e6"), name_suffix="web-1") is None
    finally:
        stand_in.control("remove", vmid=711)


def test_a_partial_clone_is_found_by_its_full_name_among_our_vmids_only(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn
) -> None:
    our_vmids = range(700, 800)
    stand_in.control("add", vmid=712, name="db-0f7e2c1a", node="pve2", config={"description": "debian-12 cloud image"})
    stand_in.control("add", vmid=812, name="shop-0f7e2c1b", node="pve2", config={})
    try:
        found = reader.find_partial_clone(reader.vms(), "db-0f7e2c1a", our_vmids)
        assert found
        assert (found.vmid, found.node) == (712, "pve2")
        assert reader.find_partial_clone(reader.vms(), "0f7e2c1a", our_vmids) is None
        assert (
            reader.find_partial_clone(reader.vms(), "shop-0f7e2c1b", our_vmids) is None
        )  # its VMID is not in the range
        assert reader.find_partial_clone(reader.vms(), "debian-12", range(9000, 9002)) is None  # a template
        stand_in.control("add", vmid=713, name="db-0f7e2c1a", node="pve1", config={})
        assert reader.find_partial_clone(reader.vms(), "db-0f7e2c1a", our_vmids) is None  # two candidates
        stand_in.control("remove", vmid=713)
        stand_in.control("configure", vmid=712, values={"description": f"smith-uid={MARKED_UID}"})
        assert reader.find_partial_clone(reader.vms(), "db-0f7e2c1a", our_vmids) is None
    finally:
        for vmid in (712, 812):
            stand_in.control("remove", vmid=vmid)


def test_two_vms_with_the_same_marker_are_an_identity_mismatch(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn, vm: int
) -> None:
    config = {"description": f"smith-uid={MARKED_UID}"}
    stand_in.control("add", vmid=711, name="copy-of-web-1", node="pve1", config=config)
    try:
        with pytest.raises(JobError, match=r"710, 711|711, 710") as caught:
            reader.find_vm_by_marker(reader.vms(), MARKED_UID, name_suffix="web-1")
        assert caught.value.code == "VM_IDENTITY_MISMATCH"
    finally:
        stand_in.control("remove", vmid=711)


def test_the_reader_only_sends_get_requests(reader: ProxmoxReader, stand_in: ProxmoxStandIn, vm: int) -> None:
    stand_in.reset_request_log()
    reader.version()
    reader.vms()
    reader.nodes()
    reader.vm_config("pve2", vm)
    reader.is_vmid_free(vm)
    reader.is_quorate()
    reader.permissions("/vms")
    assert len(stand_in.request_log()) == 7
    assert stand_in.changing_requests() == []
