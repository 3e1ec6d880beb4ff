"""The steps of a worker: it claims the job, runs its playbook and stores the result. It mirrors `agent/worker.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol import database, fulcrum
from protocol.decisions import Decisions
from protocol.fulcrum import Reply
from protocol.world import ACTIONS, TICK_S, Agent, Slot, World, with_agent, with_row, with_slot

from executor.agent.claim import FirstRequest, JobNotClaimable
from executor.agent.outcome import Ending
from executor.errors import FulcrumUnavailable
from executor.model import MappingState


class Transition(NamedTuple):
    """One event: what happens, and the state after it."""

    description: str
    world: World
    is_fault: bool = False


RUNNING = "run"
#: The run is stored, but its processes do not exist yet. Only a suspended agent stays in this step.
STARTING = "start"
#: The steps that write to the database, with the words for the description.
WRITES = {
    "note_sent": "stores that it will send the claim",
    "note_accepted": "stores that FulcrumCore has accepted the claim",
    "reserve": "finds or reserves the VMID",
    "note_started": "stores that the run starts, and starts it",
    "store": "stores how the attempt ended",
}


def with_first_step(slot: Slot, decisions: Decisions, *, is_claimed: bool) -> Slot:
    """Return the slot with the first step of an attempt."""
    request = decisions.first_request(is_claim_sent=slot.was_sent, is_claim_accepted=is_claimed)
    steps = {FirstRequest.NONE: "reserve", FirstRequest.READ_JOB: "read", FirstRequest.SEND_CLAIM: "note_sent"}
    return slot._replace(step=steps[request])


def transitions(world: World, agent_index: int, slot: Slot, decisions: Decisions) -> Iterator[Transition]:
    """Yield what may happen next to a job that an agent processes."""
    agent = world.agents[agent_index]
    subject = f"Agent {agent.name}, job {slot.job + 1} ({ACTIONS[slot.job]}): "
    if slot.step in WRITES:
        if agent.is_connected:
            yield from _write(world, agent_index, slot, decisions, subject)
        yield from _fail_to_write(world, agent_index, slot, subject)
    elif slot.step == RUNNING:
        yield from _end_run(world, agent_index, slot, subject)
    elif slot.step == STARTING:
        yield Transition(
            f"{subject}it starts the run", with_slot(world, agent_index, slot, _start_run(agent, slot, decisions))
        )
    elif slot.step == "send":
        for reply in fulcrum.send(world, "claim", slot.job):
            step = {"ok": "note_accepted", "refused": "reread", "403": "check"}.get(reply.answer, "")
            yield _after_reply(reply, agent_index, slot, step, subject + "it sends the claim; ")
    elif slot.step in ("read", "reread"):
        for reply in fulcrum.read(world, slot.job):
            description = subject + "it reads the job; "
            if reply.answer == "ok":
                yield _decide_with_status(reply, agent_index, slot, decisions, description)
            else:
                yield _after_reply(reply, agent_index, slot, "check" if reply.answer == "403" else "", description)
    else:
        yield from _check_refusal(world, agent_index, slot, decisions, subject)


def _after_reply(reply: Reply, agent_index: int, slot: Slot, step: str, description: str) -> Transition:
    """Continue with the step. Without a step, end the attempt, because FulcrumCore did not answer or answered 500."""
    end = "one failed request" if reply.answer == "500" else "no answer"
    new = slot._replace(step=step) if step else slot._replace(step="store", end=end)
    return Transition(description + reply.description, with_slot(reply.world, agent_index, slot, new), reply.is_fault)


def _decide_with_status(
    reply: Reply, agent_index: int, slot: Slot, decisions: Decisions, description: str
) -> Transition:
    """Decide with the job's status at FulcrumCore: before a second claim ("read"), or after a refused claim."""
    try:
        if slot.step == "read":
            decisions.require_job_open(reply.job.status)
            new = slot._replace(step="note_sent" if reply.job.status == "Pending" else "note_accepted")
        else:
            decisions.require_claim_by_this_agent(reply.job.status, was_claim_sent_before=slot.was_sent, refusal="400")
            new = slot._replace(step="note_accepted")
    except JobNotClaimable as error:
        new = slot._replace(step="store", end=error.code)
    except FulcrumUnavailable:
        new = slot._replace(step="store", end="one failed request")
    return Transition(description + reply.description, with_slot(reply.world, agent_index, slot, new), reply.is_fault)


