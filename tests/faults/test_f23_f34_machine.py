"""F23 to F34: runs, disks, databases, clocks and other agents fail; a job crashes the agent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from faults.conftest import MakeSystem
from faults.proxy import running_proxy
from faults.system import SystemUnderTest, running_system, second_executor
from smith_lab.system import outcome_of
from support.clock_shift import build as build_clock_shift
from support.databases import PostgresCluster

from executor.errors import EXIT_DATABASE
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.shared.run_until import NO_LIMIT, decode

MIB = 1024 * 1024


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", ["on", "off"])
def test_f23_only_the_playbook_processes_are_killed(make_system: MakeSystem, warm: str) -> None:
    """The OOM killer or an operator kills ansible-playbook → the job is retried, the agent keeps running; one VM."""
    system = make_system(time_scale=0.5, SMITH_WARM=warm)
    system.start()
    service_id = system.order_service("f23")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    agent = system.agent().pid
    for process in system.run_processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # module processes are short-lived
            if "guard" not in process.cmdline()[:5]:
                process.kill()
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(system.clone_requests_of(service_id)) == 1
    assert system.agent().pid == agent
    system.assert_consistent()


def ansible_worker(system: SystemUnderTest) -> psutil.Process | None:
    """Return the process that executes the Ansible task of the only run: a fork with its parent's command line.

    In a cold run it is a worker process of ansible-playbook. A warm run executes its tasks in the playbook's process.
    """
    commands = {}
    for process in system.run_processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # module processes are short-lived
            commands[process.pid] = (process, process.ppid(), process.cmdline())
    forks = [
        process
        for process, parent_pid, command in commands.values()
        if parent_pid in commands and commands[parent_pid][2] == command
    ]
    return forks[0] if forks else None


@pytest.mark.parametrize(
    ("warm", "reason"),
    [("off", "the process of an Ansible task was killed"), ("on", "the playbook was killed by signal 9")],
)
def test_f23_only_the_process_of_an_ansible_task_is_killed(make_system: MakeSystem, warm: str, reason: str) -> None:
    """Memory runs out and only the process of an Ansible task is killed → the job is retried; one VM."""
    system = make_system(time_scale=0.5, SMITH_WARM=warm)
    system.start()
    service_id = system.order_service("f23-task")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    system.wait_until(lambda: ansible_worker(system), "the process of the Ansible task").kill()
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    (requeued,) = system.wait_for_log("job_requeued")
    assert reason in requeued["reason"]
    assert len(system.clone_requests_of(service_id)) == 1
    system.assert_consistent()


def oom_score_adj(pid: int) -> int | None:
    """Return a process's `oom_score_adj`; None if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError:
        return None


def test_f23_the_oom_killer_prefers_runs_to_the_agent(system: SystemUnderTest) -> None:
    """The machine runs out of memory
    → each process of a run has a higher oom_score_adj than the agent and the supervisor.
    """
    service_id = system.order_service("f23-oom")
    protected_score = max(oom_score_adj(pid) or 0 for pid in (system.agent().pid, system.lab.executor.pid))

    def are_preferred() -> bool:
        scores = (
            [oom_score_adj(run.pid) for run in system.run_processes()] if system.clone_requests_of(service_id) else []
        )
        return bool(scores) and all(score is None or score > protected_score for score in scores)

    system.wait_until(are_preferred, "a run whose processes all have a higher oom_score_adj")
    system.wait_for_jobs(service_id)
    system.assert_consistent()


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 300 MiB, for which root is needed."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=300m,mode=0700", "tmpfs", str(mount_point)]
    if not mount or not unmount or subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED ON A FULL DISK: mounting is not permitted")
    yield mount_point
    subprocess.run([unmount, "--lazy", str(mount_point)], check=True)


