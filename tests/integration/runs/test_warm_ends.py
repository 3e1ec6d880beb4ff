"""How warm runs and their servers end: no process is left, and a server that has ended is replaced."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import structlog
from support.warm_site import WHICH, Site, debug, eventually, is_alive, run_dir, site, unavailable, was_warm

from executor.model import RunStatus
from executor.processes import process_tree
from executor.runs.warm import server_process, servers
from executor.runs.warm.servers import WarmServerKeeper

__all__ = ["run_dir", "site"]

pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(900)]


def test_a_timed_out_warm_run_ends_with_all_its_processes(site: Site) -> None:
    artifacts = site.warmed().play(site.stubborn(), timeout_s=8)

    assert (artifacts.status, artifacts.rc) == (RunStatus.TIMEOUT, 254)
    assert site.is_busy(), "the play did not start its processes in time"
    assert site.orphans() == []
    assert processes_of_runs(site) == set()


def test_a_cancelled_warm_run_ends_with_all_its_processes(site: Site) -> None:
    planned = site.warmed().run_of(site.stubborn())

    artifacts = site.runner.run(planned, should_cancel=site.is_busy)

    assert artifacts.status is RunStatus.CANCELED
    assert site.orphans() == []
    assert processes_of_runs(site) == set()


def test_a_warm_run_is_found_and_killed_by_its_ident(site: Site) -> None:
    site.warmed()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, site.stubborn(), "run-1")
        eventually(site.is_busy)
        server = site.runner.warm_server_pid()
        assert server is not None
        # A process that starts between the two calls is in only one of the two sets, so they are compared repeatedly.
        eventually(
            lambda: (
                process_tree.descendants(server) <= process_tree.processes_with_variable("SMITH_RUN_IDENT", "run-1\0")
            )
        )
        site.runner.kill("run-1")
        assert site.orphans() == []
        assert future.result().status is RunStatus.CANCELED


@pytest.mark.parametrize("role", ["client", "guard", "play"])
def test_a_warm_run_with_a_killed_process_fails_and_leaves_no_process(site: Site, role: str) -> None:
    site.warmed()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, site.stubborn(), "run-1")
        eventually(site.is_busy)
        os.kill(process_of(site, role), signal.SIGKILL)
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 137)
    assert processes_of_runs(site) == set()
    # If the guard is killed, a process that has left session and environment cannot be found, as in a cold run.
    assert role == "guard" or site.orphans() == []


def process_of(site: Site, role: str) -> int:
    """Return the process of the run by its role. The agent starts the client; the server forks guard and play."""
    server = psutil.Process(eventually(site.runner.warm_server_pid))
    guard = next(iter(server.children()))
    if role == "guard":
        return guard.pid
    if role == "play":
        return guard.children()[0].pid
    script = str(Path(client_file()))
    return next(process.pid for process in psutil.Process().children(recursive=True) if has_argument(process, script))


def client_file() -> str:
    return str(servers.CLIENT_SCRIPT)


def has_argument(process: psutil.Process, argument: str) -> bool:
    try:
        return argument in process.cmdline()
    except psutil.Error:
        return False


def processes_of_runs(site: Site) -> set[int]:
    """Return the processes of all runs of this site, without the servers."""
    pids = process_tree.processes_with_variable("SMITH_CREDENTIALS_FILE", f"{site.run_dir}/run-")
    return {pid for pid in pids if is_alive(pid)}


def test_a_run_continues_when_its_server_is_killed_and_the_next_run_waits_for_a_new_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "RESTART_BACKOFF_S", 0.0)
    site.warmed()
    wait = f"- name: Wait\n  ansible.builtin.shell: touch {site.folder}/waits; sleep 4\n"
    with structlog.testing.capture_logs() as logs, ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, wait + debug(WHICH))
        eventually((site.folder / "waits").exists)
        first_server_pid = eventually(site.runner.warm_server_pid)
        os.kill(first_server_pid, signal.SIGKILL)
        eventually(lambda: not is_alive(first_server_pid))
        second = site.play(debug(WHICH))
        assert future.result().status is RunStatus.SUCCESSFUL
        assert second.status is RunStatus.SUCCESSFUL
        assert was_warm(second)

    assert unavailable(logs) == ["the playbook server ended with exit code -9"]
    assert site.runner.warm_server_pid() not in (None, first_server_pid)


def test_runs_are_cold_when_a_server_ends_again_within_the_backoff(site: Site) -> None:
    site.warmed()
    for _ in range(2):
        os.kill(eventually(site.runner.warm_server_pid), signal.SIGKILL)
        run = site.play(debug(WHICH))

    assert run.status is RunStatus.SUCCESSFUL
    assert not was_warm(run)


def test_a_server_that_hangs_is_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "RESTART_BACKOFF_S", 0.0)
    monkeypatch.setattr(servers, "PROBE_INTERVAL_S", 0.0)
    monkeypatch.setattr(servers, "PROBE_TIMEOUT_S", 0.5)
    site.warmed()
    hanging = psutil.Process(eventually(site.runner.warm_server_pid))
    hanging.suspend()
    with structlog.testing.capture_logs() as logs:
        artifacts = site.play(debug(WHICH))

    assert not is_alive(hanging.pid)
    assert artifacts.status is RunStatus.SUCCESSFUL
    assert was_warm(artifacts)
    assert unavailable(logs) == ["the playbook server does not answer"]


def test_the_server_ends_when_its_agent_is_killed(site: Site) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from executor.runs.runner import Runner, RunnerPaths
        folder = Path({str(site.folder)!r})
        home = Path({str(site.home)!r})
        paths = RunnerPaths(collection_folder=home, run_dir=folder / "other", artifacts_dir=folder / "a")
        runner = Runner(paths, dict)
        runner.start_warm_server()
        while not runner.warm_server_pid():
            time.sleep(0.05)
        print(runner.warm_server_pid(), flush=True)
        time.sleep(600)
    """
    agent = psutil.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=-1)
    pid = int(agent.stdout.readline())
    assert is_alive(pid)

    agent.kill()
    agent.wait()

    eventually(lambda: not is_alive(pid))
    agent.stdout.close()


