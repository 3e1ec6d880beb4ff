"""The service's properties about hardware, and the members of the extra variable `vm` that are made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor.errors import JobError
from executor.runs.plan import plan
from executor.runs.request import PlaybookSettings, RunRequest
from executor.runs.vm_properties import read_properties

MINIMAL: dict[str, Any] = {"cores": 2, "memoryMb": 2048, "diskGb": 20, "image": "debian-12"}
HARDWARE: dict[str, Any] = {
    **{"sockets": 2, "cpuType": "x86-64-v2-AES", "balloonMb": 0, "onboot": True, "protection": False},
    **{"guestAgent": True, "bootOrder": ["scsi0", "net0"], "vendorSnippet": "local:snippets/vendor.yml"},
    "disks": [{"disk": "scsi1", "sizeGb": 5, "storage": "ceph"}, {"disk": "virtio0", "sizeGb": 1}],
    "networks": [
        {"vlan": 0, "firewall": True, "rateMbps": 100.5, "mac": "BC:24:11:00:00:01"},
        {"bridge": "vmbr1", "ipv6Mode": "static", "ipv6Cidr": "2001:db8::9/64", "ipv6Gateway": "fe80::1"},
    ],
    "network": {"ipv6Mode": "slaac", "searchDomains": ["example.net"]},
}


def plan_vm(
    action: str,
    properties: dict[str, Any],
    before: dict[str, Any] | None = None,
    *,
    kind: str = "qemu",
    storage: str = "",
    **other_settings: Any,
) -> dict[str, Any]:
    """Return the extra variable `vm` of the planned run. `before`: the properties before an update."""
    settings = PlaybookSettings(
        cluster="default",
        templates={"debian-12": 9000},
        os_templates={"debian-12": VOLUME},
        storage=storage,
        bridge="",
        pool="",
        node="",
        playbook_folders=[Path(__file__).resolve().parents[3] / "playbooks"],
        playbook_timeout_s=240,
        shutdown_timeout_s=60,
        **other_settings,
    )
    request = RunRequest(
        action=action,
        service_id="0f7e2c1a-1111-4222-8333-944455556666",
        service_name="web",
        properties=properties,
        previous_properties=before or {},
        vmid=5000,
        vm_name="web-0f7e2c1a",
        kind=kind,
        time_left_s=240,
    )
    return plan(request, settings).vm


def test_the_run_of_a_create_gets_the_hardware_under_the_names_that_the_roles_use() -> None:
    vm = plan_vm("create", MINIMAL | HARDWARE)
    expected = {"sockets": 2, "cpu_type": "x86-64-v2-AES", "balloon_mib": 0, "onboot": True, "protection": False}
    assert (expected | {"guest_agent": True, "boot_order": ["scsi0", "net0"]}).items() <= vm.items()
    assert vm["disks"] == [
        {"disk": "scsi1", "size_gib": 5, "storage": "ceph"},
        {"disk": "virtio0", "size_gib": 1},
    ]
    assert vm["networks"][0] == {"vlan": 0, "firewall": True, "rate_mbps": 100.5, "mac": "BC:24:11:00:00:01"}
    assert vm["networks"][1]["ipv6_gateway"] == "fe80::1"
    assert vm["network"] == {"mode": "dhcp", "ipv6_mode": "slaac", "search_domains": ["example.net"]}
    assert vm["cloud_init"] == {"vendor_snippet": "local:snippets/vendor.yml"}


def test_missing_properties_are_not_in_the_extra_variable() -> None:
    sent = {"sockets", "cpu_type", "balloon_mib", "onboot", "protection", "disks", "networks", "allow_reboot"}
    assert not sent & set(plan_vm("create", MINIMAL)) | sent & set(plan_vm("update", MINIMAL))


def test_an_update_changes_nics_only_where_they_differ() -> None:
    same = plan_vm("update", MINIMAL | HARDWARE, MINIMAL | HARDWARE)
    assert "networks" not in same
    assert same["disks"]  # an existing disk is not changed, a missing disk is added
    changed = plan_vm("update", MINIMAL | HARDWARE | {"networks": [{"vlan": 5}], "allowReboot": True}, HARDWARE)
    assert (changed["networks"], changed["allow_reboot"]) == ([{"vlan": 5}], True)


REFUSED: list[dict[str, Any]] = [
    {"sockets": 0},
    {"cpuType": "host,flags=+x"},
    {"bootOrder": ["scsi0;net0"]},
    {"disks": [{"disk": "ide9", "sizeGb": 1}]},
    {"disks": [{"disk": "scsi1", "sizeGb": 1}, {"disk": "scsi1"}]},
    {"disks": [{"disk": "scsi1", "storage": "a:b"}]},
    {"networks": [{"mac": "FF:FF:FF:FF:FF:FF"}]},
    {"networks": [{"bridge": "vmbr0,tag=5"}]},
    {"networks": [{"mode": "static"}]},
    {"networks": [{"rateMbps": -1}]},
    {"network": {"ipv6Mode": "static"}},
    {"network": {"ipv6Cidr": "2001:db8::1"}},
    {"network": {"ipv6Cidr": "fe80::1%eth0/64"}},
    {"network": {"ipv6Cidr": "2001:db8::1/64", "ipv6Gateway": "2001:db9::1"}},
    {"network": {"searchDomains": ["a b"]}},
    {"balloonMb": 2049},
    {"networks": [{"ipv4Cidr": "192.0.2.10/24"}]},
    {"networks": [{}, {"ipv4Cidr": "192.0.2.10/24"}], "network": {"mode": "static", "ipv4Cidr": "192.0.2.9/24"}},
    {"networks": [{"mode": "dhcp", "ipv4Gateway": "192.0.2.1"}]},
    {"networks": [{"ipv6Mode": "static", "ipv6Cidr": "2001:db8::9/64", "ipv6Gateway": "2001:db8::9"}]},
    {"vendorSnippet": "local:snippets/../x"},
    {"vendorSnippet": "local:iso/x"},
]


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_a_wrong_value_is_refused_without_being_quoted(wrong: dict[str, Any]) -> None:
    with pytest.raises(JobError) as refused:
        read_properties(MINIMAL | wrong)
    assert refused.value.code == "INVALID_REQUEST"
    assert next(iter(wrong)) in refused.value.detail


def test_the_first_nic_may_have_its_mode_in_the_property_network() -> None:
    network = {"mode": "static", "ipv4Cidr": "192.0.2.9/24"}
    nics = [{"ipv4Cidr": "192.0.2.10/24"}, {"mode": "dhcp"}]
    sent = plan_vm("update", MINIMAL | {"network": network, "networks": nics}, MINIMAL | {"network": network})
    assert sent["networks"] == [{"ipv4_cidr": "192.0.2.10/24", "mode": "static"}, {"mode": "dhcp"}]


@pytest.mark.parametrize("name", ["dnsServers", "searchDomains"])
def test_only_an_empty_list_removes_name_servers_and_search_domains(name: str) -> None:
    before = MINIMAL | {"network": {name: ["192.0.2.53"]}}
    member = {"dnsServers": "dns_servers", "searchDomains": "search_domains"}[name]
    assert plan_vm("update", MINIMAL | {"network": {name: []}}, before)["network"] == {"mode": "dhcp", member: []}
    assert plan_vm("update", MINIMAL | {"network": {"vlan": 0}}, before)["network"] == {"mode": "dhcp", "vlan": 0}


# ------------------------------------------------------------------ the kind of a guest, and its template or ISO image

CONTAINER: dict[str, Any] = {"cores": 1, "memoryMb": 512, "diskGb": 4, "osTemplate": "debian-12"}
VOLUME = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"


def test_a_guest_with_an_os_template_is_a_container() -> None:
    assert read_properties(CONTAINER).kind == "lxc"
    assert read_properties(MINIMAL).kind == "qemu"
    assert read_properties(CONTAINER | {"osTemplate": VOLUME}).os_template == VOLUME


WRONG_SOURCES = [
    (MINIMAL | {"osTemplate": "debian-12"}, "set only one of image and osTemplate"),
    (MINIMAL | {"iso": "local:iso/d.iso"}, "set only one of image and iso"),
    (MINIMAL | {"swapMb": 512}, "a VM does not support swapMb"),
    (
        CONTAINER | {"sockets": 2, "tags": ["a"], "ciUser": "admin"},
        "a container does not support sockets, ciUser, tags",
    ),
    (CONTAINER | {"disks": [{"disk": "scsi1", "sizeGb": 1}]}, "a container does not support disks"),
    (CONTAINER | {"osTemplate": "local:iso/d.iso"}, "osTemplate"),
    (CONTAINER | {"osTemplate": "local:vztmpl/../x"}, "osTemplate"),
    (MINIMAL | {"image": None, "iso": "local:vztmpl/d.iso"}, "iso"),
    (MINIMAL | {"image": None, "iso": "local:iso/d.iso,media=disk"}, "iso"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_SOURCES, ids=[case[1] for case in WRONG_SOURCES])
def test_properties_of_two_kinds_of_guest_or_with_two_sources_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as refused:
        read_properties(wrong)
    assert refused.value.code == "INVALID_REQUEST"
    assert message in refused.value.detail


def test_a_container_gets_the_members_of_the_roles() -> None:
    vm = plan_vm(
        "create", CONTAINER | {"ciPassword": "swordfish", "swapMb": 0, "onboot": True}, kind="lxc", storage="ceph"
    )
    assert (vm["kind"], vm["os_template"], vm["storage"], vm["swap_mib"], vm["onboot"]) == (
        "lxc",
        VOLUME,
        "ceph",
        0,
        True,
    )
    assert vm["cloud_init"] == {"password": "swordfish"}
    assert not {"template_vmid", "tags", "sockets", "disks"} & set(vm)
    assert plan_vm("start", {}, kind="lxc")["kind"] == "lxc"
    assert "kind" not in plan_vm("start", {})


@pytest.mark.parametrize(
    ("properties", "source_member"),
    [({"iso": "local:iso/d.iso"}, ("iso", "local:iso/d.iso")), ({"blank": True}, ("blank", True))],
)
def test_a_vm_without_a_template_is_created_from_an_iso_image_or_blank(
    properties: dict[str, Any], source_member: tuple[str, Any]
) -> None:
    vm = plan_vm("create", MINIMAL | {"image": None} | properties, storage="ceph")
    assert vm[source_member[0]] == source_member[1]
    assert "template_vmid" not in vm
    with pytest.raises(JobError, match="INVALID_REQUEST: PROXMOX_STORAGE is not set"):
        plan_vm("create", MINIMAL | {"image": None} | properties)


def test_a_linked_clone_is_made_if_the_operator_allows_it() -> None:
    assert plan_vm("create", MINIMAL, makes_full_clones=False)["full_clone"] is False
    assert "full_clone" not in plan_vm("create", MINIMAL)


def test_the_total_of_the_cores_includes_those_of_all_sockets() -> None:
    assert read_properties(MINIMAL | {"cores": 8, "sockets": 16}).total_cores == 128
    assert read_properties(MINIMAL | {"cores": 8}).total_cores == 8


def test_an_update_cannot_change_the_kind_of_a_guest() -> None:
    with pytest.raises(
        JobError, match=r"INVALID_REQUEST: the properties describe a guest of kind \w+, but the guest is of kind lxc"
    ):
        plan_vm("update", MINIMAL, kind="lxc")


def test_an_unknown_os_template_is_not_found() -> None:
    with pytest.raises(
        JobError, match=r"NOT_FOUND: PROXMOX_OS_TEMPLATES has no template alpine \(configured templates: debian-12\)"
    ) as caught:
        plan_vm("create", CONTAINER | {"osTemplate": "alpine"}, kind="lxc", storage="ceph")
    assert caught.value.detail == "no template is called alpine"


def test_if_any_template_is_allowed_an_os_template_without_a_name_in_the_setting_must_be_a_volume() -> None:
    other_volume = "local:vztmpl/other.tar.zst"
    settings: dict[str, Any] = {"kind": "lxc", "storage": "ceph", "may_use_any_template": True}
    vm = plan_vm("create", CONTAINER | {"osTemplate": other_volume}, **settings)
    assert vm["os_template"] == other_volume
    reason = r"and it is not a volume, such as local:vztmpl/debian\.tar\.zst"
    with pytest.raises(JobError, match=reason) as caught:
        plan_vm("create", CONTAINER | {"osTemplate": "alpine"}, **settings)
    assert "PROXMOX_ANY_TEMPLATE" not in str(caught.value)


# ---------------------------------------------------------------------- actions that get only a part of the properties


def test_the_run_of_a_resize_gets_only_the_sizes() -> None:
    vm = plan_vm("resize", MINIMAL | {"disks": [{"disk": "scsi1", "sizeGb": 5, "storage": "ceph"}, {"disk": "scsi2"}]})
    assert (vm["disk_gib"], vm["disks"]) == (20, [{"disk": "scsi1", "size_gib": 5}])
    assert not {"cores", "memory_mib", "tags"} & set(vm)


def test_a_backup_is_stored_in_the_operators_storage() -> None:
    assert plan_vm("backup", {}, backup_storage="backups")["backup_storage"] == "backups"
    with pytest.raises(JobError, match="INVALID_REQUEST: a backup needs PROXMOX_BACKUP_STORAGE"):
        plan_vm("backup", {})


DELETIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"delete_grace_s": 60}, {"grace_s": 60}),
    ({"purges_deleted_vms": True}, {"purge": True}),
    ({"removes_remaining_volumes": True}, {"remove_volumes_left": True}),
    ({"makes_final_backup": True, "backup_storage": "backups"}, {"final_backup": "backups"}),
    ({"backup_storage": "backups"}, {}),
]


@pytest.mark.parametrize(("settings", "sent"), DELETIONS, ids=str)
def test_the_run_of_a_deletion_gets_the_settings_about_deletions(
    settings: dict[str, Any], sent: dict[str, Any]
) -> None:
    members_of_deletions = {"grace_s", "purge", "final_backup", "only_when_due", "remove_volumes_left"}
    vm = plan_vm("delete", {}, **settings)
    assert {name: value for name, value in vm.items() if name in members_of_deletions} == sent


def test_an_update_names_the_tags_that_the_service_no_longer_has() -> None:
    before = MINIMAL | {"tags": ["web", "db", "no;tag"]}
    assert plan_vm("update", MINIMAL | {"tags": ["db", "new"]}, before)["previous_tags"] == ["web"]
    assert "previous_tags" not in plan_vm("update", MINIMAL | {"tags": ["web", "db"]}, before)
    assert plan_vm("update", MINIMAL, before)["previous_tags"] == ["web", "db"]
    assert "previous_tags" not in plan_vm("update", MINIMAL, MINIMAL | {"tags": "web"})
