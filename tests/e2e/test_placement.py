"""The placement of VMs on a cluster of two nodes: first the placer alone against the stand-in, then jobs end to end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import LabSystem

from executor.errors import JobError
from executor.placement.choice import PlacementRequest
from executor.placement.decide import LOAD_UNKNOWN_TEXT
from executor.placement.placer import Placer
from executor.placement.snapshot import MAX_SNAPSHOT_AGE_S
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings

GIB = 1024**3
SHARED = 9100  #: a template whose volumes are all on storage that both nodes share
MakeLab = Callable[..., LabSystem]


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("placement")) as running:
        running.control("add_template", vmid=SHARED, name="shared", node="pve1", storage="ceph")
        running.control("add_template", vmid=9101, name="debian-12-b", node="pve2")
        running.control("configure", vmid=9101, values={"tags": "image-trixie"})
        running.control("grant", path="/", privilege="Sys.Audit")
        running.control("grant", path="/nodes", privilege="Sys.Audit")  # shows the load of the nodes
        yield running


@pytest.fixture(autouse=True)
def clear_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pve" in request.fixturenames:
        request.getfixturevalue("pve").control("clear_faults")


class Clock:
    """A clock that shows the time that the test has set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_placer(pve: ProxmoxStandIn, clock: Clock | None = None, **settings: str) -> Placer:
    environ = pve.env() | {"PROXMOX_STORAGE": "ceph", "PROXMOX_ANY_TEMPLATE": "true"} | settings
    loaded = load_settings(env_file=None, environ=environ)
    return Placer(ProxmoxReader(ProxmoxConnection.from_settings(loaded)), loaded, clock=clock or Clock())


def placement_request(vmid: int = 150_000, image: str = "shared", **more: Any) -> PlacementRequest:
    defaults: dict[str, Any] = {"memory_mib": 4096, "cores": 2, "bridge": "vmbr0"}
    return PlacementRequest(vmid=vmid, image=image, **(defaults | more))


def test_a_vm_is_placed_on_the_node_with_more_free_memory(pve: ProxmoxStandIn) -> None:
    pve.control("node", node="pve1", maxmem=16 * GIB, mem=12 * GIB)
    with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
        assert (placed.node, placed.template_vmid) == ("pve2", SHARED)
        assert placed.reason.startswith("pve2: ")


def test_no_vm_is_placed_on_a_node_in_maintenance_or_offline(pve: ProxmoxStandIn) -> None:
    pve.control("node", node="pve2", maintenance=True)
    with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
        assert placed.node == "pve1"
        assert "not pve2: is in maintenance" in placed.reason
    pve.control("node", node="pve2", online=False)
    with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
        assert "not pve2: is offline" in placed.reason


def test_a_node_in_maintenance_is_known_without_the_privilege_to_read_the_ha_managers_state(
    pve: ProxmoxStandIn,
) -> None:
    pve.control("revoke", path="/", privilege="Sys.Audit")
    try:
        pve.control("node", node="pve1", maintenance=True)
        with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
            assert placed.node == "pve2"
    finally:
        pve.control("grant", path="/", privilege="Sys.Audit")


@pytest.mark.parametrize("image", ["shared", "debian-12-b", "trixie", "configured"])
def test_a_template_is_found_while_no_node_sends_statistics(pve: ProxmoxStandIn, image: str) -> None:
    pve.control("statistics", silent_nodes=["pve1", "pve2"])
    expected = SHARED if image in {"shared", "configured"} else 9101
    with make_placer(pve, PROXMOX_TEMPLATES=f"configured={SHARED}").allocate_for_new_vm(
        placement_request(image=image)
    ) as placed:
        assert placed.template_vmid == expected


def test_a_template_that_may_be_on_an_offline_node_is_not_called_missing(pve: ProxmoxStandIn) -> None:
    pve.control("node", node="pve2", online=False)
    with (
        pytest.raises(JobError, match=r"^NODE_DOWN: "),
        make_placer(pve).allocate_for_new_vm(placement_request(image="debian-12-b")),
    ):
        pass