def fill_disk(file: Path) -> None:
    """Write to a file until the disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(bytes(MIB)):
            pass


def test_f26_the_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    """The disk of database, WAL and artifacts is full
    → no job is claimed and one event is logged; work resumes when space is free.
    """
    with running_system(tmp_path, time_scale=0.2, SMITH_DATA_DIR=str(small_disk / "data")) as system:
        system.start()
        running = system.order_service("f26-running")
        system.wait_until(lambda: system.clone_requests_of(running), "the clone to begin")
        ballast = small_disk / "ballast"
        fill_disk(ballast)
        waiting = system.order_service("f26-waiting")
        system.wait_for_log("disk_space_low")
        time.sleep(5)  # the running job meets the full disk; the waiting job must not start
        assert not system.clone_requests_of(waiting)
        assert system.lab.executor.poll() is None
        ballast.unlink()
        assert [system.wait_for_jobs(service_id)["status"] for service_id in (running, waiting)] == ["Stopped"] * 2
        system.wait_for_log("disk_space_recovered")
        assert len(system.lab.log_events("disk_space_low")) == 1
        system.assert_consistent()
        assert system.lab.run_smith_json("db", "check")["problems"] == []
        system.lab.stop_executor()


def test_f26_a_job_whose_claim_could_not_be_stored_is_requeued_and_finished(small_disk: Path, tmp_path: Path) -> None:
    """A worker cannot store the accepted claim on the full disk → the job is requeued; the attempt is not counted."""
    with running_system(tmp_path, SMITH_DATA_DIR=str(small_disk / "data"), SMITH_LEASE_S="6") as system:
        system.lab.core.add_fault("delay", method="POST", path="/claim$", delay_s=3, times=1)
        system.start()
        service_id = system.order_service("f26-forgotten")
        claim_sent = "SELECT 1 FROM jobs WHERE claim_sent_at IS NOT NULL"
        system.wait_until(lambda: system.rows(claim_sent), "the claim request")
        ballast = small_disk / "ballast"
        fill_disk(ballast)
        system.wait_for_log("job_end_waits_for_database")
        ballast.unlink()
        system.wait_for_log("job_requeued")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        counts = system.rows("SELECT attempt, crashes FROM jobs WHERE service_id = ?", service_id)
        assert counts == [{"attempt": 1, "crashes": 0}]
        system.assert_consistent()
        system.lab.stop_executor()


def test_f33_artifacts_cannot_be_written(system: SystemUnderTest) -> None:
    """The artifacts folder is not writable → the result is still read, and the report is sent."""
    folder = system.lab.data_dir / "artifacts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("not a folder")
    try:
        service_id = system.order_service("f33")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
        assert system.lab.log_events("artifacts_not_stored")
    finally:
        folder.unlink()


def test_f33_artifacts_are_deleted_before_the_report(system: SystemUnderTest) -> None:
    """The artifacts are deleted before FulcrumCore accepted the report → the report is sent from the row."""
    system.lab.core.add_fault("status", status=503, method="POST", path="/complete$")
    service_id = system.order_service("f33-gone")
    ended = "SELECT 1 FROM jobs WHERE service_id = ? AND report_state = 'due'"
    system.wait_until(lambda: system.rows(ended, service_id), "the result")
    shutil.rmtree(system.lab.data_dir / "artifacts")
    system.lab.core.clear_faults()
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    system.assert_consistent()


# --- the database -------------------------------------------------------------------------------------------------


def test_f27_the_sqlite_file_is_locked_beyond_the_busy_timeout(system: SystemUnderTest) -> None:
    """Another process holds SQLite's write lock for 20 s while a job runs
    → nothing is lost, and heartbeats continue.
    """
    service_id = system.order_service("f27")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    connection = sqlite3.connect(system.lab.data_dir / "smith.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        started = time.time()
        time.sleep(20)  # longer than the 15 s that a writer waits
        heartbeats_during_the_lock = [call for call in system.lab.core.history(method="PUT") if call["time"] > started]
        assert heartbeats_during_the_lock
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    system.assert_consistent()


def test_f27_postgresql_closes_connections_and_restarts(postgres: PostgresCluster, make_system: MakeSystem) -> None:
    """PostgreSQL closes connections during transactions, then restarts → nothing is lost or done twice."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=0.3, SMITH_DATABASE_URL=url, SMITH_CONCURRENCY="4")
        stack.enter_context(stopping_the_executor(system))
        system.start()
        services = [system.order_service(f"f27-{number}") for number in range(4)]
        system.wait_until(system.clone_requests, "a clone to begin")
        terminate_sessions = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'smith'"
        )
        for _ in range(10):
            postgres.execute(terminate_sessions)
            time.sleep(0.1)
        postgres.stop(signal.SIGINT)
        time.sleep(3)  # runs end during this outage
        postgres.start()
        assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 4
        system.assert_consistent()