#: Delays the start of each Python process until the file `go` exists.
SLOW_START = """
import os, time
while not os.path.exists({go!r}):
    time.sleep(0.05)
"""


def test_closing_the_server_keeper_ends_a_server_that_is_just_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 0.5)
    (tmp_path / "sitecustomize.py").write_text(SLOW_START.format(go=str(tmp_path / "go")))
    marker = {"SMITH_TEST_SERVER": str(tmp_path)}
    warm_server_keeper = WarmServerKeeper(
        tmp_path, tmp_path, lambda: {**os.environ, **marker, "PYTHONPATH": str(tmp_path)}
    )

    def server_pids() -> set[int]:
        pids = process_tree.processes_with_variable("SMITH_TEST_SERVER", f"{tmp_path}\0")
        return {pid for pid in pids if is_alive(pid)}

    with structlog.testing.capture_logs() as logs:
        warm_server_keeper.start()
        eventually(server_pids)
        warm_server_keeper.close()
        assert server_pids() == set()
        (tmp_path / "go").touch()  # so that the test leaves no process if it fails
    assert warm_server_keeper.pid() is None
    assert unavailable(logs) == []


def test_a_server_that_has_reached_its_maximum_of_runs_is_replaced_without_a_cold_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "MAX_RUNS_PER_SERVER", 2)
    site.warmed()
    first_server_pid = eventually(site.runner.warm_server_pid)
    runs = [site.play(debug(WHICH)) for _ in range(2)]
    eventually(lambda: site.runner.warm_server_pid() != first_server_pid)
    runs.append(site.play(debug(WHICH)))

    assert all(was_warm(run) for run in runs)
    eventually(lambda: not is_alive(first_server_pid))
    eventually(lambda: len(list((site.run_dir / ".warm").glob("playbook-*"))) == 2)  # the socket and the log


def test_a_sweep_ends_the_server_of_a_killed_agent_and_returns_no_run(site: Site) -> None:
    site.warmed()
    server_pid = eventually(site.runner.warm_server_pid)

    assert site.runner.end_earlier_runs() == []
    assert not is_alive(server_pid)
