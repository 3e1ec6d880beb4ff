"""The service's properties that speak of hardware, and what becomes of them in the extra var."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor.errors import JobError
from executor.playbooks import Order, Site, plan, read_properties

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


def shape(action: str, properties: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    site = Site(
        cluster="default",
        templates={"debian-12": 9000},
        storage="",
        bridge="",
        pool="",
        node="",
        folders=[Path(__file__).resolve().parents[2] / "playbooks"],
        playbook_timeout_s=240,
        shutdown_timeout_s=60,
    )
    order = Order(
        action=action,
        service_id="0f7e2c1a-1111-4222-8333-944455556666",
        service_name="web",
        properties=properties,
        before=before or {},
        vmid=5000,
        vm_name="web-0f7e2c1a",
        time_left_s=240,
    )
    return plan(order, site).vm


def test_the_hardware_reaches_a_create_by_the_names_that_the_roles_know() -> None:
    vm = shape("create", MINIMAL | HARDWARE)
    expected = {"sockets": 2, "cpu_type": "x86-64-v2-AES", "balloon_mib": 0, "onboot": True, "protection": False}
    assert (expected | {"guest_agent": True, "boot_order": ["scsi0", "net0"]}).items() <= vm.items()
    assert vm["disks"] == [
        {"disk": "scsi1", "size_gib": 5, "storage": "ceph"},
        {"disk": "virtio0", "size_gib": 1},
    ]
    assert vm["networks"][0] == {"vlan": 0, "firewall": True, "rate_mbps": 100.5, "mac": "BC:24:11:00:00:01"}
    assert vm["networks"][1]["ipv6_gateway"] == "fe80::1"
    assert vm["network"] == {
        **{"mode": "dhcp", "ipv6_mode": "slaac"},
        **{"search_domains": ["example.net"], "dns_servers": []},
    }
    assert vm["cloud_init"] == {"vendor_snippet": "local:snippets/vendor.yml"}


def test_what_is_not_given_is_not_sent() -> None:
    sent = {"sockets", "cpu_type", "balloon_mib", "onboot", "protection", "disks", "networks", "allow_reboot"}
    assert not sent & set(shape("create", MINIMAL)) | sent & set(shape("update", MINIMAL))


def test_an_update_touches_nics_only_when_they_differ_from_before() -> None:
    same = shape("update", MINIMAL | HARDWARE, MINIMAL | HARDWARE)
    assert "networks" not in same
    assert same["disks"]  # a disk that is there already changes nothing, one that is missing is mended
    changed = shape("update", MINIMAL | HARDWARE | {"networks": [{"vlan": 5}], "allowReboot": True}, HARDWARE)
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
    {"vendorSnippet": "local:snippets/../x"},
    {"vendorSnippet": "local:iso/x"},
]


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_a_wrong_value_is_refused_without_being_quoted(wrong: dict[str, Any]) -> None:
    with pytest.raises(JobError) as refused:
        read_properties(MINIMAL | wrong)
    assert refused.value.code == "INVALID_REQUEST"
    assert next(iter(wrong)) in refused.value.detail
