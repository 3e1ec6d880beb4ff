"""A reference to FulcrumCore's vault belongs to the service that named it first: no other service gets its secret."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.simulator.control import SimulatorThread
from sqlalchemy import Engine, select
from support.agent_parts import AgentParts
from support.databases import new_job
from support.simulator_world import World

from executor.agent import secret_owners
from executor.agent.poller import Poller
from executor.agent.secret_owners import MAX_BOUND_REFERENCES
from executor.database import mappings, secret_references
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.fulcrum.vault import SecretResolver
from executor.model import JobStatus
from executor.shared.error_codes import ErrorCode

SECRET = "correct-horse-of-the-owner"
OWNER_VMID, ATTACKER_VMID = 100_001, 100_002
SCHEMA: dict[str, Any] = {
    "properties": {
        "password": {"type": "string", "secret": {"type": "persistent"}},
        "note": {"type": "string"},
    }
}
LIFECYCLE: dict[str, Any] = {
    "initialState": "New",
    "terminalStates": ["Gone"],
    "states": [{"name": "New"}, {"name": "Stopped"}, {"name": "Gone"}],
    "actions": [
        {"name": "create", "transitions": [{"from": "New", "to": "Stopped"}]},
        {
            "name": "start",
            "transitions": [
                {"from": "Stopped", "to": "Stopped"},
                {"from": "Stopped", "to": "Stopped", "onError": True},
            ],
        },
    ],
}
#: Writes the secret into a file for the VM. (A create would write it into the VM itself.)
WRITE_SECRET = """
- name: Write the secret
  ansible.builtin.copy:
    content: "{{{{ vm.properties.password | default('none') }}}} {{{{ vm.properties.note | default('none') }}}}"
    dest: "{folder}/secret-{{{{ vm.vmid }}}}"
    mode: "0600"
  delegate_to: localhost
"""


@pytest.fixture
def parts(sim_of_parts: SimulatorThread, engine: Engine, tmp_path: Path) -> Iterator[AgentParts]:
    """Return the parts of an agent on each kind of database, with a playbook that uses the secret."""
    parts = AgentParts(tmp_path, engine, World(sim_of_parts))
    parts.write_playbook(WRITE_SECRET.format(folder=tmp_path))
    parts.runner.end_earlier_runs()
    yield parts
    parts.wait_until_idle()
    parts.world.close()


@pytest.fixture
def poller(parts: AgentParts) -> Poller:
    return Poller(
        engine=parts.engine,
        fulcrum=parts.shared.fulcrum,
        secret_resolver=SecretResolver(parts.shared.fulcrum),
        state=parts.state,
        job_timeout_s=300.0,
        interval_s=2.0,
    )


def add_service(parts: AgentParts, type_id: str, vmid: int, **properties: Any) -> dict[str, Any]:
    """Create a service with a mapped VM. Its create job has been completed without this agent's database."""
    world = parts.world
    service = world.admin_caller.post("/services", world.order_body(type_id, properties)).json()
    assert world.agent.complete(world.claimed(service), agentInstanceId=f"agent/{vmid}").status_code == 204
    with transaction(parts.engine) as session:
        mapping = mappings.reserve(session, service_id=service["id"], cluster="default", vmid=vmid, name=f"web-{vmid}")
        assert mapping is not None
        mappings.mark_mapping_active(session, mapping.id)
    return dict(world.service(service))


def start_vms(parts: AgentParts, poller: Poller, *services: dict[str, Any]) -> list[Job]:
    """Start the services' VMs with one poll; return the jobs after they have ended, in the order of the services."""
    fulcrum_ids = []
    for service in services:
        parts.world.admin.request_action(service["id"], "start")
        fulcrum_ids.append(parts.world.job_of(service)["id"])
    poller.poll()
    return run_jobs(parts, fulcrum_ids)


def run_jobs(parts: AgentParts, fulcrum_ids: list[str]) -> list[Job]:
    parts.dispatch()
    parts.wait_until_idle()
    with read_only_session(parts.engine) as session:
        by_id = {job.fulcrum_id: job for job in session.scalars(select(Job).where(Job.fulcrum_id.in_(fulcrum_ids)))}
    return [by_id[fulcrum_id] for fulcrum_id in fulcrum_ids]


def read_secret_and_note(parts: AgentParts, vmid: int) -> str | None:
    """Return the secret and the note that the playbook has written for the VM, or None if no playbook has run."""
    file = parts.folder / f"secret-{vmid}"
    return file.read_text() if file.exists() else None


