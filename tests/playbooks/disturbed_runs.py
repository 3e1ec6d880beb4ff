"""Runs every action while the cluster changes at random moments, and checks what must hold in each such run."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from executor_bench import ExecutorBench
from play_bench import ACTIONS, Bench

from executor.model import JobResult
from executor.shared.reactions import Reaction, reaction_to

GIB = 1024**3
STORAGE = "ceph"
#: The maximum number of executions of a run. A failed run is repeated as the agent repeats a job.
MAX_ATTEMPTS = 4
#: The lags of Proxmox: the time between two broadcasts of statistics, and the delay of an answer 401.
STATISTICS_LAG_S = 10
LOGIN_DELAY_S = 3
#: A disturbance is applied at most after this number of requests. Many runs send fewer.
MAX_REQUESTS = 16
KINDS = (
    *("move", "hide", "lock", "lose_name", "forget_tasks", "warnings", "unremovable"),
    *("refused_login", "unreachable_node", "lost_answer", "cut_off_before", "cut_off_after"),
)
#: The disturbance that undoes another one, a few requests later.
UNDOING = {"hide": "show", "lock": "unlock", "move": "move"}
#: The types of Proxmox tasks that end with warnings if a run has the disturbance `warnings`.
TYPES_OF_TASKS_WITH_WARNINGS = (
    "qmclone",
    "qmstart",
    "qmshutdown",
    "qmreboot",
    "qmconfig",
    "resize",
    "qmigrate",
    "qmsnapshot",
    "qmrollback",
)
#: What each action requests, besides the identity of its VM.
REQUESTED_MEMBERS: dict[str, dict[str, Any]] = {
    "create": {"template_vmid": 9000, "storage": STORAGE},
    "update": {"cores": 4, "memory_mib": 4096},
    "resize": {"disk_gib": 10},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "snapshot": {"snapshot": "mine"},
    "rollback": {"snapshot": "before"},
}


@dataclass(kw_only=True)
class DisturbedRun:
    """One action on one VM, repeated as the agent repeats a job, while the cluster changes."""

    seed: int
    action: str
    vm: dict[str, Any]
    kinds: list[str]
    disturbances: list[dict[str, Any]]
    results: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Return the run as one line of JSON."""
        names = ("seed", "action", "kinds", "disturbances", "results", "problems")
        return json.dumps({"vmid": self.vm["vmid"], **{name: getattr(self, name) for name in names}})


def prepare(bench: Bench, seed: int) -> DisturbedRun:
    """Add the VM of a run if the action needs one, and choose the disturbances. The seed determines both."""
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice
    action = ACTIONS[seed % len(ACTIONS)]
    kinds = rng.sample(KINDS, rng.choice([1, 1, 2, 3]))
    vm = _new_vm(bench, action, rng)
    disturbances = []
    for kind in kinds:
        request_count = rng.randint(1, MAX_REQUESTS)
        if kind not in {"warnings", "unremovable"}:
            disturbances.append({"kind": kind, "vmid": vm["vmid"], "requests": request_count})
        if kind in UNDOING and (kind != "move" or rng.random() < 0.5):
            undone_after = request_count + rng.randint(1, 6)
            disturbances.append({"kind": UNDOING[kind], "vmid": vm["vmid"], "requests": undone_after})
    return DisturbedRun(seed=seed, action=action, vm=vm, kinds=kinds, disturbances=disturbances)


def _new_vm(bench: Bench, action: str, rng: random.Random) -> dict[str, Any]:
    if action == "create":
        return bench.vm(timeout_s=15, **REQUESTED_MEMBERS[action])
    status = {"stop": "running", "restart": "running", "start": "stopped"}.get(action)
    status = status or rng.choice(["running", "stopped"])
    vm = bench.add_vm(status=status)
    volume = f"vm-{vm['vmid']}-disk-0"
    bench.pve.control("add_volume", storage=STORAGE, volume=volume, vmid=vm["vmid"], size=8 * GIB)
    bench.pve.control("configure", vmid=vm["vmid"], values={"scsi0": f"{STORAGE}:{volume},size=8G"})
    if action == "rollback":
        bench.pve.control("behave", vmid=vm["vmid"], snapshots={"before": dict(bench.guest(vm)["config"])})
    identity = {name: vm[name] for name in ("service_id", "vmid", "name", "shutdown_timeout_s", "address_timeout_s")}
    return {**identity, "timeout_s": 15, "node": rng.choice(["", "pve1", "pve2"]), **REQUESTED_MEMBERS.get(action, {})}


