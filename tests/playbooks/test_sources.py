"""A template or image from which no guest can be created is refused before any change, by hand and by the agent."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from both_ways import Attempt, Play, by_hand
from play_bench import Bench

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZvb2JhcmZv"
MARKER = f"smith-uid={uuid.UUID(int=7)}"
BLANK = {"template_vmid": None, "node": "pve1", "storage": "ceph"}
#: The VMIDs of the templates: on local and on shared storage, with a marker, without a cloud-init drive, and so on.
LOCAL, SHARED, MARKED, BARE, LOCKED, RAW = range(9070, 9076)

#: For each source, a request for a guest of it, and the code of the refusal.
IMPOSSIBLE_SOURCES: dict[str, tuple[dict[str, Any], str]] = {
    "a template that does not exist": ({"template_vmid": 9999}, "NOT_FOUND"),
    "a template that does not exist, by its name": ({"template_vmid": None, "template": "nosuch"}, "NOT_FOUND"),
    "a template of another node with local disks": ({"template_vmid": LOCAL, "node": "pve2"}, "INVALID_REQUEST"),
    "a local storage of another node": (
        {"template_vmid": SHARED, "node": "pve2", "storage": "local-lvm"},
        "INVALID_REQUEST",
    ),
    "a template with the marker of a service": ({"template_vmid": MARKED}, "VM_IDENTITY_MISMATCH"),
    "a template without a cloud-init drive, for a guest user": (
        {"template_vmid": BARE, "cloud_init": {"user": "admin", "ssh_public_keys": [KEY]}},
        "INVALID_REQUEST",
    ),
    "a template without a cloud-init drive, for a static address": (
        {"template_vmid": BARE, "network": {"mode": "static", "ipv4_cidr": "192.0.2.9/24"}},
        "INVALID_REQUEST",
    ),
    "a template whose disk is larger": ({"template_vmid": LOCAL, "disk_gib": 4}, "INVALID_REQUEST"),
    "a template without linked clones": ({"template_vmid": RAW, "full_clone": False}, "INVALID_REQUEST"),
    "a locked template": ({"template_vmid": LOCKED}, "VM_LOCKED"),
    "an ISO image that does not exist": ({**BLANK, "iso": "local:iso/nosuch.iso"}, "NOT_FOUND"),
    "an ISO image on a storage that the login may not see": ({**BLANK, "iso": "nosuch:iso/a.iso"}, "PVE_PERMISSION"),
    "a template and an ISO image": ({"template_vmid": LOCAL, "iso": "local:iso/debian-12.iso"}, "INVALID_REQUEST"),
}


@pytest.fixture(scope="module", autouse=True)
def templates(session_bench: Bench) -> None:
    pve = session_bench.pve
    for vmid in (LOCAL, SHARED, MARKED, BARE, LOCKED, RAW):
        storage = "local-lvm" if vmid == LOCAL else "ceph"
        pve.control("add_template", vmid=vmid, name=f"source-{vmid}", node="pve1", storage=storage)
    pve.control("configure", vmid=MARKED, values={"description": MARKER})
    pve.control("configure", vmid=BARE, values={"ide2": None})
    pve.control("add_storage", storage="raw", type="dir", content="images,rootdir", avail=100 * 1024**3)
    pve.control("configure", vmid=RAW, values={"scsi1": f"raw:{RAW}/vm-{RAW}-disk-1.raw"})
    pve.control("lock", vmid=LOCKED, lock="backup")


def play_refused_create(bench: Bench, play: Play, vm: dict[str, Any]) -> Attempt:
    """Run a create that must be refused without a changing request to the stand-in; return its outcome."""
    attempt, changes = bench.changing_requests(lambda: play("create", vm))
    assert (bool(attempt.code), changes) == (True, []), attempt.message
    return attempt


@pytest.mark.parametrize("source", IMPOSSIBLE_SOURCES)
def test_an_impossible_source_is_refused_before_any_change(
    bench: Bench, pve_version: str, play: Play, source: str
) -> None:
    request, code = IMPOSSIBLE_SOURCES[source]
    done = play_refused_create(bench, play, bench.vm(**request))
    assert done.code == code, (pve_version, done.message)


def test_a_vm_that_is_no_template_is_refused_as_a_source(bench: Bench, pve_version: str, play: Play) -> None:
    vm = bench.add_vm()
    by_vmid = play_refused_create(bench, play, bench.vm(template_vmid=vm["vmid"]))
    by_name = play_refused_create(bench, play, bench.vm(template_vmid=None, template=vm["name"]))
    assert (by_vmid.code, by_name.code) == ("NOT_FOUND", "NOT_FOUND"), pve_version


@pytest.mark.parametrize(
    ("os_template", "code"),
    [
        ("local:vztmpl/nosuch.tar.zst", "NOT_FOUND"),
        ("nosuch:vztmpl/a.tar.zst", "PVE_PERMISSION"),
        ("local:iso/a.iso", "INVALID_REQUEST"),
    ],
)
def test_an_impossible_os_template_is_refused_before_any_change(
    bench: Bench, pve_version: str, play: Play, os_template: str, code: str
) -> None:
    done = play_refused_create(bench, play, bench.container(node="pve1", storage="ceph", os_template=os_template))
    assert done.code == code, (pve_version, done.message)


@pytest.mark.parametrize("member", ["iso", "os_template"])
def test_an_image_on_a_storage_that_does_not_exist_is_refused_before_any_change(
    bench: Bench, pve_version: str, member: str
) -> None:
    """Only to a login with a privilege on all storages does Proxmox report that a storage does not exist."""
    bench.pve.control("grant", path="/storage", privilege="Datastore.Audit")
    container = bench.container(node="pve1", storage="ceph", os_template="nosuch:vztmpl/a.tar.zst")
    vm = bench.vm(**BLANK, iso="nosuch:iso/a.iso") if member == "iso" else container
    try:
        done = play_refused_create(bench, by_hand(bench), vm)
    finally:
        bench.pve.control("revoke", path="/storage", privilege="Datastore.Audit")
    assert (done.code, f"property {member}" in done.message) == ("NOT_FOUND", True), (pve_version, done.message)


def test_a_possible_request_for_the_same_sources_is_fulfilled(bench: Bench, pve_version: str, play: Play) -> None:
    for request in (
        {"template_vmid": SHARED, "node": "pve2", "storage": "ceph"},
        {"template_vmid": BARE, "network": {"mode": "dhcp"}},
        {"template_vmid": LOCAL, "node": "pve1"},
        {"template_vmid": LOCAL, "full_clone": False},
        {**BLANK, "iso": "local:iso/debian-12.iso"},
    ):
        done = play("create", bench.vm(**request))
        assert not done.code, (pve_version, request, done.message)
    container = bench.container(node="pve1", storage="ceph", os_template=bench.place.os_template)
    assert not play("create", container).code
