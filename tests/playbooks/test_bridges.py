"""A bridge that a node does not have, or that the login may not use, is refused before the first change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from play_bench import Bench
from test_refusals import refused


@contextmanager
def restrict_login_to_networks(bench: Bench, *networks: str) -> Iterator[None]:
    """Let the login use only these bridges, and VLANs of them such as `vmbr5/7`."""
    zone = "/sdn/zones/localnetwork"
    bench.pve.control("revoke", path=zone, privilege="SDN.Use")
    for network in networks:
        bench.pve.control("grant", path=f"{zone}/{network}", privilege="SDN.Use")
    try:
        yield
    finally:
        for network in networks:
            bench.pve.control("revoke", path=f"{zone}/{network}", privilege="SDN.Use")
        bench.pve.control("grant", path=zone, privilege="SDN.Use")


@contextmanager
def show_networks_without_use(bench: Bench, *networks: str) -> Iterator[None]:
    """Let the login see these bridges and VNets, named `ZONE/BRIDGE`, but not use them. The bridges exist."""
    zones = dict(network.split("/")[::-1] for network in networks)
    vnets = {name: zone for name, zone in zones.items() if zone != "localnetwork"}
    bench.pve.control("bridges", bridges=["vmbr0", "vmbr1", *(zones.keys() - vnets.keys())])
    for name, zone in vnets.items():
        bench.pve.control("vnet", name=name, zone=zone)
    for network in networks:
        bench.pve.control("grant", path=f"/sdn/zones/{network}", privilege="SDN.Audit")
    try:
        yield
    finally:
        for network in networks:
            for privilege in ("SDN.Audit", "SDN.Use"):
                bench.pve.control("revoke", path=f"/sdn/zones/{network}", privilege=privilege)
        for name in vnets:
            bench.pve.control("vnet", name=name, zone="")


@contextmanager
def create_invisible_vnet(bench: Bench, network: str) -> Iterator[None]:
    """Create the VNet `ZONE/VNET`, on which the login has no privilege."""
    zone, name = network.split("/")
    bench.pve.control("vnet", name=name, zone=zone)
    bench.pve.control("grant", path="/sdn/zones/others", privilege="SDN.Use")
    try:
        yield
    finally:
        bench.pve.control("revoke", path="/sdn/zones/others", privilege="SDN.Use")
        bench.pve.control("revoke", path=f"/sdn/zones/{network}", privilege="SDN.Use")
        bench.pve.control("vnet", name=name, zone="")


@pytest.mark.proxmox(
    behaviour="a bridge that does not exist is accepted in a configuration, and the start fails in its task",
    versions="8, 9",
    source="pve-common: PVE/Network.pm, read_bridge_mtu",
    reaction="reads the node's bridges before the first change (`NOT_FOUND`); those that a guest has are not checked",
)
def test_a_bridge_that_does_not_exist_is_refused_before_any_change(bench: Bench, pve_version: str) -> None:
    container = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    for action, vm in (
        ("create", bench.vm(bridge="vmbr9")),
        ("create", bench.vm(networks=[{}, {"bridge": "vmbr9"}])),
        ("create", {**container, "bridge": "vmbr9"}),
        ("update", {**bench.add_vm(), "network": {"bridge": "vmbr9"}}),
        ("update", {**bench.add_container(), "networks": [{}, {"bridge": "vmbr9"}]}),
    ):
        done = refused(bench, action, vm)
        assert (done.code, "property bridge" in done.message) == ("NOT_FOUND", True), (pve_version, done.message)
    on_vmbr9 = {"net0": "virtio=BC:24:11:00:11:22,bridge=vmbr9"}
    assert bench.play("update", {**bench.add_vm(config=on_vmbr9), "networks": [{}, {"bridge": "vmbr9"}]}).rc == 0
    vm_on_vmbr9 = bench.add_vm(config=on_vmbr9)
    assert bench.play("update", {**vm_on_vmbr9, "cores": 4, "network": {"bridge": "vmbr9"}}).rc == 0, (
        "the VM has the bridge already"
    )
    assert "bridge 'vmbr9' does not exist" in bench.play("start", vm_on_vmbr9).message


@pytest.mark.proxmox(
    behaviour="a bridge of /etc/network/interfaces.d is not listed, but VMs and containers can use it",
    versions="8, 9",
    source="pve-manager: PVE/API2/Network.pm, index; pve-common: PVE/Network.pm, tap_plug",
    reaction="checks only SDN.Use for a bridge that the guest has, or that `PROXMOX_BRIDGES` names; doctor warns",
)
def test_a_bridge_that_proxmox_does_not_list_is_used_if_the_provider_offers_it(bench: Bench, pve_version: str) -> None:
    bench.pve.control("bridges", unlisted=["vmbr5"])
    allowed = {"allowed": {"bridges": ["vmbr5"], "vlans": ["7"], "tags": ["web"]}}
    vm = {**bench.vm(networks=[{}, {"bridge": "vmbr5"}]), **allowed}
    for action in ("create", "start"):
        done = bench.play(action, vm)
        assert done.rc == 0, (pve_version, done.output)
    assert bench.play("update", {**bench.add_container(), "bridge": "vmbr5", **allowed}).rc == 0
    in_vlan = {**bench.vm(networks=[{}, {"bridge": "vmbr5", "vlan": 7}]), **allowed}
    with restrict_login_to_networks(bench, "vmbr0", "vmbr5/7"):
        done = refused(bench, "create", {**vm, **bench.vm()})
        assert bench.play("create", in_vlan).rc == 0
    assert (done.code, "/localnetwork/vmbr5)" in done.message) == ("PVE_PERMISSION", True), done.message


@pytest.mark.proxmox(
    behaviour="a bridge is listed with SDN.Audit or a privilege on a VLAN of it, but a change of a NIC needs SDN.Use",
    versions="8, 9",
    source="pve-access-control: PVE/RPCEnvironment.pm, check_sdn_bridge; pve-guest-common: PVE/GuestHelpers.pm",
    reaction="reads the privileges on each network before the first change (`PVE_PERMISSION`)",
)
def test_a_bridge_that_the_login_sees_but_may_not_use_is_refused_before_any_change(
    bench: Bench, pve_version: str
) -> None:
    container = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    on_vnet7 = {"net0": "virtio=BC:24:11:00:11:22,bridge=vnet7"}
    disk_growth = {"disk_gib": 9}
    with (
        show_networks_without_use(bench, "tenants/vnet7", "localnetwork/vmbr5"),
        restrict_login_to_networks(bench, "vmbr0", "vmbr1/7"),
    ):
        for action, vm in (
            ("create", bench.vm(bridge="vnet7")),
            ("create", bench.vm(networks=[{}, {"bridge": "vmbr5"}])),
            ("create", bench.vm(networks=[{}, {"bridge": "vmbr1"}])),
            ("create", bench.vm(networks=[{}, {"bridge": "vmbr1", "vlan": 8}])),
            ("create", bench.vm(template_vmid=None, blank=True, node="pve1", storage="ceph", bridge="vnet7")),
            ("create", {**container, "bridge": "vnet7"}),
            ("update", {**bench.add_vm(), "network": {"bridge": "vnet7"}, **disk_growth}),
            ("update", {**bench.add_vm(config=on_vnet7), "network": {"vlan": 7}, **disk_growth}),
            ("update", {**bench.add_container(), "networks": [{}, {"bridge": "vnet7"}]}),
        ):
            done = refused(bench, action, vm)
            is_privilege_named = "SDN.Use on /sdn/zones/" in done.message
            assert (done.code, is_privilege_named) == ("PVE_PERMISSION", True), (pve_version, done.message)
        assert bench.play("create", bench.vm(networks=[{}, {"bridge": "vmbr1", "vlan": 7}])).rc == 0
        keeps_its_nic = {**bench.add_vm(config=on_vnet7), "cores": 4, "network": {"bridge": "vnet7"}}
        assert bench.play("update", keeps_its_nic).rc == 0
        bench.pve.control("grant", path="/sdn/zones/tenants/vnet7", privilege="SDN.Use")
        assert bench.play("create", bench.vm(bridge="vnet7")).rc == 0


@pytest.mark.proxmox(
    behaviour="the refusal of a request for a VNet names its zone, also to a login without a privilege on the VNet",
    versions="8, 9",
    source="pve-network: PVE/API2/Network/SDN/Vnets.pm, read",
    reaction="asks so for the zone of a bridge that is not listed, and refuses it before the first change",
)
def test_a_vnet_that_the_login_does_not_see_is_refused_although_the_provider_offers_it(
    bench: Bench, pve_version: str
) -> None:
    """The login has SDN.Use on the zone of the nodes' bridges and on another zone, but not on the zone of the VNet."""
    allowed_by_the_provider = {"allowed": {"bridges": ["vnet7"], "vlans": ["7"], "storages": ["ceph"], "tags": ["web"]}}
    without_template = {"template_vmid": None, "blank": True, "node": "pve1", "storage": "ceph"}
    container = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    with create_invisible_vnet(bench, "tenants/vnet7"):
        for action, vm in (
            ("create", bench.vm(bridge="vnet7")),
            ("create", bench.vm(networks=[{}, {"bridge": "vnet7", "vlan": 7}])),
            ("create", bench.vm(bridge="vnet7", **without_template)),
            ("create", {**container, "bridge": "vnet7"}),
            ("update", {**bench.add_vm(), "network": {"bridge": "vnet7"}, "disk_gib": 9}),
            ("update", {**bench.add_container(), "bridge": "vnet7"}),
        ):
            done = refused(bench, action, {**vm, **allowed_by_the_provider})
            assert done.code == "PVE_PERMISSION", (pve_version, done.message)
            expected = "property bridge: the login may not use the bridge (it lacks SDN.Use on /sdn/zones/tenants/vnet7"
            assert expected in done.message
        bench.pve.control("grant", path="/sdn/zones/tenants/vnet7", privilege="SDN.Use")
        assert bench.play("create", {**bench.vm(bridge="vnet7"), **allowed_by_the_provider}).rc == 0