def test_the_memory_of_a_new_vm_counts_until_the_lists_show_its_size(pve: ProxmoxStandIn) -> None:
    for node in ("pve1", "pve2"):
        pve.control("node", node=node, maxmem=16 * GIB, mem=0)
    clock = Clock()
    shared_placer = make_placer(pve, clock)
    with shared_placer.allocate_for_new_vm(placement_request(vmid=150_777, memory_mib=8192)) as placed:
        first = placed.node
        pve.control("statistics", broadcast_interval_s=10)
        pve.control(
            "add", vmid=150_777, name="new", node=first, config={"memory": "8192", "tags": "smith"}, is_new=True
        )
    clock.now += MAX_SNAPSHOT_AGE_S + 1
    try:
        with shared_placer.allocate_for_new_vm(placement_request(memory_mib=8192)) as placed:
            assert placed.node != first
    finally:
        pve.control("remove", vmid=150_777)


def test_a_vm_is_placed_on_the_node_whose_local_storage_has_its_template(pve: ProxmoxStandIn) -> None:
    pve.control("node", node="pve1", cpu=0.9)
    local_storage_placer = make_placer(pve, PROXMOX_STORAGE="local-lvm")
    with local_storage_placer.allocate_for_new_vm(placement_request(image="debian-12")) as placed:
        assert (placed.node, placed.template_vmid) == ("pve1", 9000)
    with local_storage_placer.allocate_for_new_vm(placement_request(image="trixie")) as placed:
        assert (placed.node, placed.template_vmid) == ("pve2", 9101)


def test_if_the_only_allowed_node_cannot_use_the_template_the_placement_fails_with_not_found(
    pve: ProxmoxStandIn,
) -> None:
    pve2_placer = make_placer(pve, PROXMOX_NODES="pve2")
    expect_refusal = pytest.raises(JobError, match="NOT_FOUND: no clone of debian-12 can be created on pve2")
    with expect_refusal, pve2_placer.allocate_for_new_vm(placement_request(image="debian-12", node="pve2")):
        pytest.fail("a node was chosen")
    with pve2_placer.allocate_for_new_vm(placement_request(node="pve2")) as placed:
        assert (placed.node, placed.template_vmid) == ("pve2", SHARED)


def test_a_vm_without_a_template_is_placed_where_its_volume_is(pve: ProxmoxStandIn) -> None:
    """An ISO image or a container's template may be on the local storage of one node."""
    iso = placement_request(image="", volume="local:iso/debian-12.iso")
    pve.control("node", node="pve1", cpu=0.9)
    with make_placer(pve).allocate_for_new_vm(iso) as placed:
        assert (placed.node, placed.template_vmid) == ("pve2", 0)
    pve.fail("GET", "/nodes/pve2/storage/local/content", status=403, text="Permission check failed", times=-1)
    with make_placer(pve).allocate_for_new_vm(iso) as placed:
        assert placed.node == "pve2"  # a volume that the token may not see may exist
    missing = placement_request(image="", volume="local:vztmpl/none.tar.zst")
    expect_refusal = pytest.raises(JobError, match=r"NOT_FOUND: .* has no access to local:vztmpl/none\.tar\.zst")
    pve.control("clear_faults")
    with expect_refusal, make_placer(pve).allocate_for_new_vm(missing):
        pytest.fail("a node was chosen")
    with make_placer(pve).allocate_for_new_vm(placement_request(image="")) as placed:
        assert placed.node in ("pve1", "pve2")


def test_the_placement_of_a_vm_that_fits_on_no_node_fails_with_capacity(pve: ProxmoxStandIn) -> None:
    for node in ("pve1", "pve2"):
        pve.control("node", node=node, maxmem=8 * GIB, mem=6 * GIB)
    expect_refusal = pytest.raises(
        JobError, match="CAPACITY: no node fits a VM with 4096 MiB and 2 cores: pve1 has 2048 MiB"
    )
    with expect_refusal, make_placer(pve).allocate_for_new_vm(placement_request()):
        pytest.fail("a node was chosen")
    with make_placer(pve, SMITH_MEMORY_OVERCOMMIT="2").allocate_for_new_vm(placement_request()) as placed:
        assert placed.node in ("pve1", "pve2")