def _check_refusal(
    world: World, agent_index: int, slot: Slot, decisions: Decisions, subject: str
) -> Iterator[Transition]:
    for verdict, description, after, is_fault in check_refusal(world, agent_index, slot.job, decisions):
        ends = {"gone": "JOB_GONE", "later": "one failed request", "no answer": "no answer"}
        new = slot._replace(step="store", end=ends[verdict])
        yield Transition(subject + description, with_slot(after, agent_index, slot, new), is_fault)


def check_refusal(
    world: World, agent_index: int, job: int, decisions: Decisions
) -> Iterator[tuple[str, str, World, bool]]:
    """Check an answer 403 as `Http403Counter.require_job_gone` does. Yield (verdict, description, world, is_fault)."""
    agent = world.agents[agent_index]
    earlier, key = dict(agent.refusals), str(job)
    for reply in (*fulcrum.read(world, job), Reply(world, "agent", "FulcrumCore refuses the agent's token")):
        is_accepted = reply.answer != "agent"
        if reply.answer in ("none", "500"):
            verdict = "later" if reply.answer == "500" else "no answer"
            yield verdict, f"it checks the 403; {reply.description}", world, reply.is_fault
            continue
        refusals = decisions.refusals_after_check(
            earlier, key, 0.0, is_agent_accepted=is_accepted, is_object_readable=reply.answer == "ok"
        )
        is_gone = is_accepted and reply.answer == "403" and decisions.is_gone(refusals[key])
        if is_gone:
            del refusals[key]
        after = with_agent(world, agent_index, refusals=tuple(sorted(refusals.items())))
        verdict = "gone" if is_gone else "later" if is_accepted else "no answer"
        conclusion = "; the agent concludes that the job is gone" if is_gone else "; it will try again"
        yield verdict, f"it checks the 403; {reply.description}{conclusion}", after, reply.is_fault


def _fail_to_write(world: World, agent_index: int, slot: Slot, subject: str) -> Iterator[Transition]:
    is_connected = world.agents[agent_index].is_connected
    if world.faults_left or not is_connected:
        lost = with_slot(world, agent_index, slot, None)
        yield Transition(subject + f"it {WRITES[slot.step]}, but the database cannot be reached", lost, is_connected)


def _write(world: World, agent_index: int, slot: Slot, decisions: Decisions, subject: str) -> Iterator[Transition]:
    """Write to the database. A write under a lease fails if the lease is no longer valid."""
    agent = world.agents[agent_index]
    description = subject + f"it {WRITES[slot.step]}"
    if slot.step == "reserve":
        yield from _reserve(world, agent_index, slot, description)
        return
    outcome = None
    if slot.step == "store":
        outcome = decisions.decide(
            slot.job, slot.attempt, slot.end, slot.is_stopped, slot.is_mapping_reserved,
            slot.is_new_reservation and slot.end == "no room", False,
        )  # fmt: skip
        description += f" ({slot.end}): {outcome.ending}"
    is_lost = outcome is not None and outcome.ending is Ending.KEEP_ROW_UNCHANGED
    if is_lost or not database.has_lease(world, agent.name, slot):
        yield Transition(description + "; the lease is lost", with_slot(world, agent_index, slot, None))
        return
    row = world.rows[slot.job]
    assert row is not None
    if outcome is not None:
        stored = database.store_outcome(world, slot, outcome)
        yield Transition(description, with_slot(stored, agent_index, slot, None))
        return
    if slot.step == "note_started":
        noted = with_row(world, slot.job, database.note_started(row))
        yield Transition(description, with_slot(noted, agent_index, slot, _start_run(agent, slot, decisions)))
        if world.faults_left:
            suspended = with_agent(noted, agent_index, is_suspended=True)
            suspended = with_slot(suspended, agent_index, slot, slot._replace(step=STARTING))
            yield Transition(f"{subject}it stores that the run starts, and is suspended before that", suspended, True)
        return
    writes = {
        "note_sent": (database.note_claim_sent, "send"),
        "note_accepted": (database.note_claim_accepted, "reserve"),
    }
    write, step = writes[slot.step]
    yield Transition(
        description, with_slot(with_row(world, slot.job, write(row)), agent_index, slot, slot._replace(step=step))
    )