def test_f27_postgresql_is_suspended(postgres: PostgresCluster, make_system: MakeSystem) -> None:
    """PostgreSQL is suspended for longer than its statement timeout, but no connection is cut
    → heartbeats continue, and jobs continue when it resumes.
    """
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=0.3, SMITH_DATABASE_URL=url, FULCRUM_HEARTBEAT_INTERVAL_S="2")
        stack.enter_context(stopping_the_executor(system))
        system.start()
        service_id = system.order_service("f27-suspended")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        with postgres.suspended():
            count = len(heartbeat_times(system))
            system.wait_until(lambda: len(heartbeat_times(system)) >= count + 12, "heartbeats during the suspension")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        assert system.wait_for_jobs(system.order_service("f27-resumed"))["status"] == "Stopped"
        assert not system.lab.log_events("critical_job_restarted")
        system.assert_consistent()


def test_f27_postgresql_is_unavailable_when_the_executor_starts(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """PostgreSQL does not answer at the start of the executor → the executor waits for it and then works."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(SMITH_DATABASE_URL=url)
        stack.enter_context(stopping_the_executor(system))
        postgres.stop(signal.SIGINT)
        try:
            system.lab.start_executor()
            system.wait_for_log("start_waits_for_database")
            assert system.lab.executor.poll() is None
        finally:
            postgres.start()
        system.wait_for_log("agent_ready")
        assert system.wait_for_jobs(system.order_service("f27-start"))["status"] == "Stopped"
        system.assert_consistent()


# --- other agents --------------------------------------------------------------------------------------------------


def test_f28_a_node_that_was_suspended_past_its_lease_writes_nothing(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """An agent is suspended past its lease, another agent takes its jobs, and the first one resumes
    → its writes are refused; one clone per job.
    """
    with postgres.fresh_database() as url:
        system = make_system(time_scale=1.0, SMITH_DATABASE_URL=url, SMITH_LEASE_S="6", SMITH_CONCURRENCY="2")
        system.lab.core.set_switches(two_claims_win=True)
        system.start()
        with stopping_the_executor(system), second_executor(system) as other:
            services = [system.order_service(f"f28-{number}") for number in range(4)]
            system.wait_until(lambda: len(system.clone_requests()) == 4, "all clones to begin")
            with suspended_executor(system):
                other.wait_for_log("job_reaped")
            assert [system.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 4
            system.wait_for_log("job_lost")
            assert len(system.clone_requests()) == 4
            system.assert_consistent()


def test_f28_a_node_that_is_cut_off_from_the_database_ends_its_runs_before_another_node_starts_them(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """An agent cannot reach PostgreSQL and another agent can → the first one's runs end before the other's start."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        proxy = stack.enter_context(running_proxy(postgres.folder / ".s.PGSQL.5432"))
        system = make_system(time_scale=2.0, SMITH_DATABASE_URL=url, SMITH_LEASE_S="6", SMITH_CONCURRENCY="1")
        system.lab.settings["SMITH_DATABASE_URL"] = url.replace("@/", f"@127.0.0.1:{proxy.port}/").partition("?")[0]
        system.start()
        stack.enter_context(stopping_the_executor(system))
        service_id = system.order_service("f28-fence")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        system.lab.settings["SMITH_DATABASE_URL"] = url
        other = stack.enter_context(second_executor(system))
        system.wait_until(lambda: read_run_deadline_s(system) < NO_LIMIT, "the first agent to find the other one")
        proxy.set_mode("hang")
        other.wait_for_log("job_reaped")
        assert system.lab.log_events("runs_fenced")
        (ended,) = system.lab.log_events("playbook_finished")
        (started,) = other.wait_for_log("playbook_started")
        assert ended["timestamp"] < started["timestamp"]
        proxy.set_mode("pass")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
        assert len(system.clone_requests_of(service_id)) == 1


@pytest.mark.parametrize("warm", ["on", "off"])
def test_f28_the_run_of_a_suspended_agent_ends_before_another_node_starts_the_job_again(
    postgres: PostgresCluster, make_system: MakeSystem, warm: str
) -> None:
    """Only the agent process is suspended, so it cannot end its run, and another agent takes its job
    → the guard of the run has ended the run before; one clone.
    """
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        system = make_system(time_scale=2.0, SMITH_DATABASE_URL=url, SMITH_LEASE_S="12", SMITH_WARM=warm)
        system.start()
        stack.enter_context(stopping_the_executor(system))
        second = stack.enter_context(second_executor(system))
        nodes = (system, second)
        system.wait_until(
            lambda: all(read_run_deadline_s(node) < NO_LIMIT for node in nodes), "the agents to find each other"
        )
        service_id = system.order_service("f28-guard")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        owner, other = (system, second) if system.lab.log_events("playbook_started") else (second, system)
        agent = owner.agent()
        agent.suspend()
        owner.wait_until(lambda: not owner.run_processes(), "the run to end")
        assert agent.status() == psutil.STATUS_STOPPED
        assert not other.lab.log_events("job_reaped")
        other.wait_for_log("job_reaped")
        assert not owner.run_processes()
        other.wait_for_log("playbook_started")
        agent.resume()
        owner.wait_for_log("job_lost")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
        assert len(system.clone_requests_of(service_id)) == 1


@pytest.mark.parametrize("warm", ["on", "off"])
def test_f28_a_suspended_agent_that_still_owns_its_job_when_it_resumes_repeats_the_ended_run(
    postgres: PostgresCluster, make_system: MakeSystem, warm: str
) -> None:
    """The guard has ended the run of a suspended agent, and no other agent has taken the job
    → the job is processed again, and the first attempt does not count; one clone.
    """
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        settings = {"SMITH_LEASE_S": "10", "SMITH_FENCE": "always", "SMITH_WARM": warm}
        system = make_system(time_scale=2.0, SMITH_DATABASE_URL=url, **settings)
        system.start()
        stack.enter_context(stopping_the_executor(system))
        service_id = system.order_service("f28-always")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        agent = system.agent()
        agent.suspend()
        system.wait_until(lambda: not system.run_processes(), "the run to end")
        agent.resume()
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        assert system.job_of(service_id, "create")["status"] == "Completed"
        assert [row["attempt"] for row in system.rows("SELECT attempt FROM jobs")] == [1]
        assert len(system.lab.log_events("playbook_started")) == 2
        assert len(system.clone_requests_of(service_id)) == 1
        system.assert_consistent()


def test_f28_a_single_node_keeps_its_runs_during_an_outage_of_its_database(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """The database of the only agent does not answer for several leases → its run continues and completes the job."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        settings = {"SMITH_LEASE_S": "2", "FULCRUM_HEARTBEAT_INTERVAL_S": "2"}
        system = make_system(time_scale=1.0, SMITH_DATABASE_URL=url, **settings)
        system.start()
        stack.enter_context(stopping_the_executor(system))
        service_id = system.order_service("f28-single")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        with postgres.suspended():
            count = len(heartbeat_times(system))
            system.wait_until(lambda: len(heartbeat_times(system)) >= count + 6, "heartbeats during six leases")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        assert not system.lab.log_events("runs_fenced")
        assert len(system.lab.log_events("playbook_started")) == 1
        assert len(system.clone_requests_of(service_id)) == 1
        system.assert_consistent()


def read_run_deadline_s(system: SystemUnderTest) -> float:
    """Return the time until which the runs of the agent may continue, as the agent has written it to its file."""
    until_s = decode((system.lab.folder / "run" / RUN_UNTIL_FILE).read_bytes())
    assert until_s is not None
    return until_s


def test_f28_a_job_of_a_node_that_does_not_fence_stays_with_it(
    postgres: PostgresCluster, make_system: MakeSystem
) -> None:
    """An agent cannot reach PostgreSQL, and then another agent starts
    → the first agent continues its run, and the other one does not take its job.
    """
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        proxy = stack.enter_context(running_proxy(postgres.folder / ".s.PGSQL.5432"))
        system = make_system(time_scale=2.0, SMITH_DATABASE_URL=url, SMITH_LEASE_S="6", SMITH_CONCURRENCY="1")
        system.lab.settings["SMITH_DATABASE_URL"] = url.replace("@/", f"@127.0.0.1:{proxy.port}/").partition("?")[0]
        system.start()
        stack.enter_context(stopping_the_executor(system))
        service_id = system.order_service("f28-alone")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        system.lab.settings["SMITH_DATABASE_URL"] = url
        system.wait_until(lambda: system.rows("SELECT 1 FROM nodes WHERE NOT fences"), "a renewal without other agents")
        proxy.set_mode("hang")
        other = stack.enter_context(second_executor(system))
        other.wait_for_log("reaping_waits_for_deadline")
        proxy.set_mode("pass")
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
        assert len(system.clone_requests_of(service_id)) == 1
        assert not system.lab.log_events("runs_fenced")
        assert not other.lab.log_events("job_reaped")


@contextmanager
def stopping_the_executor(system: SystemUnderTest) -> Iterator[None]:
    """Stop the executor after the block, before the database stops."""
    try:
        yield
    finally:
        system.lab.stop_executor()


@contextmanager
def suspended_executor(system: SystemUnderTest) -> Iterator[None]:
    """Suspend every process of the executor while the block runs.

    Before a process is suspended, it can start another one. So the list is read again until it has no new process.
    """
    supervisor = psutil.Process(system.lab.executor.pid)
    suspended_processes: list[psutil.Process] = []
    try:
        while new := [process for process in supervisor_and_children(supervisor) if process not in suspended_processes]:
            for process in new:
                suspended_processes.append(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
        yield
    finally:
        for process in suspended_processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def supervisor_and_children(supervisor: psutil.Process) -> list[psutil.Process]:
    return [supervisor, *supervisor.children(recursive=True)]


def test_f30_an_agent_with_the_same_host_name_and_pid_is_a_new_instance(make_system: MakeSystem) -> None:
    """A container restarts with the same host name and process ids → the new agent reaps the jobs of the old one."""
    unshare_command = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare_command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED IN A PID NAMESPACE: creating one is not permitted")
    system = make_system(time_scale=0.5)
    service_id = system.order_service("f30")
    with executor_in_pid_namespace(system, unshare_command):
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    with executor_in_pid_namespace(system, unshare_command):
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
    first, second = (event["boot_id"] for event in system.wait_for_log("agent_ready", 2))
    assert first.rsplit("-", 1)[0] == second.rsplit("-", 1)[0], "host name and pid differ: the test shows nothing"
    assert first != second
    assert system.lab.log_events("job_reaped")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_f30_a_killed_agents_job_is_processed_again_long_before_its_lease_expires(
    make_system: MakeSystem, request: pytest.FixtureRequest, kind: str
) -> None:
    """The agent is killed and started again → it takes the jobs of its former process before it is ready."""
    with ExitStack() as stack:
        settings = {"SMITH_LEASE_S": "3600"}
        if kind == "postgresql":
            settings["SMITH_DATABASE_URL"] = stack.enter_context(request.getfixturevalue("postgres").fresh_database())
        system = make_system(time_scale=0.5, **settings)
        system.start()
        stack.enter_context(stopping_the_executor(system))
        service_id = system.order_service("f30-killed")
        system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
        system.kill_agent()
        assert system.wait_for_jobs(service_id)["status"] == "Stopped"
        system.assert_consistent()
        assert len(system.clone_requests_of(service_id)) == 1
        (reaped,), (killed, restarted) = system.lab.log_events("job_reaped"), system.lab.log_events("agent_ready")
        assert killed["timestamp"] < reaped["timestamp"] < restarted["timestamp"]
        rows = {row["id"]: row for row in system.rows("SELECT * FROM nodes")}
        assert rows[killed["boot_id"]]["stop_reason"] == "killed"
        installations = {rows[event["boot_id"]]["installation_id"] for event in (killed, restarted)}
        assert len(installations) == 1
        assert None not in installations


@contextmanager
def executor_in_pid_namespace(system: SystemUnderTest, unshare_command: list[str]) -> Iterator[None]:
    """Run the executor in a PID namespace, where its process ids are the same at each start; end it with SIGKILL."""
    with system.lab.log_file.open("ab") as log:
        popen_options = {"env": system.lab.environment(), "cwd": system.lab.folder, "stdout": log, "stderr": log}
        unshare_process = subprocess.Popen([*unshare_command, sys.executable, "-m", "executor", "run"], **popen_options)
    try:
        yield
    finally:
        unshare_process.kill()  # the first process of the namespace ends too, so the kernel kills the whole namespace
        unshare_process.wait()


def test_a_second_executor_on_the_same_sqlite_file_refuses_to_start(system: SystemUnderTest) -> None:
    """A second executor starts on the same SQLite file → it exits and names the process that holds the file."""
    second = subprocess.run(
        [sys.executable, "-m", "executor", "run"],
        env=system.lab.environment(),
        cwd=system.lab.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == EXIT_DATABASE
    assert f"pid {system.agent().pid} on {os.uname().nodename}" in second.stdout + second.stderr


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clock_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that shifts the wall clock of the process that loads it; return its path."""
    return build_clock_shift(tmp_path_factory.mktemp("clock"))


def test_f29_the_system_clock_jumps(make_system: MakeSystem, clock_shift: Path) -> None:
    """The system clock jumps an hour ahead and then two hours back
    → intervals, deadlines and leases are unaffected; jobs continue.
    """
    system = make_system(FULCRUM_HEARTBEAT_INTERVAL_S="2")
    shift = system.lab.folder / "shift"
    shift.write_text("0")
    system.lab.settings |= {"LD_PRELOAD": str(clock_shift), "CLOCK_SHIFT_FILE": str(shift)}
    system.start()
    system.create_vm("f29-before")
    for name, seconds in (("ahead", 3600), ("back", -3600)):
        before = datetime.fromisoformat(system.lab.log_events()[-1]["timestamp"])
        shift.write_text(str(seconds))
        assert system.wait_for_jobs(system.order_service(f"f29-{name}"))["status"] == "Stopped"
        jumped_s = (datetime.fromisoformat(system.lab.log_events()[-1]["timestamp"]) - before).total_seconds()
        assert abs(jumped_s) > 3000, "the clock did not jump: the test shows nothing"
        times = heartbeat_times(system)
        system.wait_until(
            lambda times=times: len(heartbeat_times(system)) > len(times) + 2, "heartbeats after the jump"
        )
    times = heartbeat_times(system)
    assert len(times) > 5
    assert max(later - earlier for earlier, later in pairwise(times)) < 60, "heartbeats waited for the clock"
    assert not system.lab.log_events("agent_stalled")
    system.assert_consistent()


def heartbeat_times(system: SystemUnderTest) -> list[float]:
    """Return the time of each heartbeat at FulcrumCore."""
    return [call["time"] for call in system.lab.core.history(method="PUT", path_end="/agents/me/status")]


def test_f29_the_whole_machine_is_suspended(system: SystemUnderTest) -> None:
    """The machine is suspended longer than every interval and resumes
    → no process is treated as stalled; jobs continue.
    """
    service_id = system.order_service("f29-suspended")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    with suspended_executor(system):
        time.sleep(10)
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert not system.lab.log_events("agent_stalled")
    system.assert_consistent()


# --- jobs that crash the agent ---------------------------------------------------------------------------------


def test_f34_a_job_that_crashes_the_agent_three_times(system: SystemUnderTest) -> None:
    """A job crashes the agent at each attempt → after three attempts it fails with QUARANTINED; other jobs continue."""
    crashing_service = system.lab.order_service("f34-crashing_service")
    with system.crashing("run_noted", service_id=crashing_service, times=3):
        others = [system.order_service(f"f34-{number}") for number in range(2)]
        assert system.wait_for_jobs(crashing_service)["status"] == "CreateFailed"
    assert system.last_job(crashing_service)["errorMessage"].startswith("QUARANTINED: ")
    assert [system.wait_for_jobs(service_id)["status"] for service_id in others] == ["Stopped"] * 2
    assert outcome_of(system.lab.run_action(crashing_service, "create")) == "Completed"
    system.assert_consistent()
