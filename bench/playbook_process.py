"""Runs playbooks for the bench (the benchmarks): `playbook_process.py VARIANT ROOT FOLDER`.

VARIANT is an installation that the bench compares with others: plain (ansible-runner alone), baseline (the executor of
an earlier commit) or current (this checkout's executor). The interpreter of this installation runs this file, so the
imports at the top are of the standard library only. ROOT is the checkout whose playbooks are run. FOLDER is on tmpfs,
and only this process uses it. The variables PROXMOX_* contain the address and the credentials of Proxmox.

The process writes a first line to its standard output when it is ready. Then it reads batches of runs from its standard
input. A batch is a line of JSON with the members `slots` (how many runs are done in parallel) and `runs`. A run has the
members `action` and `vm`. If a run also has `expected_error`, it must fail, and its output must contain this text.
After each batch, the process writes a line of JSON: `spans` (the start and the end of each run, in seconds since the
start of the batch) or `error`.

The variants baseline and current do warm runs: a warm server is a process that has imported Ansible, and forks a
process for each run.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
#: Runs the playbook of an action with the extra variable `vm`; returns whether it succeeded, and its output.
RunPlaybook = Callable[[str, Json], "tuple[bool, str]"]
RUN_TIMEOUT_S = 280.0
#: How many characters at the end of the output are shown if a run does not end as expected.
MAX_SHOWN_CHARACTERS = 2000
_PR_SET_CHILD_SUBREAPER = 36


def main(variant: str, root: str, folder: str) -> None:
    """Run the batches from the standard input until the input ends."""
    # The bench measures the CPU time of this process and its descendants. As a subreaper, this process becomes the
    # parent of orphaned descendants, so their CPU time is included.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that the output of Ansible does not mix with the answers
    start_variant = {"plain": _plain_runner, "baseline": _baseline_executor, "current": _current_executor}[variant]
    with start_variant(Path(root), Path(folder)) as run_playbook:
        answers.write("ready\n")
        for line in sys.stdin:
            answers.write(json.dumps(_run_batch(run_playbook, json.loads(line))) + "\n")


def _run_batch(run_playbook: RunPlaybook, batch: Json) -> Json:
    batch_started_at_s = time.monotonic()

    def run_one(run: Json) -> tuple[float, float]:
        run_started_at_s = time.monotonic()
        has_succeeded, output = run_playbook(run["action"], run["vm"])
        expected_error = run.get("expected_error")
        if has_succeeded is bool(expected_error) or (expected_error or "") not in output:
            raise RuntimeError(f"{run['action']} did not end as expected:\n{output[-MAX_SHOWN_CHARACTERS:]}")
        return run_started_at_s - batch_started_at_s, time.monotonic() - batch_started_at_s

    try:
        with ThreadPoolExecutor(batch["slots"]) as pool:
            return {"spans": list(pool.map(run_one, batch["runs"]))}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


@contextmanager
def _plain_runner(root: Path, folder: Path) -> Iterator[RunPlaybook]:
    """Yield a function that runs a playbook as the introduction of ansible-runner's documentation shows."""
    import ansible_runner  # noqa: PLC0415  not a module of the standard library

    environment = {name: value for name, value in os.environ.items() if name.startswith("PROXMOX_")}

    def run_playbook(action: str, vm: Json) -> tuple[bool, str]:
        private_data_dir = folder / uuid.uuid4().hex
        private_data_dir.mkdir()
        finished_run = ansible_runner.run(
            private_data_dir=str(private_data_dir),
            project_dir=str(root),
            playbook=str(root / "playbooks" / f"{action}.yml"),
            extravars={"vm": vm},
            envvars=environment,
            quiet=True,
        )
        output = finished_run.stdout.read()
        shutil.rmtree(private_data_dir)
        return finished_run.rc == 0, output

    yield run_playbook


@contextmanager
def _baseline_executor(root: Path, folder: Path) -> Iterator[RunPlaybook]:
    """Yield a function that runs a playbook with the runner and warm servers of BASELINE_COMMIT (bench/baseline.py)."""
    from executor.jobs import PlaybookRun  # noqa: PLC0415  these modules exist in this variant only
    from executor.runner import Runner, RunnerPaths  # noqa: PLC0415

    paths = RunnerPaths(ansible_home=root, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
    runner = Runner(paths, _credentials, ca_bundle=Path(os.environ["PROXMOX_CA_BUNDLE"]))
    runner.start_warm(insist=True)  # raises an error if warm runs are not possible
    _wait_for_warm_server(runner.warm_pids)
    yield lambda action, vm: _run_with_runner(runner, PlaybookRun, root, action, vm)
    runner.stop_warm()


@contextmanager
def _current_executor(root: Path, folder: Path) -> Iterator[RunPlaybook]:
    """Yield a function that runs a playbook with the runner and warm servers of this checkout."""
    from executor.model import PlaybookRun  # noqa: PLC0415  these modules exist in this variant only
    from executor.runs.runner import Runner, RunnerPaths  # noqa: PLC0415

    paths = RunnerPaths(collection_folder=root, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
    runner = Runner(paths, _credentials, ca_bundle=Path(os.environ["PROXMOX_CA_BUNDLE"]))
    runner.start_warm_server(are_warm_runs_required=True)
    _wait_for_warm_server(runner.warm_server_pid)
    yield lambda action, vm: _run_with_runner(runner, PlaybookRun, root, action, vm)
    runner.stop_warm_server()


def _run_with_runner(runner: Any, run_class: Any, root: Path, action: str, vm: Json) -> tuple[bool, str]:
    playbook = root / "playbooks" / f"{action}.yml"
    run_ident = f"{action}-{uuid.uuid4().hex[:12]}"
    finished_run = runner.run(
        run_class(ident=run_ident, action=action, playbook=playbook, vm=vm, timeout_s=RUN_TIMEOUT_S)
    )
    output = (finished_run.folder / "stdout").read_text()
    shutil.rmtree(finished_run.folder)
    return finished_run.rc == 0, output


def _wait_for_warm_server(warm_server_pids: Callable[[], object]) -> None:
    """Wait until the function returns the process id of a warm server, or a list of such ids."""
    while not warm_server_pids():
        time.sleep(0.1)


def _credentials() -> Json:
    return {
        "api_host": os.environ["PROXMOX_HOST"],
        "api_port": int(os.environ["PROXMOX_PORT"]),
        "api_user": os.environ["PROXMOX_USER"],
        "api_token_id": os.environ["PROXMOX_TOKEN_ID"],
        "api_token_secret": os.environ["PROXMOX_TOKEN_SECRET"],
        "validate_certs": True,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
