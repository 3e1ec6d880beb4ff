"""The checks of `smith doctor` that concern Proxmox. Each test causes a fault there and checks the results.

A check is skipped if the token may not read what the check needs: its result is then unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem
from support.doctor_results import Doctor

from executor.database import mappings, schema
from executor.database.engine import open_engine, transaction
from executor.doctor.checks import Status
from executor.proxmox.privileges import PrivilegeNeed, list_privilege_needs

STORAGE = "local-lvm"
#: The privileges that the token needs on each path.
PRIVILEGE_NEEDS = list_privilege_needs(9, disk_storages=[STORAGE], bridges={"vmbr0": "localnetwork"})


@pytest.fixture(autouse=True)
def restored_lab(lab: LabSystem) -> Iterator[None]:
    yield
    lab.core.clear_faults()
    lab.core.set_switches(database_down=False, vault_off=False)
    lab.proxmox.control("clear_faults")


def test_backups_without_a_storage_are_a_warning(doctor: Doctor) -> None:
    assert {check.status for check in doctor().named("backups")} == {Status.WARNING}
    with_storage = doctor(PROXMOX_BACKUP_STORAGE="backups")
    assert with_storage.named("backups") == []
    assert with_storage.failed == set()


def test_a_container_template_that_no_node_has_fails(doctor: Doctor) -> None:
    assert doctor().only("os templates").status is Status.OK
    missing = doctor(PROXMOX_OS_TEMPLATES="alpine=local:vztmpl/alpine.tar.xz").only("os templates")
    assert (missing.status, "alpine" in missing.text) == (Status.FAILED, True)


def test_a_token_without_the_backup_privilege_fails_with_a_hint(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("revoke", path="/vms", privilege="VM.Backup")
    try:
        results = doctor(PROXMOX_BACKUP_STORAGE="backups")
    finally:
        lab.proxmox.control("grant", path="/vms", privilege="VM.Backup")
    (check,) = results.named("privileges", Status.FAILED)
    assert "VM.Backup" in check.text
    assert any("SmithBackup" in hint for hint in check.hints)


def test_an_unknown_certificate_fails_with_a_hint(doctor: Doctor) -> None:
    results = doctor(PROXMOX_CA_BUNDLE="")
    (check,) = [check for check in results.named("reachable") if check.area == "proxmox"]
    assert (results.code, check.status) == (5, Status.FAILED)
    assert "PVE_TLS" in check.text
    assert any("PROXMOX_CA_BUNDLE" in hint for hint in check.hints)
    insecure = doctor(PROXMOX_CA_BUNDLE="", PROXMOX_VALIDATE_CERTS="false")
    assert insecure.code == 0
    assert [check.status for check in insecure.named("tls") if check.area == "proxmox"] == [Status.WARNING]


def test_a_wrong_token_secret_fails(doctor: Doctor) -> None:
    results = doctor(PROXMOX_TOKEN_SECRET="not-the-secret")
    assert (results.code, results.failed) == (5, {("proxmox", "reachable")})


@pytest.mark.parametrize(
    ("need", "privilege"), [(need, name) for need in PRIVILEGE_NEEDS for name in sorted(need.privileges)]
)
def test_a_missing_privilege_fails_with_the_commands_that_grant_it(
    need: PrivilegeNeed, privilege: str, doctor: Doctor, lab: LabSystem
) -> None:
    granted_on = "/sdn/zones/localnetwork" if need.role == "SmithNet" else need.path
    lab.proxmox.control("revoke", path=granted_on, privilege=privilege)
    results = doctor(PROXMOX_STORAGE=STORAGE)
    lab.proxmox.control("grant", path=granted_on, privilege=privilege)
    (check,) = results.named("privileges", Status.FAILED)
    assert results.code == 5
    assert check.text.startswith(f"{privilege} missing on {need.path}")
    assert check.hints[0].startswith(f"pveum role add {need.role} --privs ")
    assert privilege in check.hints[0]
    assert check.hints[1:3] == (
        f"pveum acl modify {need.path} --users smith@pve --roles {need.role}",
        f"pveum acl modify {need.path} --tokens 'smith@pve!job' --roles {need.role}",
    )


def test_with_all_privileges_the_check_passes(doctor: Doctor) -> None:
    assert doctor(PROXMOX_STORAGE=STORAGE).only("privileges").status is Status.OK


def test_a_cluster_without_quorum_fails(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("quorum", quorate=False)
    results = doctor()
    lab.proxmox.control("quorum", quorate=True)
    assert ("proxmox", "quorum") in results.failed


@pytest.mark.parametrize(
    ("variables", "name", "text"),
    [
        ({"PROXMOX_TEMPLATES": "a=9000,b=5555"}, "templates", "b: VM 5555 does not exist"),
        ({"PROXMOX_STORAGE": "elsewhere"}, "storage", "the storage elsewhere does not exist"),
        ({"PROXMOX_STORAGES": "ceph,nowhere"}, "storage", "PROXMOX_STORAGES names nowhere, which does not exist"),
        (
            {"PROXMOX_NODES": "pve1,pve7"},
            "nodes",
            "names pve7, which Proxmox does not have; the cluster's nodes are pve1, pve2",
        ),
        ({"PROXMOX_VMID_MIN": "9000", "PROXMOX_VMID_MAX": "9001"}, "vmid range", "0 of 2 VMIDs between 9000 and 9001"),
    ],
)
def test_a_setting_that_makes_every_create_fail_is_a_failed_check(
    variables: dict[str, str], name: str, text: str, doctor: Doctor
) -> None:
    results = doctor(**variables)
    assert results.code == 5
    (check,) = results.named(name, Status.FAILED)
    assert text in check.text


def test_a_bridge_that_proxmox_does_not_list_is_a_warning_if_the_token_may_use_all_bridges(
    doctor: Doctor, lab: LabSystem
) -> None:
    """It may exist: Proxmox does not list a bridge of /etc/network/interfaces.d, but VMs can use such a bridge."""
    (check,) = doctor(PROXMOX_BRIDGES="vmbr8").named("bridge", Status.WARNING)
    assert "Proxmox lists no vmbr8 on pve1, pve2" in check.text
    lab.proxmox.control("revoke", path="/sdn/zones/localnetwork", privilege="SDN.Use")
    lab.proxmox.control("grant", path="/sdn/zones/localnetwork/vmbr0", privilege="SDN.Use")
    (check,) = doctor(PROXMOX_BRIDGES="vmbr8").named("bridge", Status.FAILED)
    lab.proxmox.control("revoke", path="/sdn/zones/localnetwork/vmbr0", privilege="SDN.Use")
    lab.proxmox.control("grant", path="/sdn/zones/localnetwork", privilege="SDN.Use")
    assert "vmbr8 does not exist on pve1, pve2" in check.text


def test_bridge_and_storage_are_not_checked_if_no_configured_node_exists(doctor: Doctor) -> None:
    results = doctor(PROXMOX_NODES="pve7", PROXMOX_STORAGE=STORAGE)
    assert [check.status for check in results.named("bridge")] == [Status.SKIPPED]
    assert [check.status for check in results.named("storage")] == [Status.SKIPPED]
    (check,) = results.named("nodes", Status.FAILED)
    assert check.hints == ("PROXMOX_NODES=pve1,pve2",)


def test_a_storage_for_backups_must_exist_and_accept_them(doctor: Doctor) -> None:
    missing = doctor(PROXMOX_BACKUP_STORAGE="nope").only("backup storage")
    assert (missing.status, "names nope, which does not exist" in missing.text) == (Status.FAILED, True)
    assert missing.hints[0] == "PROXMOX_BACKUP_STORAGE=backups"
    assert missing.hints[1].startswith("on a node: pvesm status --storage nope")
    wrong = doctor(PROXMOX_BACKUP_STORAGE="ceph").only("backup storage")
    assert (wrong.status, wrong.hints[1]) == (Status.FAILED, "pvesm set ceph --content backup,images,rootdir")
    assert doctor(PROXMOX_BACKUP_STORAGE="backups").only("backup storage").status is Status.OK


def test_a_pool_is_checked_only_if_the_token_may_read_pools(doctor: Doctor, lab: LabSystem) -> None:
    unknown = doctor(PROXMOX_POOL="smith").only("pool")
    assert (unknown.status, "Pool.Audit on /pool/smith" in unknown.text) == (Status.SKIPPED, True)
    lab.proxmox.control("grant", path="/pool", privilege="Pool.Audit")
    existing, missing = doctor(PROXMOX_POOL="smith").only("pool"), doctor(PROXMOX_POOL="gold").only("pool")
    lab.proxmox.control("revoke", path="/pool", privilege="Pool.Audit")
    assert existing.status is Status.OK
    assert (missing.status, missing.hints) == (Status.FAILED, ("pveum pool add gold",))
    assert doctor().named("pool") == []


def test_a_node_in_maintenance_or_without_statistics_is_a_warning(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("node", node="pve2", maintenance=True)
    lab.proxmox.control("statistics", silent_nodes=["pve1"])
    results = doctor()
    lab.proxmox.control("node", node="pve2", maintenance=False)
    lab.proxmox.control("statistics")
    without_statistics, in_maintenance = results.named("nodes", Status.WARNING)
    assert "pve1" in without_statistics.text
    assert in_maintenance.text == "these nodes are in maintenance, so they get no new VM: pve2"
    assert in_maintenance.hints == ("ha-manager crm-command node-maintenance disable pve2",)


def test_templates_that_cannot_be_cloned_or_lack_a_cloud_init_drive_are_failures_or_warnings(
    doctor: Doctor, lab: LabSystem
) -> None:
    """The four templates have: a host device that only root may pass through; a host device by a mapping that the token
    may not use; a service's marker; no cloud-init drive.
    """
    values = {
        7001: {"hostpci0": "0000:01:00.0"},
        7002: {"hostpci0": "mapping=gpu"},
        7003: {"description": "smith-uid=0f0e0d0c-0b0a-4908-8706-050403020100"},
        7004: {"ide2": "none,media=cdrom"},
    }
    for vmid, value in values.items():
        lab.proxmox.control("add_template", vmid=vmid, name=f"t{vmid}", node="pve1")
        lab.proxmox.control("configure", vmid=vmid, values=value)
    results = doctor(PROXMOX_TEMPLATES="raw=7001,mapped=7002,marked=7003,bare=7004")
    for vmid in values:
        lab.proxmox.control("remove", vmid=vmid)
    raw, marked = results.named("templates", Status.FAILED)
    assert "raw: VM 7001 has devices of the host, so only root@pam may clone it: hostpci0" in raw.text
    assert "marked: VM 7003" in marked.text
    (bare,) = results.named("templates", Status.WARNING)
    assert "bare: VM 7004 has no cloud-init drive" in bare.text
    (mapped,) = results.named("privileges", Status.FAILED)
    assert mapped.text.startswith("Mapping.Use missing on /mapping/pci/gpu")
    assert mapped.hints[0] == "pveum role add SmithMapping --privs Mapping.Use"


def test_a_vnet_needs_the_privilege_sdn_use_in_its_zone(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("vnet", name="vnet7", zone="tenants")
    without = doctor(PROXMOX_BRIDGES="vnet7")
    lab.proxmox.control("grant", path="/sdn/zones/tenants/vnet7", privilege="SDN.Use")
    granted = doctor(PROXMOX_BRIDGES="vnet7")
    lab.proxmox.control("revoke", path="/sdn/zones/tenants/vnet7", privilege="SDN.Use")
    lab.proxmox.control("vnet", name="vnet7", zone="")
    (bridge,) = without.named("bridge", Status.FAILED)
    assert "may not use the VNet vnet7 of the zone tenants" in bridge.text
    (missing,) = without.named("privileges", Status.FAILED)
    assert missing.text.startswith("SDN.Use missing on /sdn/zones/tenants/vnet7")
    assert "pveum acl modify /sdn/zones/tenants/vnet7 --tokens 'smith@pve!job' --roles SmithNet" in missing.hints
    assert granted.failed == set()
    assert "/sdn/zones/tenants/vnet7" in granted.only("privileges").text


def test_a_vnet_that_the_token_may_see_and_not_use_fails(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("vnet", name="vnet7", zone="tenants")
    lab.proxmox.control("grant", path="/sdn/zones/tenants", privilege="SDN.Audit")
    (problem,) = doctor(PROXMOX_BRIDGES="vnet7").named("privileges", Status.FAILED)
    lab.proxmox.control("revoke", path="/sdn/zones/tenants", privilege="SDN.Audit")
    lab.proxmox.control("vnet", name="vnet7", zone="")
    assert problem.text.startswith("SDN.Use missing on /sdn/zones/tenants/vnet7")


def test_the_privilege_sdn_use_on_the_bridge_itself_suffices(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("revoke", path="/sdn/zones/localnetwork", privilege="SDN.Use")
    lab.proxmox.control("grant", path="/sdn/zones/localnetwork/vmbr0", privilege="SDN.Use")
    results = doctor()
    lab.proxmox.control("revoke", path="/sdn/zones/localnetwork/vmbr0", privilege="SDN.Use")
    lab.proxmox.control("grant", path="/sdn/zones/localnetwork", privilege="SDN.Use")
    assert results.failed == set()


def test_restricted_tags_are_a_warning_and_are_checked_only_if_the_token_may_read_the_option(
    doctor: Doctor, lab: LabSystem
) -> None:
    """Only a token with Sys.Audit on `/` may read the cluster's option for tags."""
    assert doctor().only("tags").status is Status.SKIPPED
    lab.proxmox.control("options", user_allow="none")
    restricted = doctor().only("tags")
    lab.proxmox.control("options")
    lab.proxmox.control("grant", path="/", privilege="Sys.Audit")
    free = doctor().only("tags")
    lab.proxmox.control("options", user_allow="existing")
    existing = doctor().only("tags")
    lab.proxmox.control("options")
    lab.proxmox.control("revoke", path="/", privilege="Sys.Audit")
    assert [check.status for check in (restricted, free, existing)] == [Status.WARNING, Status.OK, Status.WARNING]


