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

    story: str
    world: World
    is_fault: bool = False


RUNNING = "run"
#: The run is stored, but its processes do not exist yet. Only a suspended agent stays in this step.
STARTING = "start"
#: The steps that write to the database, with the words for the story.
WRITES = {
    "note_sent": "stores that it will send the claim",
    "note_accepted": "stores that FulcrumCore has accepted the claim",
    "reserve": "finds or reserves the VMID",
    "note_started": "stores that the run starts, and starts it",
    "store": "stores how the attempt ended",
}


def begin(slot: Slot, decisions: Decisions, *, is_claimed: bool) -> Slot:
    """Return the slot with the first step of an attempt."""
    request = decisions.first_request(is_claim_sent=slot.was_sent, is_claim_accepted=is_claimed)
    steps = {FirstRequest.NONE: "reserve", FirstRequest.READ_JOB: "read", FirstRequest.SEND_CLAIM: "note_sent"}
    return slot._replace(step=steps[request])


def transitions(world: World, number: int, slot: Slot, decisions: Decisions) -> Iterator[Transition]:
    """Yield what may happen next to a job that an agent processes."""
    agent = world.agents[number]
    subject = f"Agent {agent.name}, job {slot.job + 1} ({ACTIONS[slot.job]}): "
    if slot.step in WRITES:
        if agent.is_connected:
            yield from _write(world, number, slot, decisions, subject)
        yield from _fail_to_write(world, number, slot, subject)
    elif slot.step == RUNNING:
        yield from _run(world, number, slot, subject)
    elif slot.step == STARTING:
        yield Transition(f"{subject}it starts the run", with_slot(world, number, slot, _start(agent, slot, decisions)))
    elif slot.step == "send":
        for reply in fulcrum.send(world, "claim", slot.job):
            step = {"ok": "note_accepted", "refused": "reread", "403": "check"}.get(reply.answer, "")
            yield _after_reply(reply, number, slot, step, subject + "it sends the claim; ")
    elif slot.step in ("read", "reread"):
        for reply in fulcrum.read(world, slot.job):
            told = subject + "it reads the job; "
            if reply.answer == "ok":
                yield _judge(reply, number, slot, decisions, told)
            else:
                yield _after_reply(reply, number, slot, "check" if reply.answer == "403" else "", told)
    else:
        yield from _check_refusal(world, number, slot, decisions, subject)


def _after_reply(reply: Reply, number: int, slot: Slot, step: str, told: str) -> Transition:
    """Continue with the step. Without a step, end the attempt, because FulcrumCore did not answer or answered 500."""
    end = "one failed request" if reply.answer == "500" else "no answer"
    new = slot._replace(step=step) if step else slot._replace(step="store", end=end)
    return Transition(told + reply.story, with_slot(reply.world, number, slot, new), reply.is_fault)


def _judge(reply: Reply, number: int, slot: Slot, decisions: Decisions, told: str) -> Transition:
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
    return Transition(told + reply.story, with_slot(reply.world, number, slot, new), reply.is_fault)


def _check_refusal(world: World, number: int, slot: Slot, decisions: Decisions, subject: str) -> Iterator[Transition]:
    for verdict, story, after, is_fault in check_refusal(world, number, slot.job, decisions):
        ends = {"gone": "JOB_GONE", "later": "one failed request", "no answer": "no answer"}
        new = slot._replace(step="store", end=ends[verdict])
        yield Transition(subject + story, with_slot(after, number, slot, new), is_fault)


def check_refusal(world: World, number: int, job: int, decisions: Decisions) -> Iterator[tuple[str, str, World, bool]]:
    """Check an answer 403 as `RefusalCounter.require_job_gone` does. Yield (verdict, story, world, is it a fault)."""
    agent = world.agents[number]
    earlier, key = dict(agent.refusals), str(job)
    for reply in (*fulcrum.read(world, job), Reply(world, "agent", "FulcrumCore refuses the agent's token")):
        is_accepted = reply.answer != "agent"
        if reply.answer in ("none", "500"):
            verdict = "later" if reply.answer == "500" else "no answer"
            yield verdict, f"it checks the 403; {reply.story}", world, reply.is_fault
            continue
        refusals = decisions.refusals_after_check(
            earlier, key, 0.0, is_agent_accepted=is_accepted, is_object_readable=reply.answer == "ok"
        )
        is_gone = is_accepted and reply.answer == "403" and decisions.is_gone(refusals[key])
        if is_gone:
            del refusals[key]
        after = with_agent(world, number, refusals=tuple(sorted(refusals.items())))
        verdict = "gone" if is_gone else "later" if is_accepted else "no answer"
        conclusion = "; the agent concludes that the job is gone" if is_gone else "; it will try again"
        yield verdict, f"it checks the 403; {reply.story}{conclusion}", after, reply.is_fault


def _fail_to_write(world: World, number: int, slot: Slot, subject: str) -> Iterator[Transition]:
    is_connected = world.agents[number].is_connected
    if world.faults_left or not is_connected:
        lost = with_slot(world, number, slot, None)
        yield Transition(subject + f"it {WRITES[slot.step]}, but the database is away", lost, is_connected)


