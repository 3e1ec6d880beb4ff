"""The model of FulcrumCore and of the network: how it handles a request, and how request or answer may get lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.world import FulcrumJob, World, replace_at


class Reply(NamedTuple):
    """One way in which a request may end."""

    world: World
    answer: str  #: "ok", "refused" (400), "403", "500", or "none"
    description: str
    is_fault: bool = True
    job: FulcrumJob = FulcrumJob()  #: the job in the answer to a request that reads it


def apply(world: World, request: str, job: int, error: str | None) -> tuple[World, str]:
    """Return the state after FulcrumCore has received a request, and its answer."""
    status = world.core[job].status
    if status == "Deleted":
        return world, "403"
    if request == "claim":
        is_accepted, new = status == "Pending", FulcrumJob("Processing")
    elif request == "complete":
        is_accepted, new = status == "Processing", FulcrumJob("Completed")
    else:
        is_accepted, new = status == "Processing", FulcrumJob("Failed", error)
    return (world._replace(core=replace_at(world.core, job, new)), "ok") if is_accepted else (world, "refused")


ANSWERS = {"ok": "FulcrumCore accepts it", "refused": "FulcrumCore answers 400", "403": "FulcrumCore answers 403"}


def send(world: World, request: str, job: int, error: str | None = None) -> Iterator[Reply]:
    """Send a request that changes a job. Yield every way in which it may end."""
    after, answer = apply(world, request, job, error)
    yield Reply(after, answer, ANSWERS[answer], is_fault=False)
    if not world.faults_left:
        return
    if answer == "ok":
        yield Reply(after, "none", "FulcrumCore accepts it, but the answer is lost")
        yield Reply(after, "500", "FulcrumCore accepts it, but answers 500")
        twice, second_answer = apply(after, request, job, error)
        yield Reply(twice, second_answer, f"it arrives twice, and the second time {ANSWERS[second_answer]}")
    late = tuple(sorted({*world.late_requests, (request, job, error)}, key=str))
    yield Reply(world._replace(late_requests=late), "none", "it is late, and the agent stops waiting for an answer")
    yield Reply(world, "none", "it is lost")
    yield Reply(world, "403", "FulcrumCore answers 403, although the job exists")
    yield Reply(world, "500", "FulcrumCore answers 500")


def read(world: World, job: int) -> Iterator[Reply]:
    """Read a job. Yield every way in which the request may end."""
    core_job = world.core[job]
    if core_job.status == "Deleted":
        yield Reply(world, "403", ANSWERS["403"], is_fault=False)
    else:
        yield Reply(world, "ok", f"FulcrumCore says that it is {core_job.status}", is_fault=False, job=core_job)
        yield Reply(world, "403", "FulcrumCore answers 403, although the job exists")
    yield Reply(world, "none", "no answer arrives")
    yield Reply(world, "500", "FulcrumCore answers 500")


def pending_jobs(world: World) -> tuple[int, ...]:
    """Return the jobs in the list of pending jobs: the oldest one, unless a job of the group is processing."""
    if any(job.status == "Processing" for job in world.core):
        return ()
    return tuple(number for number, job in enumerate(world.core) if job.status == "Pending")[:1]


def processing_jobs(world: World) -> tuple[int, ...]:
    return tuple(number for number, job in enumerate(world.core) if job.status == "Processing")