def test_each_check_of_proxmox_that_does_not_pass_has_a_remedy(doctor: Doctor) -> None:
    results = doctor(
        **{"PROXMOX_TEMPLATES": "a=9000,b=5555", "PROXMOX_STORAGE": "local", "PROXMOX_STORAGES": "nowhere"},
        **{"PROXMOX_BRIDGE": "vmbr9", "PROXMOX_NODES": "pve1,pve7", "PROXMOX_BACKUP_STORAGE": "nope"},
        **{"PROXMOX_POOL": "gold", "PROXMOX_VMID_MIN": "9000", "PROXMOX_VMID_MAX": "9001"},
    )
    findings = [check for check in results.checks if check.area == "proxmox" and check.status is not Status.OK]
    assert len(findings) >= 9
    assert [check.text for check in findings if not check.hints] == []


def test_a_vm_instead_of_a_template_fails(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("add", vmid=7000, name="just-a-vm", node="pve1")
    results = doctor(PROXMOX_TEMPLATES="a=7000")
    lab.proxmox.control("remove", vmid=7000)
    assert "qemu 7000 (just-a-vm) is not a VM template" in results.only("templates").text


def test_one_offline_node_is_a_warning_and_a_failure_if_it_is_the_only_configured_node(
    doctor: Doctor, lab: LabSystem
) -> None:
    lab.proxmox.control("node", node="pve2", online=False)
    one_of_two, the_only_one = doctor(), doctor(PROXMOX_NODES="pve2")
    lab.proxmox.control("node", node="pve2", online=True)
    assert one_of_two.only("nodes").status is Status.WARNING
    assert the_only_one.only("nodes").status is Status.FAILED


def test_nodes_without_statistics_are_a_warning_and_nothing_else_fails(doctor: Doctor, lab: LabSystem) -> None:
    lab.proxmox.control("statistics", silent_nodes=["pve1", "pve2"])
    results = doctor(PROXMOX_TEMPLATES="debian-12=9000", PROXMOX_STORAGE=STORAGE)
    assert (results.code, results.failed) == (0, set())
    (warning,) = results.named("nodes", Status.WARNING)
    assert "pve1, pve2" in warning.text
    assert results.only("quorum").status is Status.OK


def test_a_template_with_a_marker_fails(doctor: Doctor, lab: LabSystem) -> None:
    marker = "smith-uid=0d5d5bd1-2f7e-4b8a-9e0c-7f5a2c1b3d4e"
    lab.proxmox.control("add_template", vmid=9300, name="made-of-a-vm", node="pve1")
    lab.proxmox.control("configure", vmid=9300, values={"description": marker})
    check = doctor(PROXMOX_TEMPLATES="web=9300").only("templates")
    assert check.status is Status.FAILED
    assert marker in check.text
    listed = lab.run_smith_json("templates", "list")
    assert [marker in row["problem"] for row in listed if row["vmid"] == 9300] == [True]
    lab.proxmox.control("remove", vmid=9300)


@pytest.mark.parametrize("options", [{"user_allow": "existing"}, {"registered_tags": ["smith"]}])
@pytest.mark.parametrize("may_read_options", [True, False])
def test_a_tag_of_the_agent_that_proxmox_refuses_is_a_warning(
    doctor: Doctor, lab: LabSystem, options: dict[str, Any], may_read_options: bool
) -> None:
    lab.proxmox.control("add", vmid=9301, name="tagged", config={"tags": "smith"})
    lab.proxmox.control("options", **({"user_allow": "none"} if not may_read_options else options))
    lab.proxmox.control("grant" if may_read_options else "revoke", path="/", privilege="Sys.Audit")
    try:
        assert doctor().only("tags").status is Status.WARNING
        lab.proxmox.control("options")
        assert doctor().only("tags").status is (Status.OK if may_read_options else Status.SKIPPED)
    finally:
        lab.proxmox.control("revoke", path="/", privilege="Sys.Audit")
        lab.proxmox.control("remove", vmid=9301)


def test_without_the_privilege_to_audit_nodes_doctor_says_where_vms_are_placed(doctor: Doctor, lab: LabSystem) -> None:
    check = doctor().only("placement")
    assert (check.status, "template's node" in check.text, "Sys.Audit on /nodes" in check.text) == (
        Status.OK,
        True,
        True,
    )
    lab.proxmox.control("grant", path="/nodes", privilege="Sys.Audit")
    try:
        assert doctor().named("placement") == []
    finally:
        lab.proxmox.control("revoke", path="/nodes", privilege="Sys.Audit")


@pytest.mark.parametrize(("kind", "tool"), [("add", "qm"), ("add_container", "pct")])
def test_a_guest_whose_deletion_was_interrupted_is_a_warning(
    doctor: Doctor, lab: LabSystem, kind: str, tool: str
) -> None:
    assert doctor().only("deleted vms").status is Status.OK
    lab.proxmox.control(kind, vmid=9302, name="x")
    lab.proxmox.control("lock", vmid=9302, lock="destroyed")
    try:
        results = doctor()
    finally:
        lab.proxmox.control("remove", vmid=9302)
    check = results.only("deleted vms")
    assert (check.status, results.code) == (Status.WARNING, 0)
    assert "9302 on pve1" in check.text
    assert check.hints[0].endswith(f"{tool} unlock 9302 && {tool} destroy 9302")


def test_volumes_of_a_deleted_vm_are_a_warning_until_they_are_removed(
    doctor: Doctor, lab: LabSystem, tmp_path: Path
) -> None:
    volume, service_id = "ceph:vm-9303-disk-0", "0d5d5bd1-2f7e-4b8a-9e0c-7f5a2c1b3d4f"
    (tmp_path / "data").mkdir()
    engine = open_engine(f"sqlite:///{tmp_path / 'data' / 'smith.db'}")
    schema.upgrade(engine)
    with transaction(engine) as session:
        place = {"cluster": "default", "vmid": 9303, "name": "x", "node": "pve1"}
        mapping = mappings.insert_active_mapping(session, service_id=service_id, **place)
        assert mapping
        mappings.apply_result(session, mapping.id, {"status": "absent", "volumes_left": [volume]})
    engine.dispose()
    lab.proxmox.control("add_volume", storage="ceph", volume="vm-9303-disk-0", vmid=9303, size=1)
    check = doctor().only("deleted vms")
    assert (check.status, check.hints) == (Status.WARNING, (f"on pve1: pvesm free {volume}",))
    lab.proxmox.control("storage", storage="ceph", volumes={})
    assert doctor().only("deleted vms").status is Status.OK
