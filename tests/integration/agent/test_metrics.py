"""From Proxmox's list of VMs to FulcrumCore's metric entries, over real sockets at both ends."""

from __future__ import annotations

import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, bootstrap
from smith_lab.proxmox.certificates import make_certificates
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.simulator_world import VM

from executor.agent.heartbeat import Heartbeat
from executor.agent.metrics import (
    CPU_TIME_WINDOW,
    MAX_POSTS_PER_S,
    POSTS_SHARE_OF_A_CORE,
    SENDER_THREADS,
    VmMetrics,
    _Pace,
)
from executor.agent.state import AgentState
from executor.database import mappings
from executor.database.engine import transaction
from executor.errors import FulcrumError, FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import METRIC_TYPES
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.shared.error_codes import ErrorCode

RATES = {"vm.network.in", "vm.network.out", "vm.disk.read", "vm.disk.write"}
Row = dict[str, Any]


class Cluster(ThreadingHTTPServer):
    """A Proxmox server whose list of VMs the test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.rows: list[Row] = []
        self.status = 200
        self.calls: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        body = json.dumps({"data": self.server.rows}).encode()
        self.send_response(self.server.status, "OK" if self.server.status == 200 else "error")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """Run one Proxmox for the module; its list is emptied for every test."""
    folder = tmp_path_factory.mktemp("proxmox")
    certificate, key = make_certificates(folder, "127.0.0.1")
    server = Cluster()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server, folder / "ca.pem"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def core() -> Iterator[tuple[SimulatorThread, AdminClient, CreatedObjects]]:
    """Run one FulcrumCore for the module. It has a service for the VM 101."""
    with running_simulator() as simulator, AdminClient(simulator.url) as admin:
        world = bootstrap(admin)
        admin.create_service(
            group_id=admin.create_group(world.consumer_id, "acme"),
            service_type_id=world.service_type_id,
            agent_id=world.agent_id,
            name="web-1",
            properties=VM,
        )
        fulcrum = FulcrumClient(simulator.url, lambda: world.agent_token)
        (job,) = fulcrum.pending_jobs().jobs
        fulcrum.claim_job(job.id)
        fulcrum.complete_job(job.id, agent_instance_id=f"{world.agent_id}/101")
        yield simulator, admin, world


@pytest.fixture
def pve(cluster: tuple[Cluster, Path]) -> Cluster:
    """Return a Proxmox without VMs."""
    server = cluster[0]
    server.rows, server.status, server.calls = [], 200, []
    return server


@pytest.fixture
def metrics(
    sqlite_engine: Engine,
    cluster: tuple[Cluster, Path],
    pve: Cluster,
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
) -> VmMetrics:
    """Return metrics of an agent with one VM, 101, which is mapped."""
    simulator, _, world = core
    simulator.clear_faults()
    simulator.clear_history()
    connection = ProxmoxConnection(
        host="127.0.0.1",
        port=pve.server_address[1],
        user="smith@pve",
        token_id="job",
        token_secret=str(uuid.uuid4()),
        verify=cluster[1],
    )
    map_vm(sqlite_engine, 101)
    return VmMetrics(
        engine=sqlite_engine,
        fulcrum=FulcrumClient(simulator.url, lambda: world.agent_token),
        proxmox=ProxmoxReader(connection),
        state=AgentState(agent_id=world.agent_id),
        cluster="default",
        interval_s=60.0,
    )


@pytest.fixture
def posted(metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]) -> Callable[[], list[Row]]:
    """Return a function that reports once and returns the bodies that FulcrumCore received."""
    simulator = core[0]

    def report() -> list[Row]:
        simulator.clear_history()
        metrics.report()
        return [call["body"] for call in simulator.history(method="POST", path_end="/metric-entries")]

    return report


def map_vm(engine: Engine, vmid: int, cluster: str = "default") -> None:
    with transaction(engine) as session:
        wanted = {"service_id": str(uuid.uuid4()), "cluster": cluster, "name": f"vm-{vmid}", "node": "pve1"}
        assert mappings.insert_active(session, vmid=vmid, **wanted)


def vm(vmid: int = 101, **changed: Any) -> Row:
    """Return a VM as Proxmox lists it; a value of ... leaves the member out."""
    row: Row = {
        "id": f"qemu/{vmid}",
        "type": "qemu",
        "vmid": vmid,
        "node": "pve1",
        "name": f"vm-{vmid}",
        "status": "running",
        "template": 0,
        "cpu": 0.25,
        "maxcpu": 2,
        "mem": 512,
        "maxmem": 2048,
        "disk": 0,
        "maxdisk": 10_000,
        "netin": 1000,
        "netout": 1000,
        "diskread": 1000,
        "diskwrite": 1000,
        "uptime": 100,
    }
    return {name: value for name, value in (row | changed).items() if value is not ...}


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(str(record.msg) for record in caplog.records)


def reported_vmids(entries: list[Row]) -> set[int]:
    return {int(entry["agentInstanceId"].rpartition("/")[2]) for entry in entries}


def values(entries: list[Row]) -> dict[str, float]:
    return {entry["typeName"]: entry["value"] for entry in entries}


# --- what is measured ---------------------------------------------------------------------------------------------


def test_the_first_sample_of_a_vm_has_shares_and_no_rates(pve: Cluster, posted: Callable[[], list[Row]]) -> None:
    pve.rows = [vm()]
    assert values(posted()) == {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}


def test_an_entry_names_the_instance_and_a_constant_resource(
    pve: Cluster, metrics: VmMetrics, posted: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm(disk=5000)]
    posted()
    entries = posted()
    assert {entry["agentInstanceId"] for entry in entries} == {f"{metrics.state.agent_id}/101"}
    assert {entry["typeName"]: entry["resourceId"] for entry in entries} == {
        "vm.cpu.usage": "cpu",
        "vm.memory.usage": "memory",
        "vm.disk.usage": "disk",
        "vm.network.in": "network",
        "vm.network.out": "network",
        "vm.disk.read": "disk",
        "vm.disk.write": "disk",
    }
    assert {entry["typeName"] for entry in entries} == set(METRIC_TYPES)


def test_rates_are_computed_from_the_second_sample_on(
    pve: Cluster, metrics: VmMetrics, posted: Callable[[], list[Row]]
) -> None:
    """Of the time between the two looks, which is moved here instead of waited for."""
    pve.rows = [vm()]
    posted()
    then, row = metrics._previous_rows[101]
    metrics._previous_rows[101] = (then - 10_000.0, row)
    pve.rows = [vm(netin=1000 + 10_000, netout=1000, diskread=1000 + 20_000, diskwrite=1000 + 5000, uptime=10_100)]
    rates = {name: value for name, value in values(posted()).items() if name in RATES}
    expected = {"vm.network.in": 1.0, "vm.network.out": 0.0, "vm.disk.read": 2.0, "vm.disk.write": 0.5}
    assert rates == pytest.approx(expected, rel=0.01)


def test_a_restarted_vm_has_no_rates_until_the_next_sample(pve: Cluster, posted: Callable[[], list[Row]]) -> None:
    """Its counters began again at zero, so what is between them is no traffic, however it compares."""
    pve.rows = [vm(uptime=5000)]
    posted()
    pve.rows = [vm(uptime=3, netin=9_999_999)]
    assert not RATES & set(values(posted()))
    pve.rows = [vm(uptime=60, netin=10_000_999)]
    assert set(values(posted())) >= RATES


def test_a_counter_that_decreased_gives_no_rate(pve: Cluster, posted: Callable[[], list[Row]]) -> None:
    """A NIC was replaced, or the VM moved: the others still count."""
    pve.rows = [vm()]
    posted()
    pve.rows = [vm(netin=10, uptime=160)]
    assert RATES & set(values(posted())) == RATES - {"vm.network.in"}


def test_a_vm_that_was_missing_for_a_turn_starts_again_without_rates(
    pve: Cluster, posted: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    posted()
    pve.rows = []
    assert posted() == []
    pve.rows = [vm(netin=9_999_999, uptime=200)]
    assert not RATES & set(values(posted()))


def test_only_running_mapped_vms_are_reported_and_no_templates(
    pve: Cluster, sqlite_engine: Engine, posted: Callable[[], list[Row]]
) -> None:
    map_vm(sqlite_engine, 102)
    map_vm(sqlite_engine, 103)
    map_vm(sqlite_engine, 105)
    stopped, unknown = vm(103, status="stopped", cpu=0, mem=0, uptime=0), vm(105, status="unknown")
    pve.rows = [vm(), vm(102, template=1), stopped, vm(104), unknown]
    assert {entry["agentInstanceId"].split("/")[1] for entry in posted()} == {"101"}


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ({"maxmem": ...}, {"vm.cpu.usage": 0.25}),
        ({"maxmem": 0}, {"vm.cpu.usage": 0.25}),
        ({"cpu": ..., "mem": "1024", "maxmem": "2048"}, {"vm.cpu.usage": 0.0, "vm.memory.usage": 0.5}),
        ({"cpu": 1.2, "mem": 4096, "maxmem": 2048}, {"vm.cpu.usage": 1.0, "vm.memory.usage": 1.0}),
        ({"disk": 9, "maxdisk": 8}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25, "vm.disk.usage": 1.0}),
        ({"cpu": None}, {"vm.cpu.usage": 0.0, "vm.memory.usage": 0.25}),
        ({"netin": "lots"}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}),
        ({"disk": 2500}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25, "vm.disk.usage": 0.25}),
        ({"disk": 2500, "maxdisk": 0}, {"vm.cpu.usage": 0.25, "vm.memory.usage": 0.25}),
    ],
    ids=str,
)
def test_a_missing_value_gives_no_entry_or_0(
    pve: Cluster, posted: Callable[[], list[Row]], odd: Row, expected: dict[str, float]
) -> None:
    pve.rows = [vm(**odd)]
    assert values(posted()) == expected


# --- what is asked and sent ---------------------------------------------------------------------------------------


def test_all_vms_need_one_request_to_proxmox(
    pve: Cluster, sqlite_engine: Engine, posted: Callable[[], list[Row]]
) -> None:
    for vmid in range(200, 220):
        map_vm(sqlite_engine, vmid)
    pve.rows = [vm(vmid) for vmid in range(200, 220)]
    assert len(posted()) == 40
    assert len(pve.calls) == 1


def test_no_request_is_sent_without_mappings_or_agent_id(
    pve: Cluster, metrics: VmMetrics, sqlite_engine: Engine, posted: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    metrics.state.agent_id = ""
    assert posted() == []
    metrics.state.agent_id = str(uuid.uuid4())
    with transaction(sqlite_engine) as session:
        mappings.mark_deleted(session, mappings.active(session)[0].id, "gone")
    assert (posted(), pve.calls) == ([], [])


def test_a_vm_that_is_mapped_in_another_cluster_has_no_metrics(
    pve: Cluster, sqlite_engine: Engine, posted: Callable[[], list[Row]]
) -> None:
    """The database may be shared by agents of several clusters, which may use the same VMIDs."""
    map_vm(sqlite_engine, 102, cluster="another cluster")
    pve.rows = [vm(101), vm(102)]
    assert {body["agentInstanceId"].rpartition("/")[2] for body in posted()} == {"101"}


def test_a_metric_type_missing_in_fulcrumcore_is_not_sent_and_logged_once(
    pve: Cluster,
    posted: Callable[[], list[Row]],
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    caplog: pytest.LogCaptureFixture,
) -> None:
    admin = core[1]
    (lacking,) = (kind for kind in admin.list_all("metric-types") if kind["name"] == "vm.cpu.usage")
    admin.call("PATCH", f"/metric-types/{lacking['id']}", {"name": "renamed"})
    try:
        pve.rows = [vm()]
        assert ["vm.cpu.usage" in values(posted()) for _ in range(2)] == [False, False]
    finally:
        admin.call("PATCH", f"/metric-types/{lacking['id']}", {"name": "vm.cpu.usage"})
    assert said(caplog).count("metric_types_missing") == 1
    assert "vm.cpu.usage" in values(posted())


def test_entries_of_a_service_unknown_to_fulcrumcore_are_no_failure(
    pve: Cluster,
    posted: Callable[[], list[Row]],
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    sqlite_engine: Engine,
) -> None:
    map_vm(sqlite_engine, 404)
    pve.rows = [vm(404)]
    assert len(posted()) == 2
    assert {call["status"] for call in core[0].history(method="POST", path_end="/metric-entries")} == {404}


def test_a_vm_that_fulcrumcore_does_not_know_is_left_out_for_a_while(
    pve: Cluster, metrics: VmMetrics, posted: Callable[[], list[Row]], sqlite_engine: Engine
) -> None:
    map_vm(sqlite_engine, 404)
    pve.rows = [vm(), vm(404)]
    assert reported_vmids(posted()) == {101, 404}
    assert reported_vmids(posted()) == {101}
    metrics._unknown_until[404] = 0.0
    assert reported_vmids(posted()) == {101, 404}


def test_a_vm_with_one_accepted_sample_is_known_to_fulcrumcore(
    pve: Cluster, posted: Callable[[], list[Row]], core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    """A metric type that was deleted a moment ago is answered with 404 too."""
    pve.rows = [vm()]
    core[0].add_fault("status", status=404, path="/metric-entries", method="POST", times=1)
    assert reported_vmids(posted()) == {101}
    assert reported_vmids(posted()) == {101}


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 403}, {"kind": "status", "status": 503}])
def test_the_first_post_that_gets_no_answer_ends_the_round(
    pve: Cluster,
    metrics: VmMetrics,
    core: tuple[SimulatorThread, AdminClient, CreatedObjects],
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    """The sender threads may each have begun one post when the first answer arrives."""
    for vmid in range(500, 530):
        map_vm(metrics.engine, vmid)
    pve.rows = [vm(vmid) for vmid in range(500, 530)]
    core[0].add_fault(path="/metric-entries", method="POST", **fault)
    with pytest.raises(FulcrumUnavailable):
        metrics.report()
    posts = core[0].history(method="POST", path_end="/metric-entries")
    assert 1 <= len(posts) <= SENDER_THREADS
    assert "metrics_need_several_rounds" not in said(caplog)
    core[0].clear_faults()
    metrics.report()
    assert len(core[0].history(method="POST", path_end="/metric-entries")) >= 60


def test_an_unavailable_fulcrumcore_raises(
    pve: Cluster, metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    pve.rows = [vm()]
    core[0].add_fault("status", status=503, path="/metric-entries", method="POST")
    with pytest.raises(FulcrumUnavailable):
        metrics.report()


def test_a_proxmox_error_is_a_job_error_and_the_counters_are_kept(
    pve: Cluster, metrics: VmMetrics, posted: Callable[[], list[Row]]
) -> None:
    pve.rows = [vm()]
    posted()
    pve.status = 500
    with pytest.raises(JobError) as caught:
        metrics.report()
    assert caught.value.code is ErrorCode.PVE_API_ERROR
    pve.status = 200
    pve.rows = [vm(uptime=160)]
    assert set(values(posted())) >= RATES


def test_samples_that_do_not_fit_are_sent_first_in_the_next_turn(
    pve: Cluster,
    metrics: VmMetrics,
    posted: Callable[[], list[Row]],
    sqlite_engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FulcrumCore sets the timestamps, so no sample is sent late; no VM is left out for ever; it is logged once."""
    vmids = set(range(500, 540))
    for vmid in vmids:
        map_vm(sqlite_engine, vmid)
    pve.rows = [vm(vmid) for vmid in sorted(vmids)]
    metrics.interval_s = 0.8  # enough for about twenty of eighty posts
    turns: list[set[int]] = []
    for _ in range(60):
        turns.append(reported_vmids(posted()))
        if set().union(*turns) >= vmids:
            break
    turns = [turn for turn in turns if turn]  # a busy machine sends nothing in a short turn
    assert set().union(*turns) >= vmids, "a VM was left out in every turn"
    assert len(turns) > 1, "all of them fitted: nothing was tested"
    assert min(turns[1]) >= max(turns[0])
    assert said(caplog).count("metrics_need_several_rounds") == 1