def _write(world: World, number: int, slot: Slot, decisions: Decisions, subject: str) -> Iterator[Transition]:
    """Write to the database. A write under a lease fails if the lease is no longer valid."""
    agent = world.agents[number]
    told = subject + f"it {WRITES[slot.step]}"
    if slot.step == "reserve":
        yield from _reserve(world, number, slot, told)
        return
    outcome = None
    if slot.step == "store":
        outcome = decisions.decide(
            slot.job, slot.attempt, slot.end, slot.is_stopped, slot.is_mapping_reserved,
            slot.is_new_reservation and slot.end == "no room", False,
        )  # fmt: skip
        told += f" ({slot.end}): {outcome.ending}"
    is_lost = outcome is not None and outcome.ending is Ending.DISCARD
    if is_lost or not database.has_lease(world, agent.name, slot):
        yield Transition(told + "; the lease is lost", with_slot(world, number, slot, None))
        return
    row = world.rows[slot.job]
    assert row is not None
    if outcome is not None:
        stored = database.store_outcome(world, slot, outcome)
        yield Transition(told, with_slot(stored, number, slot, None))
        return
    if slot.step == "note_started":
        noted = with_row(world, slot.job, database.note_started(row))
        yield Transition(told, with_slot(noted, number, slot, _start(agent, slot, decisions)))
        if world.faults_left:
            suspended = with_agent(noted, number, is_suspended=True)
            suspended = with_slot(suspended, number, slot, slot._replace(step=STARTING))
            yield Transition(f"{subject}it stores that the run starts, and is suspended before that", suspended, True)
        return
    writes = {
        "note_sent": (database.note_claim_sent, "send"),
        "note_accepted": (database.note_claim_accepted, "reserve"),
    }
    write, step = writes[slot.step]
    yield Transition(told, with_slot(with_row(world, slot.job, write(row)), number, slot, slot._replace(step=step)))


def _reserve(world: World, number: int, slot: Slot, told: str) -> Iterator[Transition]:
    is_new = False
    if not world.mapping:
        if world.vms:  # the VM is found by its marker
            world = world._replace(mapping=MappingState.ACTIVE)
        elif ACTIONS[slot.job] == "create":
            world, is_new = world._replace(mapping=MappingState.RESERVED), True
        else:
            failed = slot._replace(step="store", end="no VM")
            yield Transition(told + "; there is no VM", with_slot(world, number, slot, failed))
            return
    is_mapping_reserved = world.mapping == MappingState.RESERVED
    slot_after = slot._replace(step="note_started", is_mapping_reserved=is_mapping_reserved, is_new_reservation=is_new)
    yield Transition(told, with_slot(world, number, slot, slot_after))
    if world.faults_left:
        failed = slot_after._replace(step="store", end="no room")
        yield Transition(told + "; no Proxmox node has room", with_slot(world, number, slot, failed), True)


def _start(agent: Agent, slot: Slot, decisions: Decisions) -> Slot:
    """Start the run. Its guard ends it at once if the agent has not renewed its leases for too long.

    A run of a job that was asked to stop ends before it changes the VM.
    """
    if slot.is_stopped:
        return slot._replace(step="store", end="stopped")
    if is_limit_over(agent, agent.since_renewal, decisions):
        return slot._replace(step="store", end="ended by the guard")
    return slot._replace(step=RUNNING)


def is_limit_over(agent: Agent, since_renewal: int, decisions: Decisions) -> bool:
    """Return whether the guards end the agent's runs when `since_renewal` ticks have passed since its renewal."""
    return decisions.runs_until(agent.has_others) <= since_renewal * TICK_S


def ends_by_guard(world: World, number: int, slot: Slot, decisions: Decisions) -> Iterator[Transition]:
    """Yield how the guard ends a run whose time ends within the next tick, because its agent renews no leases."""
    agent = world.agents[number]
    if slot.step != RUNNING or not is_limit_over(agent, agent.since_renewal + 1, decisions):
        return
    new = slot._replace(step="store", end="ended by the guard")
    changed = world._replace(vms=max(world.vms, 1)) if ACTIONS[slot.job] == "create" else world
    for before, when in ((changed, "after"), (world, "before")):
        story = f"Agent {agent.name}, job {slot.job + 1} ({ACTIONS[slot.job]}): the guard ends its run"
        yield Transition(f"{story} {when} it has changed the VM", with_slot(before, number, slot, new))


def _run(world: World, number: int, slot: Slot, subject: str) -> Iterator[Transition]:
    """End the run. A create that succeeds has created the VM. One that is killed may have created it."""
    changed = world._replace(vms=max(world.vms, 1)) if ACTIONS[slot.job] == "create" else world

    def ended(before: World, end: str, story: str, *, is_fault: bool) -> Transition:
        new = slot._replace(step="store", end=end)
        return Transition(subject + story, with_slot(before, number, slot, new), is_fault)

    if slot.is_stopped:
        yield ended(changed, "stopped", "its run is stopped after it has changed the VM", is_fault=False)
        yield ended(world, "stopped", "its run is stopped before it has changed the VM", is_fault=False)
        return
    yield ended(changed, "success", "its run succeeds", is_fault=False)
    if world.faults_left:
        yield ended(changed, "killed", "its run is killed after it has changed the VM", is_fault=True)
        yield ended(world, "killed", "its run is killed before it has changed the VM", is_fault=True)
        yield ended(world, "failure", "its run fails for good", is_fault=True)
