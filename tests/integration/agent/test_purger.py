"""Which VMs pending deletion get a local delete job: only those whose service has ended in FulcrumCore.

A service has ended if it is in a terminal state of its type, or if FulcrumCore does not know it. A local job is added
by the agent: FulcrumCore does not know the job and gets no report. A VM is pending deletion during its grace period.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine, select
from support.simulator_world import World

from executor.agent.purger import VmPurger
from executor.agent.refusals import Http403Counter
from executor.agent.state import AgentState
from executor.database import job_queue, mappings
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.errors import FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.model import ReportState

#: Times of deletions, in seconds since 1970.
PAST, FUTURE = 1_000_000_000, 4_000_000_000


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as running:
        yield running


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


@pytest.fixture
def engine(sqlite_engine: Engine) -> Engine:
    return sqlite_engine


@pytest.fixture
def purger(world: World, engine: Engine) -> VmPurger:
    """Return the purger. Its waits take no time, but they advance the clock by which refusals are counted."""
    state = AgentState()
    state.agent_id = world.ids.agent_id
    client = FulcrumClient(world.sim.url, lambda: world.ids.agent_token, read_timeout_s=5)
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    return VmPurger(
        engine=engine,
        fulcrum=client,
        state=state,
        http_403_counter=Http403Counter(fulcrum=client, clock=lambda: now[0]),
        cluster="c",
        job_timeout_s=300,
        interval_s=3600,
        wait=wait,
    )


def store_vm_pending_deletion(engine: Engine, service_id: str, delete_at: int = PAST, vmid: int = 100_000) -> None:
    with transaction(engine) as session:
        mapping = mappings.reserve(session, service_id=service_id, cluster="c", vmid=vmid, name="web")
        assert mapping is not None
        mappings.apply_result(session, mapping.id, {"status": "stopped", "node": "pve1", "delete_at": delete_at})


def list_jobs(engine: Engine) -> list[Job]:
    with read_only_session(engine) as session:
        return list(session.scalars(select(Job)))


def create_ended_service(world: World) -> str:
    """Create a service, and delete it in FulcrumCore; return its id."""
    service = world.created()
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Deleted"
    return str(service["id"])


def test_a_vm_whose_service_has_ended_gets_one_local_delete_job(world: World, engine: Engine, purger: VmPurger) -> None:
    service_id = create_ended_service(world)
    store_vm_pending_deletion(engine, service_id)
    purger.add_jobs_to_delete_expired_vms()
    purger.add_jobs_to_delete_expired_vms()
    (job,) = list_jobs(engine)
    assert (job.action, job.service_id, job.status, job.report_state) == ("delete", service_id, "pending", "local")
    assert purger.state.dispatch_requested.is_set()


def test_a_vm_within_its_grace_period_gets_no_delete_job(world: World, engine: Engine, purger: VmPurger) -> None:
    store_vm_pending_deletion(engine, create_ended_service(world), FUTURE)
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


def test_a_vm_whose_service_has_not_ended_gets_no_delete_job(world: World, engine: Engine, purger: VmPurger) -> None:
    store_vm_pending_deletion(engine, world.created()["id"])
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


def test_a_service_that_fulcrum_does_not_know_has_ended(engine: Engine, purger: VmPurger) -> None:
    store_vm_pending_deletion(engine, "99999999-0000-4000-8000-000000000000")
    purger.add_jobs_to_delete_expired_vms()
    assert len(list_jobs(engine)) == 1


def test_a_single_403_is_no_proof_that_the_service_has_ended(world: World, engine: Engine, purger: VmPurger) -> None:
    """FulcrumCore answers 403 also while its database is down."""
    service = world.created()
    store_vm_pending_deletion(engine, service["id"])
    world.sim.add_fault("status", method="GET", path=f".*/services/{service['id']}$", times=1, status=403)
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


def test_several_403_for_a_service_delete_no_vm_if_fulcrumcore_then_returns_the_service(
    world: World, engine: Engine, purger: VmPurger
) -> None:
    """While FulcrumCore's database fails over, it may refuse a service several times and accept the token."""
    service = world.created()
    store_vm_pending_deletion(engine, service["id"])
    world.sim.add_fault("status", method="GET", path=f".*/services/{service['id']}$", times=5, status=403)
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


def test_a_refused_service_is_read_again_until_it_counts_as_deleted(
    world: World, engine: Engine, purger: VmPurger
) -> None:
    unknown_ids = ["99999999-0000-4000-8000-000000000001", "99999999-0000-4000-8000-000000000002"]
    for number, service_id in enumerate(unknown_ids):
        store_vm_pending_deletion(engine, service_id, vmid=100_001 + number)
    ended_service = create_ended_service(world)
    store_vm_pending_deletion(engine, ended_service)
    job_counts: list[int] = []  #: the number of delete jobs at each wait
    wait = purger.wait
    purger.wait = lambda seconds: (job_counts.append(len(list_jobs(engine))), wait(seconds))
    purger.add_jobs_to_delete_expired_vms()
    assert job_counts == [1, 1, 1], "the VM of the ended service does not wait for the others"
    assert {job.service_id for job in list_jobs(engine)} == {*unknown_ids, ended_service}


