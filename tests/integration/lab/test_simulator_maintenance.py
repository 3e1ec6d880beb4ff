"""The maintenance of the FulcrumCore simulator (a sweep): it fails jobs after their timeout, and deletes old jobs.

The tests set the simulator's clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from support.simulator_world import World


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def world(sim: SimulatorThread) -> Iterator[World]:
    world = World(sim)
    yield world
    world.close()


@pytest.mark.parametrize("claimed", [False, True])
def test_a_timeout_fails_the_job_and_changes_nothing_else(world: World, claimed: bool) -> None:
    world.sim.freeze()
    service = world.order(ciPassword="pass-word-1")
    job = world.claimed(service) if claimed else world.job_of(service)
    world.sim.advance(300)
    assert world.sim.sweep()["timedOut"] == 0
    world.sim.advance(1)
    assert world.sim.sweep()["timedOut"] == 1
    after = world.job_of(service)
    assert (after["status"], bool(after["errorMessage"]), "completedAt" in after) == ("Failed", True, True)
    assert world.service(service) == {**world.service(service), "status": "New", "properties": service["properties"]}
    reference = service["properties"]["ciPassword"].removeprefix("vault://")
    assert world.agent.get(f"/vault/secrets/{reference}").status_code == 200
    assert [world.agent.complete(job).status_code, world.agent.fail(job).status_code] == [400, 400]


def test_the_timeout_counts_from_creation_not_from_the_claim(world: World) -> None:
    service = world.order()
    world.sim.advance(299)
    world.claimed(service)
    world.sim.advance(2)
    assert world.sim.sweep()["timedOut"] == 1


def test_a_service_with_a_timed_out_job_accepts_a_new_action(world: World) -> None:
    service = world.order()
    world.sim.expire_job(world.claimed(service)["id"])
    world.admin.delete_service(service["id"])
    assert [job["action"] for job in world.agent.pending()] == ["delete"]


def test_after_a_timeout_the_next_job_of_the_group_is_listed(world: World) -> None:
    group = world.group()
    first, second = world.order(group), world.order(group, name="web-2")
    world.sim.expire_job(world.claimed(first)["id"])
    assert [job["serviceId"] for job in world.agent.pending()] == [second["id"]]


def test_retention_deletes_completed_and_timed_out_jobs_and_keeps_failed_ones(world: World) -> None:
    world.sim.freeze()
    completed, failed, timed_out = (world.order(world.group(f"g{n}"), name=f"web-{n}") for n in range(3))
    world.agent.complete(world.claimed(completed))
    world.agent.fail(world.claimed(failed))
    world.sim.expire_job(world.job_of(timed_out)["id"])
    world.sim.advance(720 * 3600 - 60)
    assert world.sim.sweep()["deleted"] == 0
    world.sim.advance(120)
    assert world.sim.sweep()["deleted"] == 2
    assert [len(world.admin.list_jobs(service["id"])) for service in (completed, failed, timed_out)] == [0, 1, 0]


def test_a_job_removed_by_retention_is_403(world: World) -> None:
    job = world.claimed(world.order())
    world.agent.complete(job)
    world.sim.advance(721 * 3600)
    world.sim.sweep()
    assert world.admin_caller.get(f"/jobs/{job['id']}").status_code == 403


def test_no_job_times_out_without_maintenance(world: World) -> None:
    service = world.order()
    world.sim.advance(10_000)
    assert world.job_of(service)["status"] == "Pending"


def test_the_simulator_can_run_its_maintenance_at_an_interval() -> None:
    with running_simulator(maintenance_interval_s=0.02, job_timeout_s=5.0) as sim:
        world = World(sim)
        service = world.order()
        sim.advance(6)
        world.admin.wait_for_status(service["id"], "New", timeout_s=60)
        assert world.job_of(service)["status"] == "Failed"
        world.close()
