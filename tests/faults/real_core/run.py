"""Runs the load of the chaos run on a FulcrumCore that is killed again and again, and checks all sides at the end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from faults.chaos.load import ACTIONS, Load, make_room, services_over_api
from faults.chaos.recorder import Recorder
from faults.chaos.report import Report, make_report
from faults.chaos.run import check_all_sides, orphan_processes, wait_until_idle
from faults.real_core.core import Core
from faults.real_core.exchanges import ExchangeLog, Outage, contract_violations, statuses_by_request
from faults.real_core.killer import CoreKiller
from faults.system import SystemUnderTest, running_system
from smith_lab.simulator.maintenance import TIMEOUT_MESSAGE
from support.custom_action import ISO, copy_action, offer_action
from support.forwarder import Exchange, Forwarder, running_forwarder

#: The time between two turns of the load. Each turn reads all services and open jobs from FulcrumCore.
TURN_S = 0.5
MAX_SERVICES = 40
SETTINGS = {
    "SMITH_WARM": "auto",
    "SMITH_CONCURRENCY": "6",
    "SMITH_CLONES_PER_STORAGE": "6",
    "SMITH_RECONCILE_INTERVAL_S": "20",
    "SMITH_METRICS_INTERVAL_S": "20",
    "FULCRUM_POLL_INTERVAL_S": "0.5",
}
CUSTOM_ACTION = "attach-iso"
#: Each service has the image of the custom action, and a secret, which the agent reads from FulcrumCore's vault.
PROPERTIES = {"isoImage": ISO, "ciUser": "admin", "ciPassword": "not-a-real-password"}
#: The actions of the chaos run, and the custom action.
ALL_ACTIONS = {
    status: {**actions, CUSTOM_ACTION: 1} if status in ("Stopped", "Started") else actions
    for status, actions in ACTIONS.items()
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a run does."""

    jobs: int
    kills: int
    seed: int


@dataclass(frozen=True)
class Result:
    """The result of a run: the report of a chaos run, and what only this kind of run has."""

    report: Report
    actions: dict[str, int]  #: jobs by action
    timed_out: int  #: jobs that FulcrumCore has failed because they were too old
    exchanges: dict[str, dict[str, int]]  #: how often each status was answered, by request


def run(
    folder: Path, core: Core, size: Size, exchange_file: Path, progress: Callable[[str], None] = lambda _text: None
) -> Result:
    """Run the load while FulcrumCore is killed, then check all sides and every exchange."""
    started = time.monotonic()
    with (
        exchange_file.open("w", encoding="utf-8") as file,
        _surroundings(folder, core, ExchangeLog(file)) as surroundings,
    ):
        system, forwarder, log = surroundings
        recorder, killer = Recorder(system, forwarder.entries), CoreKiller(core, _random(size, "kills"), size.kills)
        system.start()
        violations_found = _run_load(_load(system, _random(size, "load"), size), recorder, killer, size, progress)
        violations_found += wait_until_idle(system, recorder)
        jobs = system.lab.admin.list_all("jobs")
        system.timed_out |= {job["id"] for job in jobs if job.get("errorMessage") == TIMEOUT_MESSAGE}
        violations_found += check_all_sides(system, recorder)
        violations_found += orphan_processes(system)
        violations_found += contract_violations(log, forwarder.exchanges, killer.outages, system.timed_out)
        report = make_report(
            jobs,
            recorder,
            kills=dict(killer.done),
            recovery_s=list(_recovery_times_s(killer.outages, forwarder.exchanges)),
            troubles={},
            seed=size.seed,
            database="sqlite",
            took_s=time.monotonic() - started,
            violations=violations_found,
            not_tested=[],
        )
        actions = Counter(job["action"] for job in jobs)
        return Result(report, dict(actions), len(system.timed_out), statuses_by_request(forwarder.exchanges))


def _random(size: Size, use: str) -> random.Random:
    """Return a generator for this use only, so that the number of choices of the load does not change the kills."""
    return random.Random(f"{size.seed} {use}")  # noqa: S311 (not for secrets)


def _load(system: SystemUnderTest, rng: random.Random, size: Size) -> Load:
    return Load(
        system,
        rng,
        size.jobs,
        services_over_api(system.lab.admin),
        actions=ALL_ACTIONS,
        properties=PROPERTIES,
        max_services=MAX_SERVICES,
    )


def _run_load(
    load: Load, recorder: Recorder, killer: CoreKiller, size: Size, progress: Callable[[str], None]
) -> list[str]:
    """Request the jobs while FulcrumCore is killed, until all are requested and all kills done; return problems."""
    lab = load.system.lab
    try:
        while load.requested < size.jobs or killer.killed < size.kills:
            load.turn()
            killer.turn(load.requested / size.jobs)
            recorder.turn()
            if load.requested >= size.jobs and killer.killed < size.kills:
                load.wanted = load.requested + 1  # a kill needs running jobs
            progress(f"{load.requested} jobs requested, {killer.killed} kills")
            if lab.executor.poll() is not None:
                return [f"R1 lost: the executor ended by itself with code {lab.executor.returncode}"]
            time.sleep(TURN_S)
    finally:
        killer.restore()
    return []


@contextmanager
def _surroundings(
    folder: Path, core: Core, log: ExchangeLog
) -> Iterator[tuple[SystemUnderTest, Forwarder, ExchangeLog]]:
    with ExitStack() as stack:
        actions = str(copy_action(folder / "actions"))
        settings = SETTINGS | {"SMITH_DATA_DIR": str(folder / "data"), "SMITH_ACTIONS_PATH": actions}
        system = stack.enter_context(running_system(folder, time_scale=0.05, fulcrum_base_url=core.url, **settings))
        make_room(system)
        offer_action(system.lab)
        forwarder = stack.enter_context(running_forwarder(urlsplit(core.url).port or 0, log.note))
        system.lab.settings["FULCRUM_API_URL"] = f"http://127.0.0.1:{forwarder.port}"
        stack.callback(_stop, system)
        yield system, forwarder, log


def _stop(system: SystemUnderTest) -> None:
    if system.lab._executor is not None:
        system.lab.stop_executor(60)


def _recovery_times_s(outages: list[Outage], exchanges: list[Exchange]) -> Iterator[float]:
    """Yield, for each outage, the time from its end to the agent's first successful request."""
    for outage in outages:
        answered = (
            item.time - outage.ended for item in exchanges if item.time >= outage.ended and (item.status or 500) < 300
        )
        if (first := next(answered, None)) is not None:
            yield first