def test_posts_are_spread_within_the_rate_limits() -> None:
    now = time.monotonic()
    many = _Pace(100_000, now + 60)
    pauses = [many.plan_next_entry() for _ in range(100)]
    assert pauses == sorted(pauses)
    assert 98 / MAX_POSTS_PER_S < pauses[-1] < 101 / MAX_POSTS_PER_S
    few = _Pace(3, now + 60)
    assert [round(few.plan_next_entry(), 2) for _ in range(3)] == [0.0, 0.05, 0.1]
    over = _Pace(10, now - 1)
    assert over.plan_next_entry() == 0.0
    assert over.is_deadline_passed()


def test_more_expensive_posts_get_larger_gaps() -> None:
    pace = _Pace(100_000, time.monotonic() + 600)
    for _ in range(10 * CPU_TIME_WINDOW):
        pace.note_cpu_time(0.01)
    pauses = [pace.plan_next_entry() for _ in range(101)]
    assert (pauses[-1] - pauses[0]) / 100 == pytest.approx(0.01 / POSTS_SHARE_OF_A_CORE, rel=0.05)
    cheap = _Pace(3, time.monotonic() + 60)
    cheap.note_cpu_time(0.0001)
    assert [round(cheap.plan_next_entry(), 2) for _ in range(3)] == [0.0, 0.05, 0.1]


def test_heartbeats_polls_and_job_requests_pass_stalled_metric_posts(
    pve: Cluster, metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> None:
    simulator = core[0]
    simulator.add_fault("delay", path="/metric-entries", method="POST", delay_s=120)
    pve.rows = [vm()]
    reporting = threading.Thread(target=metrics.report)
    reporting.start()
    try:
        limit = time.monotonic() + 30
        while not any(thread.name.startswith("metric") for thread in threading.enumerate()):
            assert time.monotonic() < limit, "no post was started"
            time.sleep(0.01)
        Heartbeat(fulcrum=metrics.fulcrum, state=metrics.state).send()
        assert metrics.fulcrum.pending_jobs().jobs == []
        with pytest.raises(FulcrumError):  # there is no such job: FulcrumCore has answered the report
            metrics.fulcrum.complete_job(str(uuid.uuid4()))
        assert metrics.state.heartbeat_at > 0
        assert reporting.is_alive(), "the posts were not stalled"
    finally:
        simulator.clear_faults()
        reporting.join()


def test_a_stopping_agent_sends_nothing(pve: Cluster, metrics: VmMetrics, posted: Callable[[], list[Row]]) -> None:
    pve.rows = [vm()]
    metrics.state.stopping.set()
    assert posted() == []
