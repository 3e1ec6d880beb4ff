"""A run by hand (`smith play`) and a job of the agent never run for one service at the same time.

A job waits for a run by hand; a run by hand is refused while another one or a job runs. This also holds after the
command was interrupted, killed or suspended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from sqlalchemy import update
from support.cli_world import GIVE_UP_S, OWNER, Cli, submit
from support.played_vms import WAITING_ACTION, made, mapped

from executor.database import job_queue, run_queries
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import ManualRun
from executor.database.times import db_now
from executor.processes.process_tree import descendants, processes_with_variable
from executor.runs.private_folder import CREDENTIALS_VARIABLE
from executor.shared.run_until import RUN_UNTIL_VARIABLE, encode

#: The folder in which each run by hand creates its private folder.
PRIVATE_FOLDERS = "/dev/shm"  # noqa: S108 (only compared)
#: The content of the file that limits a run, if the run had to end when the machine started.
EXPIRED_RECORDS = encode(0.0) * 2


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


@pytest.fixture
def smith(tmp_path: Path, pve: ProxmoxStandIn) -> Cli:
    cli = Cli(tmp_path)
    actions = tmp_path / "actions"
    actions.mkdir(mode=0o755)
    (actions / "hold.yml").write_text(WAITING_ACTION)
    (actions / "hold.yml").chmod(0o644)
    cli.env |= pve.env() | {"SMITH_ACTIONS_PATH": str(actions)}
    return cli


@contextmanager
def run_hold_action(smith: Cli, vm: dict[str, Any], target: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run the action `hold`, which waits for a file, by hand. Yield the process when the playbook is running."""
    target = target or ["--service", vm["name"]]
    arguments = ["play", "hold", *target, "-e", f"properties.folder={smith.folder}", "--json"]
    process = subprocess.Popen(
        smith.command(*arguments),
        env=smith.environment(),
        cwd=smith.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until((smith.folder / "running").exists)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def try_to_claim_job(smith: Cli) -> int | None:
    """Claim a job as an agent does; return its id, or None if no job can be claimed."""
    with smith.engine() as engine, transaction(engine) as session:
        job = job_queue.claim(session, OWNER, lease_s=30)
        return None if job is None else job.id


def read_only_run(smith: Cli) -> ManualRun:
    with smith.engine() as engine, read_only_session(engine) as session:
        (run,) = run_queries.newest_manual_runs(session, 2)
        return run


def pids_of_playbooks_by_hand() -> set[int]:
    """Return the ids of the processes of all runs by hand of this user."""
    return processes_with_variable(CREDENTIALS_VARIABLE, f"{PRIVATE_FOLDERS}/smith-play-")


def test_a_job_waits_for_a_run_by_hand_and_another_run_is_refused(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    with run_hold_action(smith, vm) as process:
        job_id = smith.submit(action="stop", service_id=vm["service_id"])
        assert try_to_claim_job(smith) is None
        ident = read_only_run(smith).ident
        pve.reset_request_log()
        for command in (
            ["play", "stop", "--service", vm["name"], "--json"],
            ["mappings", "forget", vm["name"], "--yes"],
        ):
            done = smith(*command)
            assert done.returncode == 1
            assert "running hold for this service by hand since" in done.stderr
            assert f"(run {ident}, process {process.pid} on " in done.stderr
        assert pve.changing_requests() == []
        (smith.folder / "end").touch()
        stdout, stderr = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 0, stderr
        assert json.loads(stdout)["run_ident"] == ident
    assert try_to_claim_job(smith) == job_id
    done = smith("play", "stop", "--service", vm["name"])
    assert done.returncode == 1
    assert f"job {job_id} (stop) of this service is running" in done.stderr


def test_ctrl_c_ends_the_playbook_and_releases_the_service(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    with run_hold_action(smith, vm) as process:
        assert pids_of_playbooks_by_hand()
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 130
        assert "smith: interrupted: the playbook was ended" in stderr
        assert "Traceback" not in stderr
    run = read_only_run(smith)
    assert (run.status, run.ended_at is not None) == ("canceled", True)
    assert "PLAY [proxmox]" in smith.ok("runs", "log", run.ident)
    job_id = smith.submit(action="stop", service_id=vm["service_id"])
    assert try_to_claim_job(smith) == job_id


def test_ctrl_c_ends_the_running_playbooks_of_several_vms_and_starts_no_more(smith: Cli, pve: ProxmoxStandIn) -> None:
    vms = [made(pve), made(pve)]
    for vm in vms:
        pve.control("configure", vmid=vm["vmid"], values={"tags": "smith;many"})
    with smith.engine():
        pass  # an empty database
    targets = ["--hosts", "tag_many", "--parallel", "1"]
    with run_hold_action(smith, vms[0], targets) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    ended, not_run = json.loads(stdout)["vms"]
    assert (ended["error_code"], not_run["run_ident"]) == ("PLAYBOOK_FAILED", None)
    assert not_run["error_message"] == "not run, because the command was interrupted"
    assert read_only_run(smith).ended_at is not None


def test_a_vm_that_disappears_after_the_inventory_was_read_fails_and_the_others_run(
    smith: Cli, pve: ProxmoxStandIn
) -> None:
    remaining_vm, removed_vm = made(pve), made(pve)
    for vm in (remaining_vm, removed_vm):
        pve.control("configure", vmid=vm["vmid"], values={"tags": "smith;two"})
    pve.control("hold", method="GET", path=f"/nodes/.*/qemu/{removed_vm['vmid']}/snapshot")
    with ThreadPoolExecutor() as pool:
        command = pool.submit(smith, "play", "start", "--hosts", "tag_two", "--json")
        wait_until(pve.is_holding)
        pve.control("remove", vmid=removed_vm["vmid"])
        pve.control("clear_faults")
        done = command.result()
    assert done.returncode == 7, done.stderr
    outcomes = {vm["vmid"]: vm["succeeded"] for vm in json.loads(done.stdout)["vms"]}
    assert outcomes == {remaining_vm["vmid"]: True, removed_vm["vmid"]: False}


def test_a_killed_command_ends_its_playbook_and_blocks_the_service_until_its_lease_expires(
    smith: Cli, pve: ProxmoxStandIn
) -> None:
    vm = mapped(smith, made(pve))
    with run_hold_action(smith, vm) as process:
        playbook_pids = pids_of_playbooks_by_hand() & descendants(process.pid)
        process.kill()
        wait_until(lambda: not playbook_pids & pids_of_playbooks_by_hand())
    job_id = smith.submit(action="stop", service_id=vm["service_id"])
    assert try_to_claim_job(smith) is None
    with smith.database_session() as session:
        session.execute(update(ManualRun).values(lease_until=db_now(-1)))
    assert try_to_claim_job(smith) == job_id


def test_the_playbook_of_a_suspended_command_is_ended_before_its_lease_expires(smith: Cli, pve: ProxmoxStandIn) -> None:
    """The guard, a separate process, ends the playbook at the time in the run's file (`shared/run_until`)."""
    vm = mapped(smith, made(pve))
    with run_hold_action(smith, vm) as process:
        playbook_pids = pids_of_playbooks_by_hand() & descendants(process.pid)
        (file,) = {path for pid in playbook_pids if (path := run_until_file(pid))}
        assert b"inf" not in Path(file).read_bytes()
        os.kill(process.pid, signal.SIGSTOP)
        Path(file).write_bytes(EXPIRED_RECORDS)
        wait_until(lambda: not playbook_pids & pids_of_playbooks_by_hand())
        os.kill(process.pid, signal.SIGCONT)
        stdout, _stderr = process.communicate(timeout=GIVE_UP_S)
        assert process.returncode == 1
        assert json.loads(stdout)["error_code"] == "LEASE_LOST"


def run_until_file(pid: int) -> str:
    """Return the path of the file that says when the run of this process must end; "" if the process has none."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return ""
    return next((entry.partition("=")[2] for entry in entries if entry.startswith(f"{RUN_UNTIL_VARIABLE}=")), "")


def test_check_mode_is_possible_while_a_job_of_the_service_runs(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    with smith.database_session() as session:
        submit(session, action="start", service_id=vm["service_id"])
    assert try_to_claim_job(smith) is not None
    done = smith("play", "start", "--service", vm["name"], "--check")
    assert done.returncode == 0, done.stderr


def test_a_run_by_hand_is_listed_and_audited(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = mapped(smith, made(pve))
    done = smith("play", "start", "--service", vm["name"], "--reason", "call 17")
    assert done.returncode == 0, done.stderr
    ident = read_only_run(smith).ident
    assert f"`smith runs log {ident}` shows the output of the playbook again" in done.stdout
    run = smith.json("runs", "show", ident)
    assert (run["ident"], run["job_id"], run["status"], run["vmid"]) == (ident, None, "successful", vm["vmid"])
    assert len(run["upids"]) == 1
    assert ident in smith.ok("runs", "show", ident)
    assert any("failed=0" in line for line in run["stdout_tail"])
    log = smith.ok("runs", "log", ident).strip()
    assert log.startswith("PLAY [")
    assert log in done.stdout
    assert smith.json("runs", "log", ident) == {"run": ident, "stdout": f"\n{log}\n\n"}
    assert "there is no run start-0" in smith("runs", "log", "start-0").stderr
    (row,) = smith.json("runs", "list")
    assert (row["ident"], row["job_id"], row["playbook"]) == (ident, None, "start.yml")
    entries = smith.json("audit", "list", "--subject", vm["service_id"])
    change, started = entries
    assert (started["verb"], started["reason"]) == ("play", "call 17")
    assert started["after"] == {"action": "start", "vmid": vm["vmid"], "run": ident}
    assert (change["before"]["state"], change["after"]["state"]) == ("reserved", "active")


def test_without_a_database_a_run_by_hand_works_and_shows_no_run_ident(smith: Cli, pve: ProxmoxStandIn) -> None:
    vm = made(pve)
    done = smith("play", "start", "--vmid", str(vm["vmid"]))
    assert (done.returncode, smith.file.exists()) == (0, False), done.stderr
    assert "smith runs show" not in done.stdout
    done = smith("play", "update", "--vmid", str(vm["vmid"]), "-e", "disk_gib=1")
    assert done.returncode == 1
    assert "(run" not in done.stderr
