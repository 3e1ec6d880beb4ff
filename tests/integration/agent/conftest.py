"""Fixtures of the agent's tests: parts of an agent on an empty SQLite database, and FulcrumCore simulators.

The tests of one module share a simulator. There are three: `sim` for `outbox` and `claims`, `sim_of_parts` for `parts`,
and `core` for `metrics`. pytest starts each of them when a test of the module first needs it.
"""

from __future__ import annotations

import shutil
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from smith_lab.fulcrum_setup import AdminClient, CreatedObjects, bootstrap
from smith_lab.proxmox.certificates import make_certificates
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.agent_parts import AgentParts
from support.claims_world import Claims
from support.databases import migrated_sqlite_file
from support.metrics_world import Cluster, Row, map_vm
from support.outbox_world import Outbox
from support.scheduled_jobs import WITHIN_S, MakeScheduler
from support.simulator_world import VM, World

from executor.agent.critical_job import CriticalJob
from executor.agent.metrics import (
    VmMetrics,
)
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.database.engine import open_engine
from executor.fulcrum.client import FulcrumClient
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection


@pytest.fixture(scope="module")
def sim_of_parts() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def parts(sim_of_parts: SimulatorThread, sqlite_engine: Engine, tmp_path: Path) -> Iterator[AgentParts]:
    """Return a dispatcher with its worker and runner. At the end, wait until no job runs."""
    world = World(sim_of_parts)
    parts = AgentParts(tmp_path, sqlite_engine, world)
    yield parts
    (tmp_path / "go").touch()  # the playbooks of some tests wait for this file
    parts.wait_until_idle()
    world.close()


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with all migrations. Each test gets a copy, which is faster than migrating a new file."""
    return migrated_sqlite_file(tmp_path_factory.mktemp("outbox"))


@pytest.fixture
def outbox(sim: SimulatorThread, migrated_file: Path, tmp_path: Path) -> Iterator[Outbox]:
    """Return ended jobs with due reports in an empty database, and the FulcrumCore simulator that gets them."""
    shutil.copyfile(migrated_file, tmp_path / "smith.db")
    engine, world = open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), World(sim)
    yield Outbox(world, engine)
    world.close()
    engine.dispose()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """Run one Proxmox server for the module. The fixture `pve` empties its list of VMs for each test."""
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
    """Run one FulcrumCore simulator for the module. Its only service has the VM 101."""
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
    """Return the module's Proxmox server, without VMs and without recorded requests."""
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
    """Return the critical job that reports metrics, for an agent with one mapped VM, 101."""
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
def post_metrics(
    metrics: VmMetrics, core: tuple[SimulatorThread, AdminClient, CreatedObjects]
) -> Callable[[], list[Row]]:
    """Return a function that reports once and returns the bodies that FulcrumCore received."""
    simulator = core[0]

    def report() -> list[Row]:
        simulator.clear_history()
        metrics.report()
        return [call["body"] for call in simulator.history(method="POST", path_end="/metric-entries")]

    return report


@pytest.fixture
def claims(sim: SimulatorThread, migrated_file: Path, tmp_path: Path) -> Iterator[Claims]:
    shutil.copyfile(migrated_file, tmp_path / "smith.db")
    engine, world = open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), World(sim)
    yield Claims(world, engine)
    world.close()
    engine.dispose()


@pytest.fixture
def make_scheduler(sqlite_engine: Engine) -> Iterator[MakeScheduler]:
    """Return a function that starts a scheduler. All these schedulers are stopped at the end of the test.

    In the parameters of a test, this fixture follows the fixture of the engine. pytest ends the last fixture first, so
    the schedulers are stopped before the connections of the engine are closed.
    """
    schedulers: list[Scheduler] = []

    def make(*jobs: CriticalJob, engine: Engine = sqlite_engine) -> Scheduler:
        schedulers.append(Scheduler(engine, jobs))
        schedulers[-1].start()
        return schedulers[-1]

    yield make
    for scheduler in schedulers:
        scheduler.stop(timeout_s=WITHIN_S)
