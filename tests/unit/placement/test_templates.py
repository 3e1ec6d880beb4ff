"""From an image's name to its template and to the nodes where it can be cloned, as tables of cases."""

from __future__ import annotations

import pytest

from executor.errors import JobError
from executor.placement import templates
from executor.placement.templates import NodesForClone, Template
from executor.proxmox.rows import StorageRow, VmRow


def vm_row(vmid: int, name: str, node: str = "pve1", *tags: str, is_template: bool = True) -> VmRow:
    return VmRow(vmid=vmid, node=node, name=name, is_template=is_template, tags=tags)


DEBIAN = vm_row(9000, "debian-12")
UBUNTU = vm_row(9001, "ubuntu-24.04", "pve2", "image-noble")
DEBIAN_2 = vm_row(9002, "debian-12", "pve2")
RUNNING = vm_row(100, "fedora-40", is_template=False)
ROWS = [DEBIAN, UBUNTU, RUNNING]


@pytest.mark.parametrize(
    ("image", "configured", "rows", "expected_vmids"),
    [
        ("debian-12", {"debian-12": 9001}, ROWS, [9001]),  # the setting comes before the name
        ("debian-12", {}, ROWS, [9000]),
        ("noble", {}, ROWS, [9001]),
        ("NOBLE", {}, ROWS, [9001]),  # Proxmox stores tags in lower case
        ("noble", {}, [*ROWS, vm_row(9005, "noble")], [9005]),  # the name comes before the tag
        ("debian-12", {}, [DEBIAN_2, DEBIAN], [9000, 9002]),  # copies of one image on local storages
    ],
)
def test_an_image_is_found_by_setting_then_name_then_tag(
    image: str, configured: dict, rows: list, expected_vmids: list
) -> None:
    assert [
        template.vmid
        for template in templates.find_templates(image, configured, rows, are_unconfigured_templates_allowed=True)
    ] == expected_vmids


@pytest.mark.parametrize(
    ("image", "configured", "rows", "text"),
    [
        ("windows", {}, ROWS, "Proxmox has the templates debian-12, ubuntu-24.04"),
        (
            "windows",
            {"debian": 9000},
            [],
            "PROXMOX_TEMPLATES has debian; Proxmox has no templates that the token may see",
        ),
        ("fedora-40", {}, ROWS, "no template is called fedora-40"),
        ("debian-12", {"debian-12": 9999}, ROWS, "template 9999, set in PROXMOX_TEMPLATES for debian-12"),
        ("debian-12", {"debian-12": 100}, ROWS, "is not a template"),
        (
            "debian-12",
            {},
            [DEBIAN, vm_row(9003, "debian-12")],
            "9000 on pve1, 9003 on pve1; set one in PROXMOX_TEMPLATES",
        ),
        (
            "noble",
            {},
            [UBUNTU, vm_row(9004, "x", "pve2", "image-noble")],
            "more than one template on a node",
        ),
    ],
)
def test_an_image_without_exactly_one_template_is_refused_and_the_operator_reads_which_exist(
    image: str, configured: dict, rows: list, text: str
) -> None:
    with pytest.raises(JobError) as caught:
        templates.find_templates(image, configured, rows, are_unconfigured_templates_allowed=True)
    assert caught.value.code == "NOT_FOUND"
    assert text in caught.value.operator_detail
    assert image in caught.value.detail
    hidden = {"pve1", "pve2", "9000", "9003", "9999", "ubuntu-24.04", "debian-12"} - {image}
    assert not [name for name in hidden if name in caught.value.detail]


def test_the_tenants_error_for_a_template_that_is_not_configured_is_that_of_a_missing_template() -> None:
    for image in ("ubuntu-24.04", "noble", "windows"):
        with pytest.raises(JobError) as caught:
            templates.find_templates(image, {"debian-12": 9000}, ROWS, are_unconfigured_templates_allowed=False)
        assert (caught.value.code, caught.value.detail) == ("NOT_FOUND", f"no template is called {image}")
        assert "configured templates: debian-12" in caught.value.operator_detail
    assert templates.find_templates(
        "debian-12", {"debian-12": 9000}, ROWS, are_unconfigured_templates_allowed=False
    ) == [DEBIAN]


def test_no_vm_is_created_from_a_container_template() -> None:
    container = VmRow(vmid=9009, node="pve1", name="alpine", is_template=True, kind="lxc")
    with pytest.raises(JobError):
        templates.find_templates("alpine", {}, [container], are_unconfigured_templates_allowed=True)