@pytest.mark.proxmox(
    behaviour="a change of a NIC needs SDN.Use on its former network, and on each VLAN of its trunks",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, update_vm_api; pve-guest-common: PVE/GuestHelpers.pm, check_vnet_access",
    reaction="reads the privileges on all of them before the first change (`PVE_PERMISSION`)",
)
def test_a_nic_whose_former_network_or_trunks_the_login_may_not_use_is_refused_before_any_change(
    bench: Bench, pve_version: str
) -> None:
    bench.pve.control("bridges", bridges=["vmbr0", "vmbr1", "vmbr5"])
    mac = "BC:24:11:00:11:22"
    on_vmbr5 = {"net0": f"virtio={mac},bridge=vmbr5"}
    trunk = {"net0": f"virtio={mac},bridge=vmbr1,trunks=7;10-12"}
    on_lxc = {"net0": f"name=eth0,bridge=vmbr5,hwaddr={mac},ip=dhcp"}
    with restrict_login_to_networks(bench, "vmbr0", "vmbr1/7", "vmbr1/10", "vmbr1/11"):
        for guest, path in (
            (bench.add_vm(config=on_vmbr5), "vmbr5"),
            (bench.add_container(config=on_lxc), "vmbr5"),
            (bench.add_vm(config=trunk), "vmbr1/12"),
        ):
            done = refused(bench, "update", {**guest, "network": {"bridge": "vmbr0"}, "cores": 3})
            assert (done.code, f"/localnetwork/{path})" in done.message) == ("PVE_PERMISSION", True), done.message
        bench.pve.control("grant", path="/sdn/zones/localnetwork/vmbr1/12", privilege="SDN.Use")
        allowed = {**bench.add_vm(config=trunk), "networks": [{"firewall": True}]}
        done = bench.play("update", allowed)
        bench.pve.control("revoke", path="/sdn/zones/localnetwork/vmbr1/12", privilege="SDN.Use")
        assert done.rc == 0, (pve_version, done.output)
        assert "firewall=1" in bench.guest(allowed)["config"]["net0"]
    whole_bridge = {**bench.add_vm(config=trunk), "networks": [{"firewall": True}]}
    assert bench.play("update", whole_bridge).rc == 0


@pytest.mark.proxmox(
    behaviour="the request to clone a VM is refused if the login may not use a network of the template",
    versions="8, 9",
    source="qemu-server: PVE/API2/Qemu.pm, clone_vm",
    reaction="ends in `PVE_PERMISSION`; nothing was made",
)
def test_a_template_on_a_bridge_that_the_login_may_not_use_leaves_no_clone(bench: Bench, pve_version: str) -> None:
    bench.pve.control("add_template", vmid=9055, name="tenants", node="pve1")
    bench.pve.control("configure", vmid=9055, values={"net0": "virtio=BC:24:11:00:11:23,bridge=vmbr1"})
    for requested in ({}, {"bridge": "vmbr0"}):
        vm = bench.vm(template_vmid=9055, **requested)
        with restrict_login_to_networks(bench, "vmbr0"):
            done = bench.play("create", vm)
        assert done.code == "PVE_PERMISSION", (pve_version, done.message)
        assert "/sdn/zones/localnetwork/vmbr1" in done.message
        assert bench.pve.guest(vm["vmid"]) is None
