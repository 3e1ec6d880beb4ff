"""Parts of two agents that share one PostgreSQL database.

Each report is sent by one of the agents only, and the allocations and clones of both agents count against one limit. An
allocation is the memory and cores that a VM needs on its node, until Proxmox's lists show the VM.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.simulator.control import SimulatorThread
from smith_lab.system import wait_for
from sqlalchemy import Engine, event, select, text
from sqlalchemy.orm import Session
from support.databases import PostgresCluster, new_job, row, submit
from support.simulator_world import World

from executor.agent.refusals import Http403Counter
from executor.agent.reporter import REPORT_CLAIM_S, SHARED_BATCH_SIZE, Reporter
from executor.agent.state import AgentState
from executor.database import allocations, job_queue, nodes, notifications
from executor.database.allocations import AllocationOwner
from executor.database.engine import open_engine, transaction
from executor.database.nodes import AgentProcess
from executor.database.notifications import NotificationListener
from executor.errors import DatabaseError, DatabaseUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult, ReportState
from executor.placement.choice import PlacementRequest
from executor.placement.clone_limit import SUCCESSES_PER_RAISE, CloneLimit
from executor.placement.placer import Placer
from executor.placement.shared_allocations import SharedAllocations
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings
from executor.shared.error_codes import ErrorCode

#: More reports than both agents together send in one round. In a round, a reporter sends the reports that are due.
JOB_COUNT = 2 * SHARED_BATCH_SIZE + 6
GIB = 1024**3
LOCK_TIMED_OUT = JobResult(
    succeeded=False,
    code=ErrorCode.VM_LOCKED,
    detail="can't lock file '/var/lock/pve-manager/pve-storage-ceph' - got timeout",
)
FAILED = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="the storage is full")


@pytest.fixture
def world(sim_of_parts: SimulatorThread) -> Iterator[World]:
    world = World(sim_of_parts)
    yield world
    world.close()


def store_ended_jobs(engine: Engine, world: World, count: int) -> list[int]:
    """Store failed jobs that FulcrumCore still lists as processing; return the ids of their rows."""
    job_ids = []
    for number in range(count):
        job = world.claimed(world.order(world.group(f"group-{number}"), name=f"web-{number}"))
        with transaction(engine) as session:
            submitted = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action=job["action"])
            job_id = job_queue.submit(session, submitted)
            claimed = job_queue.claim(session, "me", lease_s=30)
            assert claimed is not None
            job_queue.finish(session, job_queue.lease_of(claimed), FAILED)
        assert job_id is not None
        job_ids.append(job_id)
    return job_ids


def make_reporter(engine: Engine, world: World) -> Reporter:
    client = FulcrumClient(world.sim.url, lambda: world.ids.agent_token)
    state = AgentState(agent_id=world.ids.agent_id)
    return Reporter(engine=engine, fulcrum=client, state=state, http_403_counter=Http403Counter(fulcrum=client))


def test_two_reporters_send_each_report_once(postgres_engine: Engine, world: World) -> None:
    job_ids = store_ended_jobs(postgres_engine, world, JOB_COUNT)
    reporters = [make_reporter(postgres_engine, world) for _ in range(2)]
    threads = [threading.Thread(target=reporter.flush, args=(60.0,)) for reporter in reporters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = [call for call in world.sim.history(method="POST") if call["path"].endswith("/fail")]
    assert sorted(call["status"] for call in calls) == [204] * JOB_COUNT
    assert {row(postgres_engine, job_id).report_state for job_id in job_ids} == {ReportState.REPORTED}


def test_reports_that_a_round_does_not_send_may_be_sent_by_another_agent(postgres_engine: Engine, world: World) -> None:
    """After the first report that FulcrumCore does not answer, the round sends no further reports."""
    job_ids = store_ended_jobs(postgres_engine, world, 8)
    reporter_without_answers = make_reporter(postgres_engine, world)
    reporter_without_answers.fulcrum = FulcrumClient("http://127.0.0.1:9", lambda: "token")
    reporter_without_answers.send_due_reports()
    assert make_reporter(postgres_engine, world).flush(60.0) is True
    states = [row(postgres_engine, job_id).report_state for job_id in job_ids]
    assert states.count(ReportState.REPORTED) >= len(job_ids) - 4, (
        "all reports except those that the first reporter had begun to send"
    )


def test_a_round_that_was_suspended_leaves_its_reports_to_another_agent(postgres_engine: Engine, world: World) -> None:
    """Its claim of the reports may have expired. So another agent may have sent them, and jobs may have new results."""
    job_ids = store_ended_jobs(postgres_engine, world, 3)
    suspended_reporter = make_reporter(postgres_engine, world)
    times = iter([1000.0])
    suspended_reporter.clock = lambda: next(times, 1000.0 + REPORT_CLAIM_S)  # suspended until its claim has ended
    suspended_reporter.send_due_reports()
    assert [call for call in world.sim.history(method="POST") if call["path"].endswith("/fail")] == []
    assert make_reporter(postgres_engine, world).flush(60.0) is True
    assert {row(postgres_engine, job_id).report_state for job_id in job_ids} == {ReportState.REPORTED}


# --- placements and clones --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    folder: Path = tmp_path_factory.mktemp("shared-placement")
    with running_stand_in(folder=folder) as running:
        running.control("add_template", vmid=9100, name="shared", node="pve1", storage="ceph")
        running.control("node", node="pve1", maxmem=8 * GIB, mem=0)
        running.control("node", node="pve2", online=False)
        for path in ("/", "/nodes"):
            running.control("grant", path=path, privilege="Sys.Audit")  # allows the load of the nodes to be read
        yield running


def make_shared_allocations(engine: Engine, boot_id: str) -> SharedAllocations:
    """Register a new agent process; return the allocations as this process sees them."""
    with transaction(engine) as session:
        nodes.store_agent_start(session, AgentProcess(boot_id=boot_id, host=boot_id, pid=1, version="1", concurrency=4))
    return SharedAllocations(
        engine=engine, owner=AllocationOwner(boot_id=boot_id, cluster="default", vanished_after_s=60.0)
    )


def make_placer(pve: ProxmoxStandIn, shared: SharedAllocations) -> Placer:
    settings = load_settings(
        env_file=None, environ=pve.env() | {"PROXMOX_STORAGE": "ceph", "PROXMOX_ANY_TEMPLATE": "true"}
    )
    return Placer(ProxmoxReader(ProxmoxConnection.from_settings(settings)), settings, shared_allocations=shared)


def large_vm(vmid: int) -> PlacementRequest:
    return PlacementRequest(vmid=vmid, image="shared", memory_mib=5 * 1024, cores=1, bridge="vmbr0")


def test_the_memory_that_another_agent_has_allocated_is_not_free(postgres_engine: Engine, pve: ProxmoxStandIn) -> None:
    first_placer, second_placer = (
        make_placer(pve, make_shared_allocations(postgres_engine, name)) for name in ("one", "other")
    )
    with first_placer.allocate_for_new_vm(large_vm(150_000)) as placement:
        assert placement.node == "pve1"
        with pytest.raises(JobError, match="CAPACITY"), second_placer.allocate_for_new_vm(large_vm(150_001)):
            pass
    with pytest.raises(JobError, match="CAPACITY"), second_placer.allocate_for_new_vm(large_vm(150_001)):
        pass  # the ended allocation still counts: Proxmox's lists were read before, so they may lack the new VM


def test_the_allocations_of_an_agent_that_has_ended_do_not_count(postgres_engine: Engine, pve: ProxmoxStandIn) -> None:
    first_placer, second_placer = (
        make_placer(pve, make_shared_allocations(postgres_engine, name)) for name in ("one", "other")
    )
    with first_placer.allocate_for_new_vm(large_vm(150_000)):
        with transaction(postgres_engine) as session:
            nodes.store_agent_stop(session, "one", "killed")
        with second_placer.allocate_for_new_vm(large_vm(150_001)) as placement:
            assert placement.node == "pve1"


def test_another_agent_takes_over_the_allocation_of_a_vm(postgres_engine: Engine, pve: ProxmoxStandIn) -> None:
    """The other agent continues the job of an agent that has ended, although its row does not show this yet."""
    first_placer, second_placer = (
        make_placer(pve, make_shared_allocations(postgres_engine, name)) for name in ("one", "other")
    )
    with (
        first_placer.allocate_for_new_vm(large_vm(150_000)),
        second_placer.allocate_for_new_vm(large_vm(150_000)) as placement,
    ):
        assert placement.node == "pve1"


def test_a_choice_that_fails_allocates_nothing(postgres_engine: Engine, pve: ProxmoxStandIn) -> None:
    shared = make_shared_allocations(postgres_engine, "one")
    with (
        pytest.raises(JobError, match="CAPACITY"),
        make_placer(pve, shared).allocate_for_new_vm(
            PlacementRequest(vmid=150_000, image="shared", memory_mib=64 * 1024, cores=1, bridge="vmbr0")
        ),
    ):
        pass
    with transaction(postgres_engine) as session:
        assert session.scalar(text("SELECT count(*) FROM allocations")) == 0


def make_clone_limit(engine: Engine, boot_id: str, *vmids: int, max_clones_per_target: int = 1) -> CloneLimit:
    """Return the clone limit of a new agent that has allocated memory and a core for these VMs."""
    shared = make_shared_allocations(engine, boot_id)
    with transaction(engine) as session:
        for vmid in vmids:
            allocations.store_allocation(session, shared.owner, vmid=vmid, node="pve1", memory_bytes=GIB, cores=1)
    return CloneLimit(max_clones_per_target=max_clones_per_target, shared_allocations=shared)


def test_the_clones_of_all_agents_count_against_the_limit_of_a_target_storage(postgres_engine: Engine) -> None:
    first_limit, second_limit = (
        make_clone_limit(postgres_engine, "one", 1),
        make_clone_limit(postgres_engine, "other", 2),
    )
    with first_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1) as slot:
        with (
            pytest.raises(JobError, match="CANCELLED"),
            second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2),
        ):
            pass
        with second_limit.acquire_slot("local@pve1", may_wait=lambda: False, vmid=2):
            pass
        slot.mark_clone_ended()
        with second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2):
            pass


def test_a_clone_of_an_agent_that_has_ended_does_not_count(postgres_engine: Engine) -> None:
    first_limit, second_limit = (
        make_clone_limit(postgres_engine, "one", 1),
        make_clone_limit(postgres_engine, "other", 2),
    )
    with ExitStack() as first_clone:
        first_clone.enter_context(first_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1))
        with transaction(postgres_engine) as session:
            nodes.store_agent_stop(session, "one", "killed")
        with second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2):
            pass


def test_a_clone_whose_end_could_not_be_stored_counts_until_the_agent_stores_its_ends_again(
    postgres: PostgresCluster, postgres_engine: Engine
) -> None:
    """The agent stores them again at each renewal of its leases. Otherwise all agents would wait until it places a VM.

    A draining agent places no more VMs.
    """
    first_limit, second_limit = (
        make_clone_limit(postgres_engine, "one", 1),
        make_clone_limit(postgres_engine, "other", 2),
    )
    shared = first_limit.shared_allocations
    assert shared is not None
    with first_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1) as slot:
        connected_engine = shared.engine
        object.__setattr__(shared, "engine", open_engine(postgres.url("missing")))
        slot.mark_clone_ended()
    shared.end_allocation(1)
    object.__setattr__(shared, "engine", connected_engine)
    with pytest.raises(JobError, match="CANCELLED"), second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2):
        pass
    shared.retry_storing_allocation_ends()
    with second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2):
        pass


def test_a_raised_limit_applies_at_once_and_a_target_storage_that_was_not_used_for_long_does_not_count(
    postgres_engine: Engine,
) -> None:
    low_limit = make_clone_limit(postgres_engine, "low", 1)
    with low_limit.acquire_slot("earlier storage", may_wait=lambda: False, vmid=1):
        pass
    with low_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1):
        pass
    with transaction(postgres_engine) as session:
        too_old = text("UPDATE clone_targets SET used_at = now() - interval '2 days' WHERE name = 'earlier storage'")
        session.execute(too_old)
    high_limit = make_clone_limit(postgres_engine, "high", 2, 3, max_clones_per_target=2)
    with (
        high_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2),
        high_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=3),
    ):
        pass
    creates_with_ended_clone = 3  # the allocations of the VMs 1, 2 and 3 have not ended
    with transaction(postgres_engine) as session:
        max_creates = [session.scalar(select(limit.max_creates)) for limit in (low_limit, high_limit)]
    assert max_creates == [1 + creates_with_ended_clone, 2 + creates_with_ended_clone]


def test_a_clone_limit_that_one_agent_lowers_is_lower_for_all_agents(postgres_engine: Engine) -> None:
    """Otherwise this agent would start fewer clones, and the others would still start too many."""
    first_limit = make_clone_limit(postgres_engine, "one", 1, max_clones_per_target=2)
    second_limit = make_clone_limit(postgres_engine, "other", 2, 3, max_clones_per_target=2)
    with first_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1) as slot:
        slot.result = LOCK_TIMED_OUT
    with ExitStack() as clones:
        clones.enter_context(second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2))
        with pytest.raises(JobError, match="CANCELLED"):
            clones.enter_context(second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=3))
    for _ in range(SUCCESSES_PER_RAISE):
        with first_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=1) as slot:
            slot.result = JobResult(succeeded=True)
    with (
        second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=2),
        second_limit.acquire_slot("ceph", may_wait=lambda: False, vmid=3),
    ):
        pass


def test_all_agents_together_claim_as_many_creates_as_the_target_storages_allow(postgres_engine: Engine) -> None:
    """When the clone of a create has ended, each agent may claim another create."""
    limits = [make_clone_limit(postgres_engine, "one", 1), make_clone_limit(postgres_engine, "other", 2)]
    for _ in range(4):
        submit(postgres_engine)

    def claim(limit: CloneLimit, owner: str) -> bool:
        with transaction(postgres_engine) as session:
            return job_queue.claim(session, owner, lease_s=30, max_creates=limit.max_creates) is not None

    assert [claim(limits[0], "one"), claim(limits[1], "other")] == [True, False]
    with limits[0].acquire_slot("ceph", may_wait=lambda: False, vmid=1) as slot:
        assert not claim(limits[1], "other")
        slot.mark_clone_ended()
        assert [claim(limits[1], "other"), claim(limits[0], "one")] == [True, False]


def test_an_allocation_ends_while_another_transaction_holds_the_lock_of_the_allocations(
    postgres_engine: Engine, pve: ProxmoxStandIn
) -> None:
    """The thread of a run that has ended must not wait while another thread chooses a node."""
    first_placer = make_placer(pve, make_shared_allocations(postgres_engine, "one"))
    results: list[str] = []

    def place() -> None:
        with first_placer.allocate_for_new_vm(large_vm(150_001)):
            results.append("placed")

    with ExitStack() as allocation, transaction(postgres_engine) as session:
        allocation.enter_context(
            first_placer.allocate_for_new_vm(
                PlacementRequest(vmid=150_000, image="shared", memory_mib=64, cores=1, bridge="vmbr0")
            )
        )
        allocations.lock_tables(session)
        choosing = threading.Thread(target=place)
        choosing.start()
        wait_for(lambda: _waits_for_lock(session), 60, "the thread that chooses")
        allocation.close()
        assert results == []
        session.rollback()
        choosing.join()
    assert results == ["placed"]


def _waits_for_lock(session: Session) -> bool:
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    return session.scalar(waiting) == 1


# --- notifications ----------------------------------------------------------------------------------------------------


def test_an_agent_that_waits_is_notified_of_new_jobs(postgres_engine: Engine) -> None:
    listener = NotificationListener(engine=postgres_engine)
    assert listener.wait(0.0), "a new connection may have missed a notification"
    assert not listener.wait(0.0)
    with transaction(postgres_engine) as session:
        notifications.notify_agent_processes_of_jobs(session)
    assert listener.wait(60.0)
    assert not listener.wait(0.0)
    listener.close()


def test_a_connection_that_is_lost_before_the_agent_listens_is_a_database_error(postgres_engine: Engine) -> None:
    def close_connection(driver_connection: Any, _record: object, _proxy: object) -> None:
        driver_connection.close()

    listener = NotificationListener(engine=postgres_engine)
    event.listen(postgres_engine, "checkout", close_connection)
    try:
        with pytest.raises(DatabaseUnavailable, match="the connection that waits for notifications was lost"):
            listener.wait(0)
    finally:
        event.remove(postgres_engine, "checkout", close_connection)
    assert listener.wait(0), "the next wait opens a new connection"
    assert not listener.wait(0)
    listener.close()


def test_after_a_lost_connection_the_agent_waits_on_a_new_one(postgres_engine: Engine) -> None:
    listener = NotificationListener(engine=postgres_engine)
    assert listener.wait(0.0)
    with transaction(postgres_engine) as session:
        end_listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        session.execute(text(end_listeners))

    def wait_several_times() -> None:
        for _ in range(3):  # the server first sends the reason, and then closes the connection
            listener.wait(60.0)

    with pytest.raises(DatabaseError, match="was lost"):
        wait_several_times()
    assert listener.wait(0.0)
    listener.close()