def test_a_vm_that_is_newer_than_the_lists_cannot_grow_beyond_its_node(pve: ProxmoxStandIn) -> None:
    for node in ("pve1", "pve2"):
        pve.control("node", node=node, maxmem=16 * GIB, mem=0, maxcpu=4)
    clock = Clock()
    shared_placer = make_placer(pve, clock)
    with shared_placer.allocate_for_new_vm(placement_request()):
        pass  # the lists have been read
    clock.now += MAX_SNAPSHOT_AGE_S / 2
    pve.control("add", vmid=152_100, name="new", node="pve1", config={"memory": "1024", "cores": "1", "tags": "smith"})
    try:
        for memory_mib, cores in ((17 * 1024, 1), (1024, 17)):
            with (
                pytest.raises(JobError, match="CAPACITY: pve1 has"),
                shared_placer.allocate_for_growth(152_100, memory_mib, cores),
            ):
                pytest.fail("the VM was allowed to grow")
        with (
            shared_placer.allocate_for_growth(152_100, 12 * 1024, 2),
            shared_placer.allocate_for_new_vm(placement_request(memory_mib=8192)) as placed,
        ):
            assert placed.node == "pve2", "the new size counts during the update"
        with shared_placer.allocate_for_growth(152_100, 512, 1), shared_placer.allocate_for_growth(152_999, 10**6, 1):
            pass  # a VM that does not grow, and one that Proxmox does not list
    finally:
        pve.control("remove", vmid=152_100)


def test_a_vm_is_placed_on_the_only_node_with_its_bridge(pve: ProxmoxStandIn) -> None:
    pve.fail("GET", "/nodes/pve2/network", status=403, text="Permission check failed", times=-1)
    with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
        assert placed.node == "pve1"
        assert "not pve2: has no bridge vmbr0" in placed.reason


def test_without_the_privilege_to_see_the_load_the_templates_node_is_chosen(pve: ProxmoxStandIn) -> None:
    pve.control("node", node="pve1", maxmem=16 * GIB, mem=12 * GIB)
    for path in ("/", "/nodes"):
        pve.control("revoke", path=path, privilege="Sys.Audit")
    try:
        with make_placer(pve).allocate_for_new_vm(placement_request()) as placed:
            assert placed.node == "pve1"
            assert LOAD_UNKNOWN_TEXT in placed.reason
    finally:
        for path in ("/", "/nodes"):
            pve.control("grant", path=path, privilege="Sys.Audit")


def test_creates_in_progress_count_until_a_newer_list_shows_their_vms(pve: ProxmoxStandIn) -> None:
    for node in ("pve1", "pve2"):
        pve.control("node", node=node, maxmem=16 * GIB, mem=8 * GIB)
    clock = Clock()
    shared_placer = make_placer(pve, clock)
    with ExitStack() as in_progress:
        nodes = [
            in_progress.enter_context(shared_placer.allocate_for_new_vm(placement_request(vmid=150_000 + n))).node
            for n in range(4)
        ]
        assert Counter(nodes) == {"pve1": 2, "pve2": 2}
        with pytest.raises(JobError, match="CAPACITY"):
            in_progress.enter_context(shared_placer.allocate_for_new_vm(placement_request(vmid=150_004)))
    with pytest.raises(JobError, match="CAPACITY"), shared_placer.allocate_for_new_vm(placement_request(vmid=150_005)):
        pytest.fail("the list that was read before the creates ended cannot show their VMs")
    clock.now += MAX_SNAPSHOT_AGE_S + 1  # the next list shows that no VM was created
    with shared_placer.allocate_for_new_vm(placement_request(vmid=150_006)) as placed:
        assert placed.node in ("pve1", "pve2")