def test_a_service_that_names_the_secret_of_another_service_does_not_get_it(
    parts: AgentParts, poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    type_id = parts.world.type_with(SCHEMA, LIFECYCLE)
    owner = add_service(parts, type_id, OWNER_VMID, password=SECRET)
    reference = owner["properties"]["password"]
    (owners_job,) = start_vms(parts, poller, owner)
    assert (owners_job.status, read_secret_and_note(parts, OWNER_VMID)) == (JobStatus.COMPLETED, f"{SECRET} none")

    attacker = add_service(parts, type_id, ATTACKER_VMID, password=reference)
    assert attacker["properties"]["password"] == reference, "FulcrumCore accepts the reference of another service"
    (attackers_job,) = start_vms(parts, poller, attacker)

    assert read_secret_and_note(parts, ATTACKER_VMID) is None, "no playbook may run"
    assert (attackers_job.status, attackers_job.error_code) == (JobStatus.FAILED, ErrorCode.INVALID_REQUEST)
    assert (
        attackers_job.error_message == "INVALID_REQUEST: the secret in the property password belongs to another service"
    )
    (event,) = [record.msg for record in caplog.records if "secret_of_other_service" in str(record.msg)]
    assert (event["property"], event["owner_service_id"]) == ("password", owner["id"])


def test_a_stored_job_of_the_owner_binds_the_reference_before_it_runs(parts: AgentParts, poller: Poller) -> None:
    """The reference is bound when the owner's job is stored. The job itself starts later than the attacker's job."""
    type_id = parts.world.type_with(SCHEMA, LIFECYCLE)
    owner = add_service(parts, type_id, OWNER_VMID, password=SECRET)
    parts.world.admin.request_action(owner["id"], "start")
    poller.poll()
    attacker = add_service(parts, type_id, ATTACKER_VMID, password=owner["properties"]["password"])
    parts.world.admin.request_action(attacker["id"], "start")
    poller.poll()
    fulcrum_ids = [parts.world.job_of(service)["id"] for service in (attacker, owner)]
    with transaction(parts.engine) as session:
        owners_job = session.scalars(select(Job).where(Job.service_id == owner["id"])).one()
        owners_job.available_at = owners_job.deadline_at
    (attackers_job, _) = run_jobs(parts, fulcrum_ids)
    assert (attackers_job.status, attackers_job.error_code) == (JobStatus.FAILED, ErrorCode.INVALID_REQUEST)
    parts.end_backoff(owners_job.id)
    (_, ended_owners_job) = run_jobs(parts, fulcrum_ids)
    assert (ended_owners_job.status, read_secret_and_note(parts, OWNER_VMID)) == (JobStatus.COMPLETED, f"{SECRET} none")


def test_a_service_gets_its_own_secret_in_every_job(parts: AgentParts, poller: Poller) -> None:
    owner = add_service(parts, parts.world.type_with(SCHEMA, LIFECYCLE), OWNER_VMID, password=SECRET)
    for _ in range(2):
        (job,) = start_vms(parts, poller, owner)
        assert job.status == JobStatus.COMPLETED
        assert parts.world.agent.claim({"id": job.fulcrum_id}) == 400
        assert parts.world.agent.complete({"id": job.fulcrum_id}).status_code == 204
        assert read_secret_and_note(parts, OWNER_VMID) == f"{SECRET} none"
        (parts.folder / f"secret-{OWNER_VMID}").unlink()


def test_a_reference_without_a_row_is_bound_when_it_is_resolved(parts: AgentParts, poller: Poller) -> None:
    """This happens if an earlier version has stored the job, or if the database was lost."""
    type_id = parts.world.type_with(SCHEMA, LIFECYCLE)
    owner = add_service(parts, type_id, OWNER_VMID, password=SECRET)
    reference = owner["properties"]["password"]
    parts.world.admin.request_action(owner["id"], "start")
    core_job = parts.world.job_of(owner)
    parts.submit(core_job, service=owner)
    with read_only_session(parts.engine) as session:
        assert secret_references.service_ids_by_reference(session, [reference]) == {}

    (job,) = run_jobs(parts, [core_job["id"]])

    assert (job.status, read_secret_and_note(parts, OWNER_VMID)) == (JobStatus.COMPLETED, f"{SECRET} none")
    with read_only_session(parts.engine) as session:
        assert secret_references.service_ids_by_reference(session, [reference]) == {reference: owner["id"]}
    (attackers_job,) = start_vms(parts, poller, add_service(parts, type_id, ATTACKER_VMID, password=reference))
    assert (attackers_job.error_code, read_secret_and_note(parts, ATTACKER_VMID)) == (ErrorCode.INVALID_REQUEST, None)


def test_the_reference_of_another_service_in_a_property_that_is_not_secret_stays_text(
    parts: AgentParts, poller: Poller
) -> None:
    type_id = parts.world.type_with(SCHEMA, LIFECYCLE)
    owner = add_service(parts, type_id, OWNER_VMID, password=SECRET)
    reference = owner["properties"]["password"]
    other_service = add_service(parts, type_id, ATTACKER_VMID, password="own-password", note=reference)
    owners_job, others_job = start_vms(parts, poller, owner, other_service)
    assert (owners_job.status, others_job.status) == (JobStatus.COMPLETED, JobStatus.COMPLETED)
    assert read_secret_and_note(parts, ATTACKER_VMID) == f"own-password {reference}"


def test_of_the_jobs_of_one_poll_the_oldest_binds_a_reference(
    parts: AgentParts, poller: Poller, sim_of_parts: SimulatorThread
) -> None:
    """FulcrumCore does not list jobs by age. It creates a reference together with the first job that names it."""
    type_id = parts.world.type_with(SCHEMA, LIFECYCLE)
    reference = f"vault://{uuid.uuid4()}"
    owner_id, attacker_id = str(uuid.uuid4()), str(uuid.uuid4())
    for service_id, created_at in ((attacker_id, "2026-03-01T12:00:01Z"), (owner_id, "2026-03-01T12:00:00Z")):
        service = {"id": service_id, "name": "web", "serviceTypeId": type_id, "properties": {"password": reference}}
        job = {"id": str(uuid.uuid4()), "action": "create", "status": "Pending", "priority": 1, "createdAt": created_at}
        sim_of_parts.add_raw_pending_items(job | {"serviceId": service_id, "service": service})
    poller.poll()
    sim_of_parts.delete_raw_pending_items()
    with read_only_session(parts.engine) as session:
        assert secret_references.service_ids_by_reference(session, [reference]) == {reference: owner_id}


def test_params_and_service_of_a_stored_job_bind_at_most_a_hundred_references(parts: AgentParts) -> None:
    users = {"type": "array", "items": {"type": "object", "properties": {"password": SCHEMA["properties"]["password"]}}}
    type_id = parts.world.type_with({"properties": SCHEMA["properties"] | {"users": users}}, LIFECYCLE)
    secrets = SecretResolver(parts.shared.fulcrum)
    references = [f"vault://{uuid.uuid4()}" for _ in range(MAX_BOUND_REFERENCES + 1)]
    service = {"serviceTypeId": type_id, "properties": {"password": references[-1], "note": f"vault://{uuid.uuid4()}"}}
    job = new_job(params={"users": [{"password": reference} for reference in references[:-1]]}, service=service)
    assert secret_owners.store_jobs_and_secret_owners(parts.engine, secrets, [job]) == 1
    with read_only_session(parts.engine) as session:
        assert set(secret_references.service_ids_by_reference(session, references)) == set(references[:-1])
    later_job = new_job(service_id=job.service_id, service=service)
    assert secret_owners.store_jobs_and_secret_owners(parts.engine, secrets, [job, later_job]) == 1
    with read_only_session(parts.engine) as session:
        assert set(secret_references.service_ids_by_reference(session, references).values()) == {job.service_id}
        assert secret_references.count_rows_of_service(session, str(job.service_id)) == len(references)


@pytest.mark.parametrize("status", [404, 503])
def test_a_job_is_stored_although_its_service_type_cannot_be_read(
    parts: AgentParts, poller: Poller, sim_of_parts: SimulatorThread, status: int
) -> None:
    owner = add_service(parts, parts.world.type_with(SCHEMA, LIFECYCLE), OWNER_VMID, password=SECRET)
    reference = owner["properties"]["password"]
    parts.world.admin.request_action(owner["id"], "start")
    sim_of_parts.add_fault("status", method="GET", path=".*/service-types/.*", times=1000, status=status)
    poller.poll()
    sim_of_parts.clear_faults()
    with read_only_session(parts.engine) as session:
        assert secret_references.service_ids_by_reference(session, [reference]) == {}
    (job,) = run_jobs(parts, [parts.world.job_of(owner)["id"]])
    assert (job.status, read_secret_and_note(parts, OWNER_VMID)) == (JobStatus.COMPLETED, f"{SECRET} none")
    with read_only_session(parts.engine) as session:
        assert secret_references.service_ids_by_reference(session, [reference]) == {reference: owner["id"]}
