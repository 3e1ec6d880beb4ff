"""Warm runs have no effect on each other, and only the agent's user can start one."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from support.warm_site import TOKEN, WHICH, Site, debug, eventually, run_dir, said, site, was_warm

from executor.model import PlaybookRun, RunStatus
from executor.processes import process_tree
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.warm import protocol

__all__ = ["run_dir", "site"]

pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(900)]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_socket_fits_into_the_temporary_folder_of_a_run_with_a_long_path(tmp_path: Path, warm: bool) -> None:
    """The path of a Unix socket has some 100 bytes at most, and ansible-core 2.21 opens a socket in TMPDIR.

    The name of an action may have 50 characters, and SMITH_RUN_DIR more.
    """
    site = Site(tmp_path, tmp_path / ("r" * 90))
    if warm:
        site.warmed()
    listen = "from multiprocessing.connection import Listener; print(len(Listener(family='AF_UNIX').address))"
    tasks = f"- name: Listen\n  ansible.builtin.command: {json.dumps(shlex.join([sys.executable, '-c', listen]))}\n"

    try:
        artifacts = site.play(tasks + debug(WHICH + " {{ lookup('env', 'TMPDIR') }}"))
    finally:
        site.runner.stop_warm_server()

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert was_warm(artifacts) == warm
    temporary_folder = said(artifacts).split()[-1]
    assert not os.path.lexists(temporary_folder)
    assert [path.name for path in site.run_dir.iterdir()] == [RUN_UNTIL_FILE]


def test_a_link_at_the_path_of_the_short_temporary_folder_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, link_target = tmp_path / "public", tmp_path / "elsewhere"
    public.mkdir()
    link_target.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(public))
    site = Site(tmp_path, tmp_path / ("r" * 90))
    run = site.run_of(debug("{{ lookup('env', 'TMPDIR') }}"), "run-1")
    tmp = site.run_dir / "run-1" / "tmp"
    link = public / f"smith-{hashlib.sha256(os.fsencode(tmp)).hexdigest()[:16]}"
    link.symlink_to(link_target)
    artifacts = site.runner.run(run)

    # With ansible-core 2.21 the run fails because the path of its socket is too long, as it would without a link.
    assert str(tmp) in said(artifacts) or "Local RPC server did not start" in (artifacts.folder / "stdout").read_text()
    assert list(link_target.iterdir()) == []


def test_concurrent_warm_runs_do_not_see_each_others_environment_or_variables(site: Site) -> None:
    site.warmed()
    tasks = (
        "- name: Keep\n  ansible.builtin.set_fact:\n    kept_{{ vm.name }}: true\n"
        "- name: Meet\n  ansible.builtin.shell: |\n"
        f"    touch {site.folder}/met-$SMITH_RUN_IDENT\n"
        f"    while [ $(ls {site.folder} | grep -c met-) -lt 2 ]; do sleep 0.1; done\n"
    )
    report = debug(
        "{{ vm.name }} {{ lookup('env', 'SMITH_RUN_IDENT') }} {{ lookup('env', 'HOME') }} "
        "{{ vars.keys() | select('match', 'kept_') | list }} " + WHICH
    )
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(site.play, tasks + report, f"run-{name}", vm={"name": name}, timeout_s=120)
            for name in ("a", "b")
        ]
        runs = dict(zip("ab", [future.result() for future in futures], strict=True))
    for name, run in runs.items():
        other_name = "b" if name == "a" else "a"
        assert run.status is RunStatus.SUCCESSFUL
        assert was_warm(run)
        assert f"{name} run-{name} {site.run_dir}/run-{name}/home ['kept_{name}']" in said(run)
        assert f"run-{other_name}" not in said(run)


def test_three_hundred_warm_runs_leak_no_file_descriptor_and_no_memory(site: Site) -> None:
    site.warmed()
    planned = site.run_of(debug("x"))

    def play(number: int) -> RunStatus:
        fields = {
            "ident": f"run-{number}",
            "action": "test",
            "playbook": planned.playbook,
            "vm": {},
            "timeout_s": 120.0,
        }
        return site.runner.run(PlaybookRun(**fields)).status

    with structlog.testing.capture_logs() as logs, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(play, range(20))) == {RunStatus.SUCCESSFUL}
        before = measure_resources(site)
        assert set(pool.map(play, range(20, 320))) == {RunStatus.SUCCESSFUL}
    after = measure_resources(site)

    assert not [entry for entry in logs if entry["event"] == "orphan_processes_killed"], (
        "a guard was taken for an orphan process"
    )
    assert after["files"] == before["files"]
    assert after["server_descriptors"] == before["server_descriptors"]
    assert after["agent_descriptors"] <= before["agent_descriptors"]  # fewer, if a run had just ended
    assert after["server"] == before["server"]
    assert after["mib"] - before["mib"] < 4


def measure_resources(site: Site) -> dict[str, Any]:
    """Return the resources that server and agent use while there is no run."""
    pid = eventually(site.runner.warm_server_pid)
    eventually(lambda: not process_tree.descendants(pid))
    server = psutil.Process(pid)
    return {
        "files": sorted(str(path) for path in site.run_dir.rglob("*")),
        "server_descriptors": server.num_fds(),
        "agent_descriptors": psutil.Process().num_fds(),
        "server": pid,
        "mib": server.memory_info().rss / 1024 / 1024,
    }


def test_no_secret_is_in_a_warm_runs_environment_or_command_line(site: Site) -> None:
    site.warmed()
    holding_task = f"- name: Hold\n  ansible.builtin.shell: touch {site.folder}/holds; sleep 600\n"
    vm = {"name": "x", "cloud_init": {"password": "canary-password-91"}}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, holding_task, "run-1", vm=vm)
        eventually((site.folder / "holds").exists)
        pids = [os.getpid(), *process_tree.descendants(os.getpid())]
        environments_and_commands = b"".join(
            read_or_empty(f"/proc/{pid}/{file}") for pid in pids[1:] for file in ("environ", "cmdline")
        )
        site.runner.kill("run-1")
        future.result()

    assert b"SMITH_RUN_IDENT=run-1" in environments_and_commands
    assert TOKEN.encode() not in environments_and_commands
    assert b"canary-password" not in environments_and_commands


def read_or_empty(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_only_the_agents_user_can_use_the_socket(site: Site) -> None:
    site.warmed()
    (socket,) = (site.run_dir / ".warm").glob("*.sock")

    assert socket.stat().st_mode & 0o777 == 0o600
    assert (site.run_dir / ".warm").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("message", [b"", b"\0", b"\0\0\0\5ab", b"\xff\xff\xff\xff", b"\0\0\0\4/\09\0"])
def test_an_invalid_request_does_not_affect_the_server(site: Site, message: bytes) -> None:
    site.warmed()
    for path in (site.run_dir / ".warm").glob("*.sock"):
        with protocol.connect(str(path)) as connection:
            connection.sendall(message)

    assert was_warm(site.play(debug(WHICH)))
