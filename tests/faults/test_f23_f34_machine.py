"""F23 to F34: runs, disks, databases, clocks and other nodes fail; a job brings the agent down."""

from __future__ import annotations

import contextlib
import dataclasses
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
from faults.conftest import MakeRig
from faults.rig import Rig, running_rig
from smith_lab.system import outcome_of
from support.databases import PostgresCluster, postgres_binaries, postgres_cluster

from executor.errors import EXIT_DATABASE

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresCluster]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("NOT TESTED ON POSTGRESQL: no server binaries in PATH or /usr/lib/postgresql")
    with postgres_cluster(binaries) as cluster:
        yield cluster


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", ["on", "off"])
def test_f23_only_the_playbook_processes_are_killed(make_rig: MakeRig, warm: str) -> None:
    """ansible-playbook is killed, by a person or for lack of memory → the job goes on, the agent is unhurt; one VM."""
    rig = make_rig(time_scale=0.5, SMITH_WARM=warm)
    rig.start()
    service_id = rig.order("f23")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    agent = rig.agent().pid
    for process in rig.run_processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # modules come and go
            if "guard" not in process.cmdline()[:5]:
                process.kill()
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert len(rig.clones_of(service_id)) == 1
    assert rig.agent().pid == agent
    rig.prove()


def badness(pid: int) -> int | None:
    """Return what the kernel adds to a process's badness; None for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError:
        return None


def test_f23_the_oom_killer_prefers_runs_to_the_agent(rig: Rig) -> None:
    """Memory runs out → each process of a run is offered to the kernel before the agent and the supervisor."""
    service_id = rig.order("f23-oom")
    kept = max(badness(pid) or 0 for pid in (rig.agent().pid, rig.lab.executor.pid))

    def are_offered() -> bool:
        scores = [badness(run.pid) for run in rig.run_processes()] if rig.clones_of(service_id) else []
        return bool(scores) and all(score is None or score > kept for score in scores)

    rig.until(are_offered, "a run whose processes are all offered")
    rig.wait_for_jobs(service_id)
    rig.prove()


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MiB. Only root can mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=300m,mode=0700", "tmpfs", str(place)]
    if not mount or not unmount or subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED ON A FULL DISK: this machine lets us mount nothing")
    yield place
    subprocess.run([unmount, "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Write into a file until nothing more fits."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(bytes(MIB)):
            pass


def test_f26_the_disk_is_full(small_disk: Path, tmp_path: Path) -> None:
    """Database, WAL and artifacts have no room → nothing is claimed, it is said once, and all goes on with room."""
    with running_rig(tmp_path, time_scale=0.2, SMITH_DATA_DIR=str(small_disk / "data")) as rig:
        rig.start()
        running = rig.order("f26-running")
        rig.until(lambda: rig.clones_of(running), "the clone to begin")
        ballast = small_disk / "ballast"
        fill(ballast)
        waiting = rig.order("f26-waiting")
        rig.logged("disk_space_low")
        time.sleep(5)  # in which the running job meets the full disk, and the waiting one must not begin
        assert not rig.clones_of(waiting)
        assert rig.lab.executor.poll() is None
        ballast.unlink()
        assert [rig.wait_for_jobs(service_id)["status"] for service_id in (running, waiting)] == ["Stopped"] * 2
        rig.logged("disk_space_recovered")
        assert len(rig.lab.log_events("disk_space_low")) == 1
        rig.prove()
        assert rig.lab.smith("db", "check")["problems"] == []
        rig.lab.stop_executor()


def test_f26_a_job_whose_end_was_not_stored_is_released_and_finished(small_disk: Path, tmp_path: Path) -> None:
    """A job's own write fails on the full disk → the job does not stay ours for ever: it is put back and done."""
    with running_rig(tmp_path, SMITH_DATA_DIR=str(small_disk / "data"), SMITH_LEASE_S="6") as rig:
        rig.lab.core.fault("delay", method="POST", path="/claim$", delay_s=3, times=1)
        rig.start()
        service_id = rig.order("f26-forgotten")
        claim_sent = "SELECT 1 FROM jobs WHERE claim_sent_at IS NOT NULL"
        rig.until(lambda: rig.rows(claim_sent), "the claim to be on its way")
        ballast = small_disk / "ballast"
        fill(ballast)
        rig.logged("job_end_not_stored")
        ballast.unlink()
        rig.logged("job_released")
        assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
        rig.prove()
        rig.lab.stop_executor()


def test_f33_artifacts_cannot_be_written(rig: Rig) -> None:
    """The folder of artifacts cannot be written → the result is read all the same, and the report goes."""
    folder = rig.lab.data_dir / "artifacts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    try:
        service_id = rig.order("f33")
        assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
        rig.prove()
        assert rig.lab.log_events("artifacts_not_stored")
    finally:
        folder.unlink()


