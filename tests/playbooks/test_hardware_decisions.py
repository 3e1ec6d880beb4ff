"""The functions that decide which options, NICs and disks an action plugin sends to Proxmox."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    cloud_init,
    configuration,
    creation,
    disks,
    guest_facts,
    hardware,
    identity,
    preconditions,
)
from decision_facts import SERVICE, make_container_facts, make_vm, make_vm_facts

#: The requested members of `vm`, the configuration of the VM, and the options that are sent.
OPTIONS = [
    ({"sockets": 2}, {}, {"sockets": 2}),
    ({"cores": 2, "sockets": 2}, {}, {"sockets": 2}),
    ({"cores": 2}, {"sockets": 2}, {"sockets": 1}),
    ({"cpu_type": "host"}, {"cpu": "cputype=host,flags=+aes"}, {}),
    ({"cpu_type": "host"}, {"cpu": "kvm64,flags=+aes"}, {"cpu": "host,flags=+aes"}),
    ({"balloon_mib": 0}, {}, {"balloon": 0}),
    ({"balloon_mib": 512}, {"balloon": "512"}, {}),
    ({"onboot": "yes"}, {}, {"onboot": True}),
    ({"onboot": False}, {}, {}),
    ({"guest_agent": True}, {"agent": "1,fstrim_cloned_disks=1"}, {}),
    ({"guest_agent": False}, {"agent": "enabled=1,type=virtio"}, {"agent": "enabled=0,type=virtio"}),
    ({"boot_order": ["scsi0", "ide2"]}, {}, {"boot": "order=scsi0;ide2"}),
    ({"boot_order": ["scsi0"]}, {"boot": "order=scsi0"}, {}),
    ({"protection": True}, {}, {"protection": True, "tags": ["smith", "smith-protected", "web"]}),
    (
        {"protection": False},
        {"protection": 1, "tags": "smith;smith-protected"},
        {"protection": False, "tags": ["smith"]},
    ),
    ({"tags": ["a", "smith-protected"]}, {}, {"tags": ["a", "smith", "web"]}),
    ({"tags": ["a"]}, {"protection": 1, "tags": "smith;smith-protected"}, {"tags": ["a", "smith", "smith-protected"]}),
    ({"network": {"search_domains": ["example.net"]}}, {}, {"searchdomains": ["example.net"]}),
    ({"cloud_init": {"vendor_snippet": "local:snippets/v.yml"}}, {}, {"cicustom": "vendor=local:snippets/v.yml"}),
    (
        {"cloud_init": {"vendor_snippet": "local:snippets/v.yml"}},
        {"cicustom": "user=local:snippets/u.yml,vendor=x:snippets/x"},
        {"cicustom": "user=local:snippets/u.yml,vendor=local:snippets/v.yml"},
    ),
]


@pytest.mark.parametrize(("requested", "config", "sent"), OPTIONS)
def test_an_option_is_sent_only_if_it_differs(
    requested: dict[str, Any], config: dict[str, Any], sent: dict[str, Any]
) -> None:
    facts = make_vm_facts(**{"tags": "smith;web", "sockets": 1, **config})
    assert configuration.differing_parameters(facts, make_vm(**requested)) == sent


#: The value of net0, the requested NIC, and the value that is sent; None: nothing is sent.
NICS = [
    ("virtio=BC:24:11:00:00:01,bridge=vmbr0", {"vlan": 5}, "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5"),
    ("virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5", {"vlan": 0}, "virtio=BC:24:11:00:00:01,bridge=vmbr0"),
    ("e1000=BC:24:11:00:00:01,bridge=vmbr0,firewall=0", {"firewall": False}, None),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"firewall": "yes"}, "virtio=BC:24:11:00:00:01,bridge=b,firewall=1"),
    ("virtio=BC:24:11:00:00:01,bridge=b,firewall=1", {"firewall": 0}, "virtio=BC:24:11:00:00:01,bridge=b"),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"rate_mbps": 100}, "virtio=BC:24:11:00:00:01,bridge=b,rate=12.5"),
    ("virtio=BC:24:11:00:00:01,bridge=b,rate=12.50", {"rate_mbps": 100}, None),
    ("virtio=BC:24:11:00:00:01,bridge=b,rate=1", {"rate_mbps": 0}, "virtio=BC:24:11:00:00:01,bridge=b"),
    ("virtio=BC:24:11:00:00:01,bridge=b", {"mac": "bc:24:11:00:00:09"}, "virtio=BC:24:11:00:00:09,bridge=b"),
    ("virtio=bc:24:11:00:00:09,bridge=b", {"mac": "BC:24:11:00:00:09"}, None),
    ("", {"bridge": "vmbr2"}, "virtio,bridge=vmbr2"),
    ("", {"bridge": "vmbr2", "mac": "BC:24:11:00:00:09"}, "virtio=BC:24:11:00:00:09,bridge=vmbr2"),
]


@pytest.mark.parametrize(("current", "nic", "value"), NICS)
def test_a_nic_keeps_the_options_that_are_not_requested(current: str, nic: dict[str, Any], value: str | None) -> None:
    facts = make_vm_facts(tags="smith", net0=current or None)
    sent = configuration.differing_parameters(facts, make_vm(networks=[nic]))
    assert sent == ({} if value is None else {"net": {"net0": value}})


def test_a_new_nic_uses_the_bridge_of_the_first_nic() -> None:
    facts = make_vm_facts(tags="smith", net0="virtio=BC:24:11:00:00:01,bridge=vmbr3")
    assert configuration.differing_parameters(facts, make_vm(networks=[{}, {"vlan": 7}])) == {
        "net": {"net1": "virtio,bridge=vmbr3,tag=7"}
    }


#: The value of ipconfig0, the requested addresses, and the new value.
ADDRESSES = [
    ("", {"mode": "dhcp"}, "ip=dhcp"),
    ("ip=dhcp", {"ipv6_mode": "slaac"}, "ip=dhcp,ip6=auto"),
    ("ip=dhcp,ip6=auto", {"ipv6_mode": "dhcp"}, "ip=dhcp,ip6=dhcp"),
    (
        "ip=192.0.2.9/24,gw=192.0.2.1",
        {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "fe80::1"},
        "ip=192.0.2.9/24,gw=192.0.2.1,ip6=2001:db8::9/64,gw6=fe80::1",
    ),
    ("ip=192.0.2.9/24,gw=192.0.2.1", {"mode": "dhcp", "ipv4_gateway": "192.0.2.1"}, "ip=dhcp"),
]


@pytest.mark.parametrize(("current", "network", "value"), ADDRESSES)
def test_a_change_of_one_address_family_does_not_change_the_other(
    current: str, network: dict[str, Any], value: str
) -> None:
    assert cloud_init.ip_config(current, network) == value


#: The requested disks, and the steps that change the disks of the VM.
DISKS = [
    ([{"disk": "scsi1", "size_gib": 5}], [{"disk": "scsi1", "state": "present", "storage": "local-lvm", "size": 5}]),
    (
        [{"disk": "virtio0", "size_gib": "5", "storage": "ceph"}],
        [{"disk": "virtio0", "state": "present", "storage": "ceph", "size": 5}],
    ),
    ([{"disk": "scsi0", "storage": "ceph"}], [{"disk": "scsi0", "state": "moved", "storage": "ceph"}]),
    (
        [{"disk": "scsi0", "storage": "ceph", "size_gib": 9}],
        [
            {"disk": "scsi0", "state": "moved", "storage": "ceph"},
            {"disk": "scsi0", "state": "resized", "size": "9G"},
        ],
    ),
    ([{"disk": "scsi0", "storage": "local-lvm", "size_gib": 8}], []),
]


@pytest.mark.parametrize(("requested", "steps"), DISKS)
def test_a_disk_is_added_moved_and_grown(requested: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    assert hardware.request_problem(make_vm_facts(), make_vm(disks=requested)) == ""
    assert disks.disk_module_parameters(make_vm_facts(), make_vm(disks=requested)) == steps


REFUSED_REQUESTS = [
    {"disks": [{"disk": "scsi0", "size_gib": 7}]},
    {"disks": [{"disk": "scsi31", "size_gib": 7}]},
    {"disks": [{"disk": "scsi1"}]},
    {"disks": [{"disk": "ide2", "size_gib": 1}]},
    {"disks": [{"disk": "unused0", "size_gib": 1}]},
    {"disks": [{"disk": "scsi0"}, {"disk": "scsi0", "storage": "ceph"}]},
    {"networks": [{}, {"vlan": 1}]},
    {"networks": [{"mac": "FF:FF:FF:FF:FF:FF"}]},
    {"networks": [{"mac": "BC:24:11:00:00:01,bridge=other"}]},
    {"networks": [{"ipv6_mode": "static"}]},
    {"boot_order": ["scsi7"]},
    {"balloon_mib": 4096},
    {"disk_gib": 20, "disks": [{"disk": "scsi0", "size_gib": 10}]},
    {"network": {"mode": "dhcp", "ipv4_cidr": "192.0.2.9/24"}},
    {"network": {"ipv4_cidr": "192.0.2.9/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/255.255.255.0"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.255/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "224.0.0.1/24"}},
    {"network": {"mode": "static", "ipv4_cidr": "2001:db8::9/64"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "192.0.2.9"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "198.51.100.1"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "gateway"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "2001:db9::1"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "fe80::1%eth0/64"}},
    {"network": {"dns_servers": ["dns.example.net"]}},
    {"networks": [{}, {"mode": "dhcp", "bridge": "vmbr0", "ipv4_gateway": "192.0.2.1"}]},
    {"cloud_init": {"ssh_public_keys": []}},
    {"cloud_init": {"password": ""}},
    {"cloud_init": {"ssh_public_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2Jh me@host"]}},
    {"cloud_init": {"vendor_snippet": "local:snippets/../etc/passwd"}},
    {"cloud_init": {"vendor_snippet": "local:snippets/a,user=local:snippets/b"}},
    {"cloud_init": {"ssh_public_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}},
]


@pytest.mark.parametrize("requested", REFUSED_REQUESTS, ids=str)
def test_an_impossible_request_is_refused(requested: dict[str, Any]) -> None:
    assert creation.request_problem(make_vm_facts(), make_vm(**requested)).startswith("INVALID_REQUEST")


RARE_BUT_POSSIBLE = [
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.9/32", "ipv4_gateway": "198.51.100.1"}},
    {"network": {"mode": "static", "ipv4_cidr": "192.0.2.8/31", "ipv4_gateway": "192.0.2.9"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/128", "ipv6_gateway": "2001:db9::1"}},
    {"network": {"ipv6_mode": "static", "ipv6_cidr": "2001:db8::9/64", "ipv6_gateway": "fe80::1"}},
    {"network": {"dns_servers": ["2001:db8::53", "192.0.2.53"], "search_domains": []}},
    {"disk_gib": 10, "disks": [{"disk": "scsi0", "size_gib": 10}]},
    {"balloon_mib": 2048},
    {"balloon_mib": 0, "memory_mib": 16},
]


@pytest.mark.parametrize("requested", RARE_BUT_POSSIBLE, ids=str)
def test_a_rare_but_possible_request_is_accepted(requested: dict[str, Any]) -> None:
    assert creation.request_problem(make_vm_facts(), make_vm(**requested)) == ""


def test_the_balloon_of_a_template_must_not_exceed_the_requested_memory() -> None:
    template = make_vm_facts(template=1, balloon=1024)
    source = {**guest_facts.facts_of_absent_guest(500), "template": template}
    refused = creation.request_problem(source, make_vm(memory_mib=512))
    assert refused == (
        "INVALID_REQUEST: balloon_mib 1024 (the current value of the template) is more than memory_mib 512: "
        "request less balloon_mib or more memory_mib"
    )
    assert creation.request_problem(source, make_vm(memory_mib=512, balloon_mib=0)) == ""
    assert creation.request_problem(source, make_vm(memory_mib=1024)) == ""


def test_a_guest_without_a_cloud_init_drive_cannot_get_name_servers() -> None:
    guest_without_drive = make_vm_facts(ide2=None)
    for network in ({"dns_servers": ["192.0.2.53"]}, {"search_domains": ["example.net"]}):
        assert creation.request_problem(guest_without_drive, make_vm(network=network)).startswith("INVALID_REQUEST")
    assert creation.request_problem(guest_without_drive, make_vm(network={"mode": "dhcp", "dns_servers": []})) == ""


COMMENTS = ["", " me@host", " a+b/c%20@host", " Zoë Ω 鍵", " with\ttab and  blanks", " a\u2028b\x85c", ' "q" \\ #;&=']


def test_fifty_ssh_keys_with_unusual_comments_are_read_back_unchanged() -> None:
    """The module proxmox_kvm encodes the keys for Proxmox, and a look-up decodes them."""
    keys = [f"ssh-ed25519 AAAA{number:04d}+/=={COMMENTS[number % len(COMMENTS)]}" for number in range(50)]
    sent = configuration.differing_parameters(
        make_vm_facts(tags="smith"), make_vm(cloud_init={"ssh_public_keys": [f"{k}\r\n" for k in keys]})
    )
    after = make_vm_facts(tags="smith", sshkeys=urllib.parse.quote(sent["sshkeys"], safe=""))
    assert after["ssh_public_keys"] == keys
    assert configuration.differing_parameters(after, make_vm(cloud_init={"ssh_public_keys": keys})) == {}


def test_only_protection_by_an_operator_prevents_an_update() -> None:
    protected_by_an_operator, protected_by_the_service = (
        make_vm_facts(protection=1, tags="smith"),
        make_vm_facts(protection=1, tags="smith;smith-protected"),
    )
    assert identity.identity_problem(protected_by_an_operator, make_vm()).startswith("VM_PROTECTED")
    assert identity.identity_problem(protected_by_the_service, make_vm()) == ""
    assert identity.identity_problem(protected_by_the_service, make_vm(), True).startswith("VM_PROTECTED")  # a deletion


@pytest.mark.parametrize(
    ("requested", "is_refused"),
    [
        ({"disk_gib": 9}, False),
        ({"disk_gib": 7}, True),
        ({}, True),
        ({"disks": [{"disk": "scsi1", "size_gib": 1}]}, True),
        ({"disks": [{"disk": "scsi0", "storage": "ceph"}]}, True),
    ],
)
def test_a_resize_only_grows_existing_disks(requested: dict[str, Any], is_refused: bool) -> None:
    request = configuration.disk_growth_request(make_vm(cores=9, **requested))
    assert "cores" not in request
    assert creation.request_problem(make_vm_facts(), request).startswith("INVALID_REQUEST") is is_refused


#: What a request for a VM without a template must contain.
VM_WITHOUT_TEMPLATE: dict[str, Any] = {"node": "pve1", "storage": "ceph", "cores": 2, "memory_mib": 512, "disk_gib": 4}


def test_a_vm_without_a_template_is_created_with_its_marker_and_disks() -> None:
    request = make_vm(
        **VM_WITHOUT_TEMPLATE, iso="local:iso/d.iso", disks=[{"disk": "virtio1", "size_gib": 2}], bridge="vmbr0"
    )
    facts = guest_facts.facts_of_absent_guest(500) | {"template": {}}
    assert creation.request_problem(facts, request) == ""
    parameters = creation.creation_parameters(facts, request)
    assert (parameters["scsi"], parameters["virtio"]) == ({"scsi0": "ceph:4"}, {"virtio1": "ceph:2"})
    assert (parameters["ide"], parameters["boot"]) == ({"ide2": "local:iso/d.iso,media=cdrom"}, "order=scsi0;ide2")
    assert (parameters["net"], parameters["tags"]) == ({"net0": "virtio,bridge=vmbr0"}, ["smith"])
    assert parameters["description"] == f"smith-uid={SERVICE}"


@pytest.mark.parametrize(
    "invalid_member",
    [
        {"node": ""},
        {"storage": ""},
        {"template_vmid": 9000},
        {"iso": "local:iso/../x"},
        {"iso": "local:iso/x,size=9"},
        {"cloud_init": {"user": "x"}},
    ],
    ids=str,
)
def test_an_invalid_request_for_a_vm_without_a_template_is_refused(invalid_member: dict[str, Any]) -> None:
    request = make_vm(**{**VM_WITHOUT_TEMPLATE, "iso": "local:iso/d.iso", **invalid_member})
    assert creation.request_problem(guest_facts.facts_of_absent_guest(500) | {"template": {}}, request).startswith(
        "INVALID_REQUEST"
    )


#: The requested members of `vm`, and the options that are sent.
CONTAINER_CHANGES = [
    ({"cores": 2, "memory_mib": 512, "disk_gib": 4, "swap_mib": 0}, {}),
    ({"cores": 4, "memory_mib": 1024}, {"cores": 4, "memory": 1024}),
    (
        {"networks": [{"vlan": 5, "mode": "static", "ipv4_cidr": "192.0.2.9/24", "ipv4_gateway": "192.0.2.1"}]},
        {"netif": {"net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=192.0.2.9/24,tag=5,gw=192.0.2.1"}},
    ),
    ({"network": {"mode": "dhcp"}}, {}),
    ({"networks": [{}, {"bridge": "vmbr1"}]}, {"netif": {"net1": "name=eth1,bridge=vmbr1"}}),
    ({"network": {"dns_servers": ["192.0.2.53", "192.0.2.54"]}}, {"nameserver": "192.0.2.53 192.0.2.54"}),
]


@pytest.mark.parametrize(("requested", "sent"), CONTAINER_CHANGES)
def test_only_differing_options_are_sent_to_a_container(requested: dict[str, Any], sent: dict[str, Any]) -> None:
    facts = make_container_facts()
    assert identity.identity_problem(facts, make_vm(kind="lxc")) == ""
    assert creation.request_problem(facts, make_vm(kind="lxc", **requested)) == ""
    assert configuration.differing_parameters(facts, make_vm(kind="lxc", **requested)) == sent


def test_a_container_and_a_vm_are_never_mistaken_for_each_other() -> None:
    assert identity.identity_problem(make_container_facts(), make_vm()).startswith("VM_IDENTITY_MISMATCH")
    assert identity.identity_problem(make_vm_facts(), make_vm(kind="lxc")).startswith("VM_IDENTITY_MISMATCH")
    assert identity.reserved_vmid_problem(make_container_facts(), make_vm()).startswith("VM_ID_TAKEN")


@pytest.mark.parametrize(
    "requested",
    [{"disk_gib": 5}, {"disks": [{"disk": "scsi1", "size_gib": 1}]}, {"template_vmid": 9000}, {"cpu_type": "host"}],
    ids=str,
)
def test_a_change_that_no_module_supports_for_containers_is_refused(requested: dict[str, Any]) -> None:
    assert creation.request_problem(make_container_facts(), make_vm(kind="lxc", **requested)).startswith(
        "INVALID_REQUEST"
    )


def test_a_containers_addresses_exclude_loopback_link_local_and_other_nics() -> None:
    nics = [{"name": "lo", "inet": "127.0.0.1/8"}, {"name": "eth0", "inet6": "fe80::1/64", "inet": "192.0.2.9/24"}]
    assert guest_facts.container_addresses(nics, []) == ["192.0.2.9"]
    nics = [
        {"name": "eth0", "hwaddr": "bc:24:11:00:00:01", "inet": "192.0.2.9/24"},
        {"name": "x", "inet": "10.0.0.1/8"},
    ]
    assert guest_facts.container_addresses(nics, guest_facts.macs_of(make_container_facts()["config"])) == ["192.0.2.9"]


def test_a_containers_login_is_set_at_its_creation_only_and_its_migration_is_refused() -> None:
    request = make_vm(kind="lxc", cloud_init={"password": "swordfish"}, target_node="pve2")
    assert creation.request_problem(make_container_facts(), request, True) == ""
    assert creation.request_problem(make_container_facts(), request, False).startswith("INVALID_REQUEST")
    assert preconditions.migration_problem(make_container_facts(), request).startswith("INVALID_REQUEST")
    assert creation.request_problem(make_container_facts(), make_vm(kind="lxc", tags=["a"])).startswith(
        "INVALID_REQUEST"
    )
