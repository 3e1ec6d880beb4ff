"""From an image's name to a template, and to the nodes from which it can be had: tables of cases."""

from __future__ import annotations

import pytest

from executor.errors import JobError
from executor.placement import templates
from executor.placement.templates import Reach, Template
from executor.proxmox.rows import StorageRow, VmRow


def row(vmid: int, name: str, node: str = "pve1", *tags: str, is_template: bool = True) -> VmRow:
    return VmRow(vmid=vmid, node=node, name=name, is_template=is_template, tags=tags)


DEBIAN = row(9000, "debian-12")
UBUNTU = row(9001, "ubuntu-24.04", "pve2", "image-noble")
DEBIAN_2 = row(9002, "debian-12", "pve2")
RUNNING = row(100, "fedora-40", is_template=False)
ROWS = [DEBIAN, UBUNTU, RUNNING]


@pytest.mark.parametrize(
    ("image", "configured", "rows", "found"),
    [
        ("debian-12", {"debian-12": 9001}, ROWS, [9001]),  # the operator's word comes first
        ("debian-12", {}, ROWS, [9000]),
        ("noble", {}, ROWS, [9001]),
        ("NOBLE", {}, ROWS, [9001]),  # Proxmox keeps tags in small letters
        ("noble", {}, [*ROWS, row(9005, "noble")], [9005]),  # a name before a tag
        ("debian-12", {}, [DEBIAN_2, DEBIAN], [9000, 9002]),  # the same image on local storage of each node
    ],
)
def test_an_image_is_found_by_setting_then_name_then_tag(image: str, configured: dict, rows: list, found: list) -> None:
    assert [each.vmid for each in templates.candidates(image, configured, rows)] == found


@pytest.mark.parametrize(
    ("image", "configured", "rows", "told"),
    [
        ("windows", {}, ROWS, "Proxmox has debian-12, ubuntu-24.04"),
        ("windows", {"debian": 9000}, [], "PROXMOX_TEMPLATES has debian; Proxmox has none that the token may see"),
        ("fedora-40", {}, ROWS, "no template is called fedora-40"),
        ("debian-12", {"debian-12": 9999}, ROWS, "template 9999, which PROXMOX_TEMPLATES names for debian-12"),
        ("debian-12", {"debian-12": 100}, ROWS, "is no template"),
        ("debian-12", {}, [DEBIAN, row(9003, "debian-12")], "9000 on pve1, 9003 on pve1; PROXMOX_TEMPLATES decides"),
        ("noble", {}, [UBUNTU, row(9004, "x", "pve2", "image-noble")], "more than one template is noble"),
    ],
)
def test_what_is_not_exactly_one_is_not_found_and_says_what_there_is(
    image: str, configured: dict, rows: list, told: str
) -> None:
    with pytest.raises(JobError) as caught:
        templates.candidates(image, configured, rows)
    assert caught.value.code == "NOT_FOUND"
    assert told in caught.value.detail


def test_a_container_template_serves_no_vm() -> None:
    container = VmRow(vmid=9009, node="pve1", name="alpine", is_template=True, kind="lxc")
    with pytest.raises(JobError):
        templates.candidates("alpine", {}, [container])


def test_a_configuration_tells_the_storages_of_every_volume() -> None:
    config = {
        "scsi0": "ceph:base-9000-disk-0,size=8G",
        "ide2": "local-lvm:vm-9000-cloudinit,media=cdrom",
        "ide3": "none,media=cdrom",
        "efidisk0": "nfs:9000/base-9000-disk-1.raw,size=4M",
        "unused0": "old:base-9000-disk-9",
        "net0": "virtio=BC:24:11:00:00:00,bridge=vmbr0",
        "scsihw": "virtio-scsi-pci",
    }
    found = templates.read(DEBIAN, config)
    assert found.storages == {"ceph", "local-lvm", "nfs"}
    assert found.has_cloud_init
    assert not templates.read(DEBIAN, {"scsi0": "ceph:base-9000-disk-0"}).has_cloud_init


def storage(name: str, *nodes: str, is_shared: bool = False, is_available: bool = True) -> list[StorageRow]:
    return [StorageRow(name=name, node=node, is_shared=is_shared, is_available=is_available) for node in nodes]


LOCAL = storage("local-lvm", "pve1", "pve2", "pve3")
CEPH = storage("ceph", "pve1", "pve2", is_shared=True)
NFS = storage("nfs", "pve2", "pve3", is_shared=True)


@pytest.mark.parametrize(
    ("storages_of_it", "target", "rows", "nodes", "is_certain"),
    [
        ({"local-lvm"}, "", LOCAL, {"pve1"}, True),
        ({"ceph"}, "", CEPH, {"pve1", "pve2"}, True),
        ({"ceph"}, "ceph", CEPH, {"pve1", "pve2"}, True),
        ({"ceph"}, "local-lvm", [*CEPH, *LOCAL], {"pve1"}, True),  # the new disk could not be made elsewhere
        ({"ceph", "local-lvm"}, "", [*CEPH, *LOCAL], {"pve1"}, True),  # a cloud-init drive on local storage is enough
        ({"ceph", "nfs"}, "", [*CEPH, *NFS], {"pve1", "pve2"}, True),
        ({"ceph"}, "", [*CEPH[:1], *storage("ceph", "pve2", is_shared=True, is_available=False)], {"pve1"}, True),
        ({"secret"}, "", CEPH, {"pve1"}, False),
        (set(), "", CEPH, {"pve1"}, False),
    ],
)
def test_a_clone_lands_elsewhere_only_over_storage_that_is_shared(
    storages_of_it: set, target: str, rows: list, nodes: set, is_certain: bool
) -> None:
    template = Template(vmid=9000, name="debian-12", node="pve1", storages=frozenset(storages_of_it))
    assert templates.reach(template, rows, target) == Reach(nodes=frozenset(nodes), is_certain=is_certain)


FIRST = Template(vmid=9000, name="debian-12", node="pve1", storages=frozenset({"local-lvm"}))
SECOND = Template(vmid=9002, name="debian-12", node="pve2", storages=frozenset({"ceph"}))
REACHES = {
    9000: Reach(nodes=frozenset({"pve1"}), is_certain=True),
    9002: Reach(nodes=frozenset({"pve1", "pve2", "pve3"}), is_certain=True),
}


def test_each_node_is_served_by_its_own_template_first() -> None:
    assert templates.serving([FIRST, SECOND], REACHES) == {"pve1": 9000, "pve2": 9002, "pve3": 9002}


def test_a_node_that_is_wanted_and_cannot_be_reached_is_not_found() -> None:
    assert templates.for_node("pve1", "debian-12", [FIRST], REACHES) == 9000
    with pytest.raises(JobError, match=r"NOT_FOUND: pve2 cannot be reached .* 9000 on pve1 \(local-lvm\)"):
        templates.for_node("pve2", "debian-12", [FIRST], REACHES)


def test_storages_that_are_not_shown_leave_the_word_to_proxmox() -> None:
    unsure = {9000: Reach(nodes=frozenset({"pve1"}), is_certain=False)}
    assert templates.for_node("pve2", "debian-12", [FIRST], unsure) == 9000