def test_the_storages_of_every_volume_are_read_from_the_configuration() -> None:
    config = {
        "scsi0": "ceph:base-9000-disk-0,size=8G",
        "ide2": "local-lvm:vm-9000-cloudinit,media=cdrom",
        "ide3": "none,media=cdrom",
        "efidisk0": "nfs:9000/base-9000-disk-1.raw,size=4M",
        "unused0": "old:base-9000-disk-9",
        "net0": "virtio=BC:24:11:00:00:00,bridge=vmbr0",
        "scsihw": "virtio-scsi-pci",
    }
    found = templates.parse_template(DEBIAN, config)
    assert found.storages == {"ceph", "local-lvm", "nfs"}
    assert found.has_cloud_init
    assert not templates.parse_template(DEBIAN, {"scsi0": "ceph:base-9000-disk-0"}).has_cloud_init


def storage(name: str, *nodes: str, is_shared: bool = False, is_available: bool = True) -> list[StorageRow]:
    return [StorageRow(name=name, node=node, is_shared=is_shared, is_available=is_available) for node in nodes]


LOCAL = storage("local-lvm", "pve1", "pve2", "pve3")
CEPH = storage("ceph", "pve1", "pve2", is_shared=True)
NFS = storage("nfs", "pve2", "pve3", is_shared=True)


@pytest.mark.parametrize(
    ("template_storages", "target", "rows", "nodes", "is_complete"),
    [
        ({"local-lvm"}, "", LOCAL, {"pve1"}, True),
        ({"ceph"}, "", CEPH, {"pve1", "pve2"}, True),
        ({"ceph"}, "ceph", CEPH, {"pve1", "pve2"}, True),
        ({"ceph"}, "local-lvm", [*CEPH, *LOCAL], {"pve1"}, True),  # the new disk cannot be created elsewhere
        ({"ceph", "local-lvm"}, "", [*CEPH, *LOCAL], {"pve1"}, True),  # a cloud-init drive on local storage is enough
        ({"ceph", "nfs"}, "", [*CEPH, *NFS], {"pve1", "pve2"}, True),
        ({"ceph"}, "", [*CEPH[:1], *storage("ceph", "pve2", is_shared=True, is_available=False)], {"pve1"}, True),
        ({"secret"}, "", CEPH, {"pve1"}, False),
        (set(), "", CEPH, {"pve1"}, False),
    ],
)
def test_a_clone_can_be_on_another_node_only_with_shared_storage(
    template_storages: set, target: str, rows: list, nodes: set, is_complete: bool
) -> None:
    template = Template(vmid=9000, name="debian-12", node="pve1", storages=frozenset(template_storages))
    assert templates.nodes_for_clone(template, rows, target) == NodesForClone(
        nodes=frozenset(nodes), is_complete=is_complete
    )


FIRST = Template(vmid=9000, name="debian-12", node="pve1", storages=frozenset({"local-lvm"}))
SECOND = Template(vmid=9002, name="debian-12", node="pve2", storages=frozenset({"ceph"}))
#: The nodes on which each template can be cloned, by the VMID of the template.
NODES_OF = {
    9000: NodesForClone(nodes=frozenset({"pve1"}), is_complete=True),
    9002: NodesForClone(nodes=frozenset({"pve1", "pve2", "pve3"}), is_complete=True),
}


def test_a_node_clones_the_template_that_is_on_it_rather_than_another() -> None:
    assert templates.template_vmid_by_node([FIRST, SECOND], NODES_OF) == {"pve1": 9000, "pve2": 9002, "pve3": 9002}


def test_if_no_template_can_be_cloned_on_the_node_the_error_is_not_found() -> None:
    assert templates.choose_template_vmid("pve1", "debian-12", [FIRST], NODES_OF) == 9000
    expected_text = r"no clone of debian-12 can be created on pve2: .*templates: 9000 on pve1 \(local-lvm\)"
    with pytest.raises(JobError, match=f"NOT_FOUND: {expected_text}"):
        templates.choose_template_vmid("pve2", "debian-12", [FIRST], NODES_OF)


def test_if_storages_are_not_visible_a_clone_is_tried_and_proxmox_decides() -> None:
    uncertain = {9000: NodesForClone(nodes=frozenset({"pve1"}), is_complete=False)}
    assert templates.choose_template_vmid("pve2", "debian-12", [FIRST], uncertain) == 9000