def test_concurrent_placements_spread_over_the_nodes_and_read_the_lists_once(pve: ProxmoxStandIn) -> None:
    shared_placer = make_placer(pve)
    ready, vms_by_node = threading.Barrier(8), Counter[str]()
    pve.reset_request_log()

    def allocate(number: int) -> None:
        ready.wait()
        with shared_placer.allocate_for_new_vm(placement_request(vmid=151_000 + number)) as placed:
            vms_by_node[placed.node] += 1
            ready.wait()

    threads = [threading.Thread(target=allocate, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vms_by_node == {"pve1": 4, "pve2": 4}
    asked = Counter(entry["path"] for entry in pve.request_log())
    assert asked["/nodes"] == 1
    lists = [entry["params"]["type"] for entry in pve.request_log() if entry["path"] == "/cluster/resources"]
    assert sorted(lists) == ["node", "storage", "vm"]


def test_placements_at_the_same_time_share_one_attempt_to_reach_proxmox(pve: ProxmoxStandIn) -> None:
    pve.fail("GET", "/nodes", status=503, text="overloaded", delay_s=1, times=-1)

    def request_count_of(placements: int) -> int:
        shared_placer, codes = make_placer(pve), Counter[str]()
        ready = threading.Barrier(placements)
        pve.reset_request_log()

        def allocate(number: int) -> None:
            ready.wait()
            try:
                with shared_placer.allocate_for_new_vm(placement_request(vmid=153_000 + number)):
                    pytest.fail("a node was chosen")
            except JobError as error:
                codes[error.code] += 1

        threads = [threading.Thread(target=allocate, args=(number,)) for number in range(placements)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(codes) == 1
        assert codes.total() == placements
        return len(pve.request_log())

    assert request_count_of(16) == request_count_of(1) > 0


def test_a_placement_that_may_not_wait_ends_as_cancelled_while_proxmox_is_unavailable(pve: ProxmoxStandIn) -> None:
    pve.fail("GET", "/nodes", status=503, text="overloaded", delay_s=3, times=-1)
    expect_cancellation = pytest.raises(JobError, match="CANCELLED")
    with expect_cancellation, make_placer(pve).allocate_for_new_vm(placement_request(), may_wait=lambda: False):
        pytest.fail("a node was chosen")


def test_a_vm_that_exists_already_stays_on_its_node(pve: ProxmoxStandIn) -> None:
    pve.control("add", vmid=152_000, name="partial-clone", node="pve2", config={"memory": "512"})
    pve.control("node", node="pve2", maintenance=True)
    try:
        with make_placer(pve).allocate_for_new_vm(placement_request(vmid=152_000)) as placed:
            assert (placed.node, placed.reason) == ("pve2", "pve2: the VM exists there already")
    finally:
        pve.control("remove", vmid=152_000)


def test_a_burst_spreads_over_the_nodes_and_every_result_has_its_placement(make_lab: MakeLab) -> None:
    lab = make_lab(PROXMOX_TEMPLATES="", PROXMOX_ANY_TEMPLATE="true", PROXMOX_STORAGE="ceph", SMITH_CONCURRENCY="4")
    lab.proxmox.control("add_template", vmid=SHARED, name="cloud", node="pve1", storage="ceph")
    lab.proxmox.control("configure", vmid=SHARED, values={"tags": "image-debian-13"})
    lab.proxmox.control("grant", path="/nodes", privilege="Sys.Audit")
    lab.start_executor()

    services = [lab.order_service(f"spread-{number}", image="debian-13") for number in range(6)]

    assert [lab.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 6
    nodes = Counter(lab.guests_of(service_id)[0]["node"] for service_id in services)
    assert set(nodes) == {"pve1", "pve2"}
    assert max(nodes.values()) <= 4
    for service_id in services:
        placement = lab.run_smith_json("jobs", "show", lab.last_job(service_id)["id"])["result"]["placement"]
        assert placement["node"] == lab.guests_of(service_id)[0]["node"]
        assert placement["template_vmid"] == SHARED
        assert placement["reason"].startswith(placement["node"])
    assert len(lab.log_events("vm_placed")) >= 6
    templates = lab.run_smith_json("templates", "list")
    shared = next(row for row in templates if row["vmid"] == SHARED)
    assert shared["images"] == ["cloud", "debian-13"]
    assert (shared["storages"], shared["reachable_from"], shared["cloud_init"]) == (["ceph"], ["pve1", "pve2"], True)
    local_template = next(row for row in templates if row["vmid"] == 9001)
    assert local_template["reachable_from"] == ["pve2"]