def execute(run: DisturbedRun, bench: Bench, executor: ExecutorBench) -> None:
    """Execute the run and its repetitions; add to `problems` what must never happen."""
    others_before = _other_guests(bench, run)
    bench.pve.reset_request_log()
    if "warnings" in run.kinds:
        for task in TYPES_OF_TASKS_WITH_WARNINGS:
            bench.pve.fail_task(task, "WARNINGS: 1", vmid=run.vm["vmid"], after=True)
    if "unremovable" in run.kinds:
        bench.pve.control("unremovable", volume=f"{STORAGE}:vm-{run.vm['vmid']}-disk-0")
    bench.pve.control("statistics", broadcast_interval_s=STATISTICS_LAG_S)
    bench.pve.control("logins", delay_s=LOGIN_DELAY_S)
    bench.pve.control("disturb", disturbances=run.disturbances)
    result = _repeat(run, bench, executor)
    bench.pve.control("clear_faults")
    _check(run, bench, result)
    if _other_guests(bench, run) != others_before:
        run.problems.append("a guest of another service was changed")


def _repeat(run: DisturbedRun, bench: Bench, executor: ExecutorBench) -> JobResult:
    for attempt in range(MAX_ATTEMPTS):
        result = executor.play(run.action, run.vm)
        run.results.append(result.message or "completed")
        if result.code == "VM_NOT_FOUND" and bench.pve.guest(run.vm["vmid"]):
            run.problems.append("VM_NOT_FOUND for a VM that exists")
        if result.succeeded or reaction_to(str(result.code)) is Reaction.NEVER:
            break
        if attempt == MAX_ATTEMPTS - 2:  # the last attempt is undisturbed
            bench.pve.control("clear_faults")
            if bench.pve.guest(run.vm["vmid"]):
                bench.pve.control("lock", vmid=run.vm["vmid"], lock=None)
    return result


def _check(run: DisturbedRun, bench: Bench, result: JobResult) -> None:
    guests = [guest for guest in bench.pve.guests() if _is_guest_of(run, guest)]
    if len(guests) > 1:
        run.problems.append("a second VM of the service exists")
    clones = [entry for entry in bench.pve.changing_requests() if entry["path"].endswith("/clone")]
    if any(str(entry["params"].get("newid")) != str(run.vm["vmid"]) for entry in clones):
        run.problems.append("a clone has another VMID")
    if not result.succeeded:
        run.problems.append(f"the last attempt failed: {result.message}")
    elif run.action == "delete":
        remaining_volumes = [
            name for name in bench.pve.storages()[STORAGE]["volumes"] if f"vm-{run.vm['vmid']}-" in name
        ]
        reported = str(result.vm.get("volumes_left", ""))
        run.problems += [
            f"volume {name} was left, and the result does not name it"
            for name in remaining_volumes
            if name not in reported
        ]
        run.problems += ["the VM exists after its deletion"] if guests else []
    run.problems += [f"a request for another guest: {path}" for path in _requests_for_other_guests(run, bench)]


def _is_guest_of(run: DisturbedRun, guest: dict[str, Any]) -> bool:
    has_marker = f"smith-uid={run.vm['service_id']}" in str(guest["config"].get("description", ""))
    return has_marker or guest["name"] == run.vm["name"]


def _requests_for_other_guests(run: DisturbedRun, bench: Bench) -> list[str]:
    vmid, paths = str(run.vm["vmid"]), []
    for entry in bench.pve.changing_requests():
        parameters = (str(entry["params"].get(name)) for name in ("newid", "vmid"))
        if vmid not in entry["path"].split("/") and vmid not in parameters:
            paths.append(entry["path"])
    return paths


def _other_guests(bench: Bench, run: DisturbedRun) -> list[dict[str, Any]]:
    return [guest for guest in bench.pve.guests() if guest["vmid"] != run.vm["vmid"]]