def test_f33_artifacts_are_deleted_before_the_report(rig: Rig) -> None:
    """The artifacts vanish before FulcrumCore took the report → it goes: it stands in the row."""
    rig.lab.core.fault("status", status=503, method="POST", path="/complete$")
    service_id = rig.order("f33-gone")
    ended = "SELECT 1 FROM jobs WHERE service_id = ? AND report_state = 'due'"
    rig.until(lambda: rig.rows(ended, service_id), "the result")
    shutil.rmtree(rig.lab.data_dir / "artifacts")
    rig.lab.core.clear_faults()
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    rig.prove()


# --- the database -------------------------------------------------------------------------------------------------


def test_f27_the_sqlite_file_is_locked_beyond_the_busy_timeout(rig: Rig) -> None:
    """Somebody holds SQLite's lock for 20 s while a job runs → nothing is lost, and the heart beats on."""
    service_id = rig.order("f27")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    connection = sqlite3.connect(rig.lab.data_dir / "smith.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        started = time.time()
        time.sleep(20)  # longer than the 15 s that a writer waits
        beats = [call for call in rig.lab.core.history(method="PUT") if call["time"] > started]
        assert beats
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    rig.prove()


def test_f27_postgresql_closes_connections_and_restarts(postgres: PostgresCluster, make_rig: MakeRig) -> None:
    """PostgreSQL cuts connections in the middle of transactions, then restarts → nothing is lost or doubled."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        rig = make_rig(time_scale=0.3, SMITH_DATABASE_URL=url, SMITH_CONCURRENCY="4")
        stack.enter_context(stopped_at_the_end(rig))
        rig.start()
        services = [rig.order(f"f27-{number}") for number in range(4)]
        rig.until(rig.clones, "a clone to begin")
        ours = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'smith'"
        )
        for _ in range(10):
            postgres.execute(ours)
            time.sleep(0.1)
        postgres.stop(signal.SIGINT)
        time.sleep(3)  # an outage that runs end in
        postgres.start()
        assert [rig.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 4
        rig.prove()


# --- other nodes --------------------------------------------------------------------------------------------------


@contextmanager
def second_node(rig: Rig) -> Iterator[Rig]:
    """One more executor on the same database."""
    folder = rig.lab.folder / "second"
    folder.mkdir()
    own = {"SMITH_DATA_DIR": str(folder / "data"), "SMITH_RUN_DIR": str(folder / "run")}
    lab = dataclasses.replace(rig.lab, folder=folder, settings=rig.lab.settings | own, _executor=None)
    node = Rig(lab=lab)
    node.start()
    try:
        yield node
    finally:
        lab.stop_executor()


def test_f28_a_node_that_was_suspended_past_its_lease_writes_nothing(
    postgres: PostgresCluster, make_rig: MakeRig
) -> None:
    """A node sleeps past its lease, another takes its jobs, and it wakes up → its writes are refused; one effect."""
    with postgres.fresh_database() as url:
        rig = make_rig(time_scale=1.0, SMITH_DATABASE_URL=url, SMITH_LEASE_S="6", SMITH_CONCURRENCY="2")
        rig.lab.core.switch(two_claims_win=True)
        rig.start()
        with stopped_at_the_end(rig), second_node(rig) as other:
            services = [rig.order(f"f28-{number}") for number in range(4)]
            rig.until(lambda: len(rig.clones()) == 4, "all clones to begin")
            with asleep(rig):
                other.logged("job_reaped")
            assert [rig.wait_for_jobs(service_id)["status"] for service_id in services] == ["Stopped"] * 4
            rig.logged("job_lost")
            assert len(rig.clones()) == 4
            rig.prove()


@contextmanager
def stopped_at_the_end(rig: Rig) -> Iterator[None]:
    """The executor must be gone before its database is."""
    try:
        yield
    finally:
        rig.lab.stop_executor()


@contextmanager
def asleep(rig: Rig) -> Iterator[None]:
    """Stop every process of the executor, and let them go on."""
    supervisor = psutil.Process(rig.lab.executor.pid)
    paused = [supervisor, *supervisor.children(recursive=True)]
    for process in paused:
        process.suspend()
    try:
        yield
    finally:
        for process in paused:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_f30_an_agent_with_the_same_host_name_and_pid_is_a_new_instance(make_rig: MakeRig) -> None:
    """A container starts again, with the same host name and process ids → the dead agent's jobs are taken back."""
    inside = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED IN A PROCESS NAMESPACE: this machine lets us make none")
    rig = make_rig(time_scale=0.5)
    service_id = rig.order("f30")
    with container(rig, inside):
        rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    with container(rig, inside):
        assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
        rig.prove()
    first, second = (event["boot_id"] for event in rig.logged("agent_ready", 2))
    assert first.rsplit("-", 1)[0] == second.rsplit("-", 1)[0], "host name and pid are not the same: no test"
    assert first != second
    assert rig.lab.log_events("job_reaped")


@contextmanager
def container(rig: Rig, inside: list[str]) -> Iterator[None]:
    """Run the executor in a process namespace, in which its process ids are always the same; end it by SIGKILL."""
    with rig.lab.log_file.open("ab") as log:
        where = {"env": rig.lab.environment(), "cwd": rig.lab.folder, "stdout": log, "stderr": log}
        outside = subprocess.Popen([*inside, sys.executable, "-m", "executor", "run"], **where)
    try:
        yield
    finally:
        outside.kill()  # and the kernel the whole namespace, because its first process dies with this one
        outside.wait()


def test_a_second_executor_on_the_same_sqlite_file_refuses_to_start(rig: Rig) -> None:
    """A second executor is started on the file of the first → it refuses, saying who holds it."""
    second = subprocess.run(
        [sys.executable, "-m", "executor", "run"],
        env=rig.lab.environment(),
        cwd=rig.lab.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == EXIT_DATABASE
    assert f"pid {rig.agent().pid} on {os.uname().nodename}" in second.stdout + second.stderr


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clock_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that shifts the clock of the process that it is loaded into."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("clock") / "clock_shift.so"
    if compiler is None:
        pytest.skip("NOT TESTED WITH A JUMPING CLOCK: no C compiler")
    source = Path(__file__).parents[1] / "support" / "clock_shift.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library


def test_f29_the_system_clock_jumps(make_rig: MakeRig, clock_shift: Path) -> None:
    """The machine's clock jumps an hour ahead and two back → intervals, deadlines and leases hold; jobs go on."""
    rig = make_rig(FULCRUM_HEARTBEAT_INTERVAL_S="2")
    shift = rig.lab.folder / "shift"
    shift.write_text("0")
    rig.lab.settings |= {"LD_PRELOAD": str(clock_shift), "CLOCK_SHIFT_FILE": str(shift)}
    rig.start()
    rig.made("f29-before")
    for name, seconds in (("ahead", 3600), ("back", -3600)):
        before = datetime.fromisoformat(rig.lab.log_events()[-1]["timestamp"])
        shift.write_text(str(seconds))
        assert rig.wait_for_jobs(rig.order(f"f29-{name}"))["status"] == "Stopped"
        jumped_s = (datetime.fromisoformat(rig.lab.log_events()[-1]["timestamp"]) - before).total_seconds()
        assert abs(jumped_s) > 3000, "the clock did not jump: no test"
        beats = heartbeats(rig)
        rig.until(lambda beats=beats: len(heartbeats(rig)) > len(beats) + 2, "heartbeats after the jump")
    beats = heartbeats(rig)
    assert len(beats) > 5
    assert max(later - earlier for earlier, later in pairwise(beats)) < 60, "an hour that jumped was waited for"
    assert not rig.lab.log_events("agent_stalled")
    rig.prove()


def heartbeats(rig: Rig) -> list[float]:
    """Return when FulcrumCore got each heartbeat."""
    return [call["time"] for call in rig.lab.core.history(method="PUT", path="/agents/me/status")]


def test_f29_the_whole_machine_is_suspended(rig: Rig) -> None:
    """The machine is suspended past every interval and goes on → nothing is taken for hanging; jobs go on."""
    service_id = rig.order("f29-asleep")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    with asleep(rig):
        time.sleep(10)
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert not rig.lab.log_events("agent_stalled")
    rig.prove()


# --- jobs that bring the agent down ---------------------------------------------------------------------------------


def test_f34_a_job_that_crashes_the_agent_three_times(rig: Rig) -> None:
    """A job kills the agent each time it runs → after three tries it fails as QUARANTINED; the others go on."""
    poison = rig.lab.order("f34-poison")
    with rig.crashing("run_noted", service_id=poison, times=3):
        others = [rig.order(f"f34-{number}") for number in range(2)]
        assert rig.wait_for_jobs(poison)["status"] == "CreateFailed"
    assert rig.last_job(poison)["errorMessage"].startswith("QUARANTINED: ")
    assert [rig.wait_for_jobs(service_id)["status"] for service_id in others] == ["Stopped"] * 2
    assert outcome_of(rig.lab.run_action(poison, "create")) == "Completed"
    rig.prove()
