"""Measures the CPU time that the agent needs to make and store the story (a summary) of a job's playbook run.

The agent makes the story from the events of the run. The measured events are the events of a real create.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from smith_lab.system import LabSystem
from sqlalchemy import insert

from bench.baseline import CURRENT
from bench.labs import WAIT_AFTER_JOBS_S, cpu_by_process, order_services_and_wait
from bench.measuring import MeasurementFailed, median
from bench.part import Bench, Goal, Part, Table
from executor.database import job_queue, job_runs, schema
from executor.database.engine import open_engine, transaction
from executor.database.job_queue import NewJob
from executor.database.tables.jobs import Run
from executor.database.times import utc_now
from executor.redaction import Redactor
from executor.runs.story import RunStory

Json = dict[str, Any]
RUN_IDENT = "create-0c5d0f3a9b21"
#: The CPU time of a call is measured as the mean of this many calls.
REPEATS = 200
#: The goal: the maximum share of a job's CPU time that its story costs.
MAX_SHARE = 0.02


def measure(bench: Bench) -> Json:
    """Return the CPU time, in seconds, of a create job, of making its story, and of storing the story once."""
    lab = bench.labs_with_agents()[CURRENT]  # the lab with this checkout's executor; no jobs run in it now
    cpu_s_of_creates = [_cpu_s_of_create(lab) for _ in range(bench.sizes.warm_up_rounds + bench.sizes.rounds)]
    events = _newest_create_events(lab)
    database_url = f"sqlite:///{bench.folder / 'story.db'}"
    return {
        "job_cpu_s": median(cpu_s_of_creates[bench.sizes.warm_up_rounds :]),
        "events": len(events),
        "events_cpu_s": _cpu_s_per_call(lambda: _story_of(events)),  # CPU time of making the story
        "write_cpu_s": _store_cpu_s(database_url, _story_of(events).to_dict()),  # CPU time of storing the story
    }


def _cpu_s_of_create(lab: LabSystem) -> float:
    """Create a VM by a job; return the CPU time of the agent, its supervisor (parent process) and the playbook run."""
    cpu_before = cpu_by_process(lab)
    order_services_and_wait(lab, [f"story-{uuid.uuid4().hex[:8]}"])
    time.sleep(WAIT_AFTER_JOBS_S)  # until the agent has ended all work for the job
    return (cpu_by_process(lab) - cpu_before).executor


def _newest_create_events(lab: LabSystem) -> list[Json]:
    """Return the events of the newest create."""
    files = sorted((lab.data_dir / "artifacts").glob("create-*/events.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise MeasurementFailed(f"no run of create.yml has left its events: see {lab.log_file}")
    return [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]


def _story_of(events: list[Json]) -> RunStory:
    """Return the story that is made from the events of a run."""
    story = RunStory(Redactor())  # this Redactor has no secrets to mask
    for event in events:
        story.add_event(event)
    return story


def _store_cpu_s(database_url: str, story: Json) -> float:
    """Return the mean CPU time of the transaction with which the agent stores the story while a run continues."""
    engine = open_engine(database_url)
    schema.upgrade(engine)
    now = utc_now()
    with transaction(engine) as session:
        job_id = job_queue.submit(
            session,
            NewJob(
                fulcrum_id=str(uuid.uuid4()),
                service_id=str(uuid.uuid4()),
                group_id=None,  # the service is in no group
                action="create",
                params=None,  # the job has no parameters
                service=None,  # FulcrumCore delivered no data of the service
                defect=None,  # the job is valid
                priority=1,
                core_created_at=now,  # when FulcrumCore created the job
                deadline_at=now,
            ),
        )
        run = {"job_id": job_id, "ident": RUN_IDENT, "attempt": 1, "playbook": "create.yml", "started_at": now}
        session.execute(insert(Run), [run])

    def store() -> None:
        with transaction(engine) as session:
            job_runs.store_run_story(session, RUN_IDENT, story)

    cpu_s = _cpu_s_per_call(store)
    engine.dispose()
    return cpu_s


def _cpu_s_per_call(operation: Callable[[], object]) -> float:
    """Return the mean CPU time of a call."""
    cpu_before_s = time.process_time()
    for _ in range(REPEATS):
        operation()
    return (time.process_time() - cpu_before_s) / REPEATS


def share_of_job(figures: Json) -> float:
    """Return the share of a job's CPU time that its story costs, if the story is stored once while the job runs."""
    return float((figures["events_cpu_s"] + figures["write_cpu_s"]) / figures["job_cpu_s"])


def _tables(figures: Json) -> list[Table]:
    row = (
        f"{figures['job_cpu_s']:.3f}",
        str(figures["events"]),
        f"{1000 * figures['events_cpu_s']:.2f}",
        f"{1000 * figures['write_cpu_s']:.2f}",
        f"{share_of_job(figures):.2%}",
    )
    headings = (
        "CPU-s of a create",
        "events of its run",
        "CPU-ms to make the story",
        "CPU-ms to store the story",
        "share of the create",
    )
    return [Table(title="The story of a job", headings=headings, rows=[row])]


def _goals(figures: Json) -> list[Goal]:
    measured = 100 * share_of_job(figures)
    return [Goal(figure_name="the story of a job", limit=100 * MAX_SHARE, measured=measured, unit="% of the job's CPU")]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="CPU to make and store the summary of a job's run", measure=measure, tables=_tables, goals=_goals)