def _reserve(world: World, agent_index: int, slot: Slot, description: str) -> Iterator[Transition]:
    is_new = False
    if not world.mapping:
        if world.vms:  # the VM is found by its marker
            world = world._replace(mapping=MappingState.ACTIVE)
        elif ACTIONS[slot.job] == "create":
            world, is_new = world._replace(mapping=MappingState.RESERVED), True
        else:
            failed = slot._replace(step="store", end="no VM")
            yield Transition(description + "; there is no VM", with_slot(world, agent_index, slot, failed))
            return
    is_mapping_reserved = world.mapping == MappingState.RESERVED
    slot_after = slot._replace(step="note_started", is_mapping_reserved=is_mapping_reserved, is_new_reservation=is_new)
    yield Transition(description, with_slot(world, agent_index, slot, slot_after))
    if world.faults_left:
        failed = slot_after._replace(step="store", end="no room")
        yield Transition(description + "; no Proxmox node has room", with_slot(world, agent_index, slot, failed), True)


def _start_run(agent: Agent, slot: Slot, decisions: Decisions) -> Slot:
    """Start the run. Its guard ends it at once if the agent has not renewed its leases for too long.

    A run of a job that was asked to stop ends before it changes the VM.
    """
    if slot.is_stopped:
        return slot._replace(step="store", end="stopped")
    if is_guard_limit_over(agent, agent.since_renewal, decisions):
        return slot._replace(step="store", end="ended by the guard")
    return slot._replace(step=RUNNING)


def is_guard_limit_over(agent: Agent, since_renewal: int, decisions: Decisions) -> bool:
    """Return whether the guards end the agent's runs when `since_renewal` ticks have passed since its renewal."""
    return decisions.guard_limit_s(agent.has_other_agents) <= since_renewal * TICK_S


def end_by_guard(world: World, agent_index: int, slot: Slot, decisions: Decisions) -> Iterator[Transition]:
    """Yield how the guard ends a run whose time limit is within the next tick, because its agent renews no leases."""
    agent = world.agents[agent_index]
    if slot.step != RUNNING or not is_guard_limit_over(agent, agent.since_renewal + 1, decisions):
        return
    new = slot._replace(step="store", end="ended by the guard")
    changed = world._replace(vms=max(world.vms, 1)) if ACTIONS[slot.job] == "create" else world
    for before, when in ((changed, "after"), (world, "before")):
        description = f"Agent {agent.name}, job {slot.job + 1} ({ACTIONS[slot.job]}): the guard ends its run"
        yield Transition(f"{description} {when} it has changed the VM", with_slot(before, agent_index, slot, new))


def _end_run(world: World, agent_index: int, slot: Slot, subject: str) -> Iterator[Transition]:
    """End the run. A create that succeeds has created the VM. One that is killed may have created it."""
    changed = world._replace(vms=max(world.vms, 1)) if ACTIONS[slot.job] == "create" else world

    def end_with(before: World, end: str, description: str, *, is_fault: bool) -> Transition:
        new = slot._replace(step="store", end=end)
        return Transition(subject + description, with_slot(before, agent_index, slot, new), is_fault)

    if slot.is_stopped:
        yield end_with(changed, "stopped", "its run is stopped after it has changed the VM", is_fault=False)
        yield end_with(world, "stopped", "its run is stopped before it has changed the VM", is_fault=False)
        return
    yield end_with(changed, "success", "its run succeeds", is_fault=False)
    if world.faults_left:
        yield end_with(changed, "killed", "its run is killed after it has changed the VM", is_fault=True)
        yield end_with(world, "killed", "its run is killed before it has changed the VM", is_fault=True)
        yield end_with(world, "failure", "its run fails for good", is_fault=True)