def test_an_execution_with_a_short_interval_does_not_wait_longer_than_the_interval(
    engine: Engine, purger: VmPurger
) -> None:
    purger.interval_s = 1
    store_vm_pending_deletion(engine, "99999999-0000-4000-8000-000000000000")
    waits_s: list[float] = []
    wait = purger.wait
    purger.wait = lambda seconds: (waits_s.append(seconds), wait(seconds))
    executions = 0
    while not list_jobs(engine):
        purger.add_jobs_to_delete_expired_vms()
        executions += 1
    assert set(waits_s) == {1}
    assert executions > 20


def test_a_stopping_agent_does_not_read_a_refused_service_again(engine: Engine, purger: VmPurger) -> None:
    store_vm_pending_deletion(engine, "99999999-0000-4000-8000-000000000000")
    purger.wait = lambda _seconds: purger.state.stopping.set()
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


@pytest.mark.parametrize("status", [403, 500, 502])
def test_no_delete_job_is_added_while_fulcrumcore_is_down(
    world: World, engine: Engine, purger: VmPurger, status: int
) -> None:
    store_vm_pending_deletion(engine, create_ended_service(world))
    world.sim.add_fault("status", method="GET", path=".*", times=100, status=status)
    with pytest.raises(FulcrumUnavailable):
        purger.add_jobs_to_delete_expired_vms()
    world.sim.clear_faults()
    assert list_jobs(engine) == []


@pytest.mark.parametrize("status", [400, 404])
def test_an_unexpected_status_is_no_proof_that_the_service_has_ended(
    world: World, engine: Engine, purger: VmPurger, status: int
) -> None:
    store_vm_pending_deletion(engine, create_ended_service(world))
    world.sim.add_fault("status", method="GET", path=".*/services/.*", times=2, status=status)
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []


def test_a_service_has_ended_in_every_terminal_state_of_its_type(
    world: World, engine: Engine, purger: VmPurger
) -> None:
    service = world.order_with({"properties": {"a": {"type": "string"}}}, {"a": "x"}).json()
    world.agent.complete(world.claimed(service), agentInstanceId="x/100000")
    store_vm_pending_deletion(engine, service["id"])
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []
    world.admin.delete_service(service["id"])
    world.agent.complete(world.claimed(service))
    assert world.service(service)["status"] == "Gone"
    purger.add_jobs_to_delete_expired_vms()
    assert len(list_jobs(engine)) == 1


def test_one_service_that_fulcrum_cannot_return_does_not_delay_the_deletion_of_other_vms(
    world: World, engine: Engine, purger: VmPurger
) -> None:
    unreadable_service, ended_service = create_ended_service(world), create_ended_service(world)
    store_vm_pending_deletion(engine, unreadable_service, PAST, vmid=100_000)
    store_vm_pending_deletion(engine, ended_service, PAST + 1, vmid=100_001)
    world.sim.add_fault("status", method="GET", path=f".*/services/{unreadable_service}$", times=100, status=500)
    purger.add_jobs_to_delete_expired_vms()
    world.sim.clear_faults()
    assert [job.service_id for job in list_jobs(engine)] == [ended_service]


def test_many_vms_that_are_kept_do_not_delay_the_deletion_of_a_later_one(
    world: World, engine: Engine, purger: VmPurger
) -> None:
    """There are more kept VMs than one query returns. Some of them are due at the same time."""
    world.sim.add_fault("status", method="GET", path=".*/services/99999999-.*", times=1000, status=400)
    for number in range(mappings.MAX_DUE_MAPPINGS + 5):
        kept_service_id = f"99999999-0000-4000-8000-{number:012}"
        store_vm_pending_deletion(engine, kept_service_id, PAST + number // 50, vmid=100_001 + number)
    ended_service = create_ended_service(world)
    store_vm_pending_deletion(engine, ended_service, PAST + 100, vmid=100_000)
    purger.add_jobs_to_delete_expired_vms()
    world.sim.clear_faults()
    assert [job.service_id for job in list_jobs(engine)] == [ended_service]


def test_a_local_job_is_never_reported(world: World, engine: Engine, purger: VmPurger) -> None:
    store_vm_pending_deletion(engine, create_ended_service(world))
    purger.add_jobs_to_delete_expired_vms()
    (job,) = list_jobs(engine)
    with transaction(engine) as session:
        job_queue.cancel_or_request_cancel(session, job.id)
    (job,) = list_jobs(engine)
    assert (job.status, job.report_state) == ("failed", ReportState.LOCAL)
    purger.add_jobs_to_delete_expired_vms()  # adds a new job: only `smith mappings recall` keeps the VM
    assert [row.status for row in list_jobs(engine)] == ["failed", "pending"]


def test_no_delete_job_is_added_before_the_agent_id_is_known(engine: Engine, purger: VmPurger) -> None:
    purger.state.agent_id = ""
    store_vm_pending_deletion(engine, "99999999-0000-4000-8000-000000000000")
    purger.add_jobs_to_delete_expired_vms()
    assert list_jobs(engine) == []
