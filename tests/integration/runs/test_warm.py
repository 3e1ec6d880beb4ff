"""Warm runs: the same artifacts as cold ones, no process left at their end, and no effect on each other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
import yaml
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in

from executor.errors import SettingsError
from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.processes import process_tree
from executor.redaction import Redactor
from executor.runs.actions import ansible_home
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths
from executor.runs.warm import patches, protocol, server_process, servers
from executor.runs.warm.servers import WarmServers

pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(900)]

TOKEN = "canary-token-Zt7Kq2"
#: A template for the command line of the play's process: the server's, or that of ansible-playbook.
WHICH = "{{ lookup('ansible.builtin.pipe', 'cat /proc/$PPID/cmdline | tr \"\\\\0\" \" \"') }}"
STUBBORN = """
- name: Start processes that ignore TERM
  ansible.builtin.shell: |
    trap '' TERM
    env -i {folder}/orphan.sh {folder} &
    echo $$ > {folder}/shell.pid
    sleep 600
  args:
    executable: /bin/sh
"""
ORPHAN = """#!/bin/sh
trap '' TERM
PATH=/usr/bin:/bin
setsid sh -c 'trap "" TERM; echo $$ > "$0/orphan.tmp"; mv "$0/orphan.tmp" "$0/orphan.pid"; sleep 600' "$1" &
"""


class Site:
    """A folder of playbooks, and a warm runner for it."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.folder = folder
        self.home = folder / "ansible"
        (self.home / "playbooks").mkdir(parents=True)
        (self.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        hosts = {"here": local, "there": local}
        (self.home / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        paths = RunnerPaths(ansible_home=self.home, run_dir=run_dir, artifacts_dir=folder / "artifacts")
        self.runner = Runner(paths, lambda: {"api_token_secret": TOKEN}, redactor=Redactor())
        self.run_dir = paths.run_dir

    def warmed(self) -> Site:
        self.runner.start_warm_servers()
        eventually(self.runner.warm_server_pid)
        return self

    def play(self, tasks: str, ident: str = "", **fields: Any) -> RunArtifacts:
        """Run a play of these Ansible tasks."""
        return self.runner.run(self.run_of(tasks, ident, **fields))

    def run_of(self, tasks: str, ident: str = "", hosts: str = "here", **fields: Any) -> PlaybookRun:
        name = uuid.uuid4().hex[:8]
        file = self.home / "playbooks" / f"{name}.yml"
        head = f"---\n- name: Play\n  hosts: {hosts}\n  gather_facts: false\n  tasks:\n"
        file.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
        fields = {"vm": {}, "timeout_s": 60.0} | fields
        return PlaybookRun(ident=ident or f"run-{name}", action="test", playbook=file, **fields)

    def stubborn(self) -> str:
        orphan = self.folder / "orphan.sh"
        orphan.write_text(ORPHAN)
        orphan.chmod(0o700)
        return STUBBORN.format(folder=self.folder)

    def is_busy(self) -> bool:
        return len(list(self.folder.glob("*.pid"))) == 2

    def orphans(self) -> list[int]:
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        return [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    limit = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)
    return found


def events_of(artifacts: RunArtifacts) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifacts.folder / "events.jsonl").read_text().splitlines()]


def said(artifacts: RunArtifacts) -> str:
    """Return the messages of the run's debug tasks."""
    messages = [event.get("event_data", {}).get("res", {}).get("msg") for event in events_of(artifacts)]
    return "\n".join(str(message) for message in messages if message)


def was_warm(artifacts: RunArtifacts) -> bool:
    return "executor.runs.warm.playbook_server" in said(artifacts)


def debug(text: str) -> str:
    return f"- name: Say\n  ansible.builtin.debug:\n    msg: {json.dumps(text)}\n"


def unavailable(logs: list[Any]) -> list[str]:
    return [entry["reason"] for entry in logs if entry["event"] == "warm_unavailable"]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Return a folder with a path so short that a run's temporary folder needs no link."""
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        yield Path(folder, "r")


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm_servers()
    for pid in site.orphans():
        process_tree.end_processes(
            lambda pid=pid: {pid, *process_tree.descendants(pid)} if is_alive(pid) else (), grace_s=0
        )


# --- the same ---------------------------------------------------------------------------------------------------------


LIFE = (
    *("create", "start", "restart", "update", "resize", "snapshot"),
    *("backup", "migrate", "stop", "rollback", "delete"),
)
#: What differs between any two runs: times, ids, process ids, and values that Proxmox generates.
VOLATILE = (
    (r"\[\d+\.\d s\]", "[seconds]"),  # at the end of a progress line
    (r"UPID:[^\"' ,\]]+", "UPID"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}", "MAC"),
    (r"vmgenid=\w+|digest\W+\w{40}", "MADE-UP"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+(?:\+00:00)?", "TIME"),
    (r"\d:\d\d:\d\d\.\d+", "DURATION"),
    (r"\b1[67]\d{8}(?:\.\d+)?\b", "EPOCH"),
)
VOLATILE_KEYS = {"pid", "start", "end", "duration", "created", "uuid", "parent_uuid", "ctime", "starttime", "endtime"}
VOLATILE_KEYS |= {"uptime", "cpu", "mem", "netin", "netout", "diskread", "diskwrite", "known_tasks", "deadline", "date"}
VOLATILE_KEYS |= {"start_line", "end_line", "snaptime", "pressure", "time", "looked_at", "taken_at"}
VOLATILE_KEYS |= {"api_port"}  # of the stand-in; each kind of run has its own


#: Text of a progress line about a wait, which only a slow run writes.
WAIT = "): waiting"


def normal(value: Any) -> Any:
    """Return the value without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, str):
        for pattern, name in VOLATILE:
            value = re.sub(pattern, name, value)
    return value


def live(stand_in: ProxmoxStandIn, folder: Path, vm: dict[str, Any], *, warm: bool) -> list[dict[str, Any]]:
    """Run all actions on a VM, in a new folder; return the artifacts of each run."""
    credentials = {
        **{"api_host": stand_in.host, "api_port": stand_in.port, "api_user": stand_in.user, "validate_certs": True},
        **{"api_token_id": stand_in.token_id, "api_token_secret": stand_in.token_secret},
    }
    paths = RunnerPaths(ansible_home=ansible_home(), run_dir=folder / "run", artifacts_dir=folder / "artifacts")
    runner = Runner(paths, lambda: credentials, ca_bundle=stand_in.ca_bundle)
    pid = None
    if warm:
        runner.start_warm_servers()
        pid = eventually(runner.warm_server_pid)
    try:
        left = [left_by(runner, action, vm) for action in LIFE]
        assert runner.warm_server_pid() == pid, "the server was replaced"
        if warm:
            logs = "".join(file.read_text() for file in (folder / "run" / ".warm").glob("*.log"))
            assert logs == ""
            used = psutil.Process(pid).cpu_times()
            assert used.children_user > used.user / 10, "the server did no work"
    finally:
        runner.stop_warm_servers()
    assert [path.name for path in (folder / "run").iterdir()] == [RUN_UNTIL_FILE]
    return left


def left_by(runner: Runner, action: str, vm: dict[str, Any]) -> dict[str, Any]:
    playbook = ansible_home() / "playbooks" / f"{action}.yml"
    changed = {"update": {"cores": 4, "memory_mib": 4096, "disk_gib": 12}, "resize": {"disk_gib": 14}}.get(action, {})
    run = PlaybookRun(ident=f"{action}-1", action=action, playbook=playbook, vm=vm | changed, timeout_s=120)
    artifacts = runner.run(run)
    return {
        "status": (artifacts.status, artifacts.rc),
        "files": sorted((file.name, file.stat().st_mode) for file in artifacts.folder.iterdir()),
        "stdout": [line for line in normal((artifacts.folder / "stdout").read_text()).splitlines() if WAIT not in line],
        "events": [normal(event) for event in events_of(artifacts) if WAIT not in str(event.get("stdout"))],
    }


def test_cold_and_warm_leave_equal_events_results_and_artifacts_over_the_life_of_a_vm(run_dir: Path) -> None:
    service_id = str(uuid.uuid4())
    vm = {
        **{"service_id": service_id, "vmid": 31_000, "name": f"web-{service_id[:8]}", "node": "", "tags": ["web"]},
        **{"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 10, "timeout_s": 100},
        **{"shutdown_timeout_s": 5, "address_timeout_s": 1, "properties": {"name": "before"}, "snapshot": "before"},
        **{"storage": "ceph", "backup_storage": "backups", "target_node": "pve2"},
    }
    with running_stand_in() as for_warm, running_stand_in() as for_cold:  # a backup stays when its VM is deleted
        warm = live(for_warm, run_dir / "warm", vm, warm=True)
        cold = live(for_cold, run_dir / "cold", vm, warm=False)
    for action, cold_left, warm_left in zip(LIFE, cold, warm, strict=True):
        assert warm_left["status"] == cold_left["status"], (action, warm_left["stdout"])
        assert warm_left["files"] == cold_left["files"], action
        assert warm_left["stdout"] == cold_left["stdout"], action
        assert len(warm_left["events"]) == len(cold_left["events"]), action
        for cold_event, warm_event in zip(cold_left["events"], warm_left["events"], strict=True):
            assert warm_event == cold_event, action
    assert {left["status"] for left in cold} == {(RunStatus.SUCCESSFUL, 0)}


PROCESS_STATE = r"""
- name: Report the state of the process that runs the Ansible tasks
  process_state: {}
"""
#: Reports the state of an Ansible task's process, without process ids and the run's folder.
PROCESS_STATE_PLUGIN = r"""
import gc, locale, logging, os, re, resource, signal, socket, sys, tempfile, threading, time, warnings
from ansible import constants as C
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        here = os.path.dirname(os.environ["SMITH_CREDENTIALS_FILE"])
        ident = os.environ["SMITH_RUN_IDENT"]
        def text(value):
            value = str(value).replace(here, "<run>").replace(ident, "<ident>")
            return re.sub(r" at 0x[0-9a-f]+|parent=[0-9]+|#[0-9]+|-local-.*", "", value)
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")]
        constants = {name: text(getattr(C, name)) for name in C.config.get_configuration_definitions()}
        constants.pop("DEFAULT_LOCAL_TMP")
        handlers = {int(number): text(signal.getsignal(number)) for number in signal.valid_signals()}
        return {
            "environment": {name: text(value) for name, value in sorted(os.environ.items())},
            "constants": constants,
            "local_tmp": os.path.dirname(C.DEFAULT_LOCAL_TMP) == os.environ["TMPDIR"],
            "tempdir": text(tempfile.gettempdir()),
            "files": sorted(text(link).partition(":")[0] for link in links),
            "handlers": handlers,
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "wakeup_fd": signal.set_wakeup_fd(-1),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "locale": locale.setlocale(locale.LC_ALL),
            "streams": [(stream.encoding, stream.errors, stream.line_buffering) for stream in (sys.stdout, sys.stderr)],
            "argv": text(sys.argv), "path": text(sys.path), "flags": text([sys.flags.optimize, sys.flags.dev_mode]),
            "cwd": text(os.getcwd()), "umask": [os.umask(0o77), os.umask(0o77)],
            "limits": [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
            "oom": open("/proc/self/oom_score_adj").read(),
            "logging": [text(handler) for handler in logging.getLogger().handlers] + [logging.getLogger().level],
            # Some libraries add filters for their own warnings at their import, which is earlier here.
            "filters": [text(entry) for entry in warnings.filters if entry[2].__module__ == "builtins"],
            "gc": [gc.isenabled(), gc.get_threshold()], "zone": time.tzname, "timeout": socket.getdefaulttimeout(),
            "seen": sorted(text(path) for path in C.config._plugins.get("action", {})),
            "plugin_paths": [text(path) for path in self._shared_loader_obj.action_loader._get_paths()],
        }
"""


@pytest.fixture
def hangups_ignored() -> Iterator[None]:
    """Ignore the signals that the agent under a supervisor ignores."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


#: What differs for an Ansible task without a fork: the play's result thread, streams and signal handlers.
NO_FORK = {"files", "handlers", "streams", "threads"}


@pytest.mark.parametrize(("hosts", "differ"), [("here", NO_FORK), ("all", set())])
def test_an_ansible_task_sees_the_same_process_warm_and_cold(
    site: Site, hangups_ignored: None, hosts: str, differ: set[str]
) -> None:
    """Environment, constants, folders, files, signals, streams, limits, logging: all state that a run could inherit."""
    plugins = site.home / "playbooks" / "action_plugins"
    plugins.mkdir()
    (plugins / "process_state.py").write_text(PROCESS_STATE_PLUGIN)
    planned = site.run_of(PROCESS_STATE, hosts=hosts)
    expected = process_state(site.runner.run(planned))
    site.warmed()
    found = [process_state(site.runner.run(replace(planned, ident=f"run-{number}"))) for number in range(3)]

    assert found[0] == found[1] == found[2]
    assert len(expected) > 25
    for aspect in expected.keys() - differ:
        assert found[0][aspect] == expected[aspect], aspect
    for number, handler in expected["handlers"].items():
        assert found[0]["handlers"][number] == handler or number in {str(signal.SIGINT), str(signal.SIGTERM)}
    assert set(found[0]["files"]) <= set(expected["files"])


def process_state(artifacts: RunArtifacts) -> dict[str, Any]:
    assert artifacts.rc == 0, (artifacts.folder / "stdout").read_text()
    done = (event["event_data"] for event in events_of(artifacts) if event["event"] == "runner_on_ok")
    return next(
        event["res"] for event in done if event["host"] == "here"
    )  # with several hosts, the one that was forked first


def test_each_warm_run_has_its_own_random_numbers_and_ids(site: Site) -> None:
    site.warmed()
    runs = [site.play(debug("{{ (2 ** 60) | random }} " + WHICH)) for _ in range(3)]

    assert all(was_warm(run) for run in runs)
    assert len({said(run) for run in runs}) == 3
    ids = [{event["uuid"] for event in events_of(run)} for run in runs]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]


def test_a_plugin_beside_the_playbook_replaces_ansibles_warm_and_cold(site: Site) -> None:
    plugins = site.home / "playbooks" / "action_plugins"
    plugins.mkdir()
    plugin = """
        from ansible.plugins.action import ActionBase
        class ActionModule(ActionBase):
            def run(self, tmp=None, task_vars=None):
                return {"msg": "the provider's own"}
    """
    (plugins / "debug.py").write_text(textwrap.dedent(plugin))
    tasks = "- name: Say\n  debug:\n    msg: ours\n"
    cold = site.play(tasks)
    site.warmed()

    assert said(cold) == "the provider's own"
    assert said(site.play(tasks)) == said(cold)


@pytest.mark.parametrize(
    "tasks",
    [
        "- name: Fail\n  ansible.builtin.fail:\n    msg: 'CAPACITY: no space'\n",
        "- name: No such\n  no.such.module: {}\n",
        "- name: Shell\n  ansible.builtin.command: 'false'\n",
        "- name: Ping\n  ansible.builtin.ping:\n",
        "- name: Undefined\n  ansible.builtin.debug:\n    msg: '{{ nothing }}'\n",
    ],
)
def test_runs_end_the_same_warm_and_cold(site: Site, tasks: str) -> None:
    cold = site.play(tasks, "run-1")
    kept = [normal(event) for event in events_of(cold)]
    site.warmed()
    warm = site.play(tasks, "run-1")

    def without_names(events: list[dict[str, Any]]) -> str:
        return re.sub(r"[0-9a-f]{8}\.yml|\d+\.\d+s?", "NAME", json.dumps(events))

    assert (warm.status, warm.rc) == (cold.status, cold.rc)
    assert without_names([normal(event) for event in events_of(warm)]) == without_names(kept)


# --- ended ------------------------------------------------------------------------------------------------------------


def test_a_timed_out_warm_run_ends_with_all_its_processes(site: Site) -> None:
    artifacts = site.warmed().play(site.stubborn(), timeout_s=8)

    assert (artifacts.status, artifacts.rc) == (RunStatus.TIMEOUT, 254)
    assert site.is_busy(), "the play did not start its processes in time"
    assert site.orphans() == []
    assert marked(site) == set()


def test_a_cancelled_warm_run_ends_with_all_its_processes(site: Site) -> None:
    planned = site.warmed().run_of(site.stubborn())

    artifacts = site.runner.run(planned, should_cancel=site.is_busy)

    assert artifacts.status is RunStatus.CANCELED
    assert site.orphans() == []
    assert marked(site) == set()


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


@pytest.mark.parametrize("victim", ["client", "guard", "play"])
def test_a_warm_run_with_a_killed_process_fails_and_leaves_no_process(site: Site, victim: str) -> None:
    site.warmed()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, site.stubborn(), "run-1")
        eventually(site.is_busy)
        os.kill(process_of(site, victim), signal.SIGKILL)
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 137)
    assert marked(site) == set()
    # If the guard is killed, a process that has left session and environment cannot be found, as in a cold run.
    assert victim == "guard" or site.orphans() == []


def process_of(site: Site, victim: str) -> int:
    server = psutil.Process(eventually(site.runner.warm_server_pid))
    guard = next(iter(server.children()))
    if victim == "guard":
        return guard.pid
    if victim == "play":
        return guard.children()[0].pid
    script = str(Path(client_file()))
    return next(process.pid for process in psutil.Process().children(recursive=True) if has(process, script))


def client_file() -> str:
    return str(servers.CLIENT)


def has(process: psutil.Process, word: str) -> bool:
    try:
        return word in process.cmdline()
    except psutil.Error:
        return False


def marked(site: Site) -> set[int]:
    """Return the processes of all runs of this site, without the servers."""
    own = process_tree.processes_with_variable("SMITH_CREDENTIALS_FILE", f"{site.run_dir}/run-")
    return {pid for pid in own if is_alive(pid)}


def test_a_run_continues_when_its_server_is_killed_and_the_next_run_waits_for_a_new_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "RESTART_BACKOFF_S", 0.0)
    site.warmed()
    wait = f"- name: Wait\n  ansible.builtin.shell: touch {site.folder}/waits; sleep 4\n"
    with structlog.testing.capture_logs() as logs, ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, wait + debug(WHICH))
        eventually((site.folder / "waits").exists)
        before = eventually(site.runner.warm_server_pid)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: not is_alive(before))
        second = site.play(debug(WHICH))
        assert future.result().status is RunStatus.SUCCESSFUL
        assert second.status is RunStatus.SUCCESSFUL
        assert was_warm(second)

    assert unavailable(logs) == ["the playbook server ended with -9"]
    assert site.runner.warm_server_pid() not in (None, before)


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
        paths = RunnerPaths(ansible_home=Path({str(site.home)!r}), run_dir=folder / "other", artifacts_dir=folder / "a")
        runner = Runner(paths, dict)
        runner.start_warm_servers()
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


# --- apart ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_socket_fits_into_the_temporary_folder_of_a_run_with_a_long_path(tmp_path: Path, warm: bool) -> None:
    """An action's name may have 50 characters, and SMITH_RUN_DIR more; ansible-core 2.21 opens such a socket."""
    site = Site(tmp_path, tmp_path / ("r" * 90))
    if warm:
        site.warmed()
    listen = "from multiprocessing.connection import Listener; print(len(Listener(family='AF_UNIX').address))"
    tasks = f"- name: Listen\n  ansible.builtin.command: {json.dumps(shlex.join([sys.executable, '-c', listen]))}\n"

    try:
        artifacts = site.play(tasks + debug(WHICH + " {{ lookup('env', 'TMPDIR') }}"))
    finally:
        site.runner.stop_warm_servers()

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert was_warm(artifacts) == warm
    name = said(artifacts).split()[-1]
    assert not os.path.lexists(name)
    assert [path.name for path in site.run_dir.iterdir()] == [RUN_UNTIL_FILE]


def test_another_users_link_at_the_short_path_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, elsewhere = tmp_path / "public", tmp_path / "elsewhere"
    public.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(public))
    site = Site(tmp_path, tmp_path / ("r" * 90))
    run = site.run_of(debug("{{ lookup('env', 'TMPDIR') }}"), "run-1")
    tmp = site.run_dir / "run-1" / "tmp"
    link = public / f"smith-{hashlib.sha256(os.fsencode(tmp)).hexdigest()[:16]}"
    link.symlink_to(elsewhere)
    artifacts = site.runner.run(run)

    # With ansible-core 2.21 the run fails because the path of its socket is too long, as it would without a link.
    assert str(tmp) in said(artifacts) or "Local RPC server did not start" in (artifacts.folder / "stdout").read_text()
    assert list(elsewhere.iterdir()) == []


def test_concurrent_warm_runs_do_not_see_each_others_environment_or_variables(site: Site) -> None:
    site.warmed()
    tasks = (
        "- name: Keep\n  ansible.builtin.set_fact:\n    kept_{{ vm.name }}: true\n"
        "- name: Meet\n  ansible.builtin.shell: |\n"
        f"    touch {site.folder}/met-$SMITH_RUN_IDENT\n"
        f"    while [ $(ls {site.folder} | grep -c met-) -lt 2 ]; do sleep 0.1; done\n"
    )
    look = debug(
        "{{ vm.name }} {{ lookup('env', 'SMITH_RUN_IDENT') }} {{ lookup('env', 'HOME') }} "
        "{{ vars.keys() | select('match', 'kept_') | list }} " + WHICH
    )
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(site.play, tasks + look, f"run-{name}", vm={"name": name}, timeout_s=120) for name in ("a", "b")
        ]
        runs = dict(zip("ab", [future.result() for future in futures], strict=True))
    for name, run in runs.items():
        other = "b" if name == "a" else "a"
        assert run.status is RunStatus.SUCCESSFUL
        assert was_warm(run)
        assert f"{name} run-{name} {site.run_dir}/run-{name}/home ['kept_{name}']" in said(run)
        assert f"run-{other}" not in said(run)


def test_three_hundred_warm_runs_leak_nothing(site: Site) -> None:
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
        before = footprint(site)
        assert set(pool.map(play, range(20, 320))) == {RunStatus.SUCCESSFUL}
    after = footprint(site)

    assert not [entry for entry in logs if entry["event"] == "orphan_processes_killed"], (
        "a guard was taken for an orphan process"
    )
    assert after["files"] == before["files"]
    assert after["server_descriptors"] == before["server_descriptors"]
    assert after["agent_descriptors"] <= before["agent_descriptors"]  # fewer, if a run had just ended
    assert after["server"] == before["server"]
    assert after["mib"] - before["mib"] < 4


def footprint(site: Site) -> dict[str, Any]:
    """Return what server and agent hold when there is no run."""
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
    hold = f"- name: Hold\n  ansible.builtin.shell: touch {site.folder}/holds; sleep 600\n"
    vm = {"name": "x", "cloud_init": {"password": "canary-password-91"}}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.play, hold, "run-1", vm=vm)
        eventually((site.folder / "holds").exists)
        pids = [os.getpid(), *process_tree.descendants(os.getpid())]
        shown = b"".join(read(f"/proc/{pid}/{file}") for pid in pids[1:] for file in ("environ", "cmdline"))
        site.runner.kill("run-1")
        future.result()

    assert b"SMITH_RUN_IDENT=run-1" in shown
    assert TOKEN.encode() not in shown
    assert b"canary-password" not in shown


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_only_our_user_can_use_the_socket(site: Site) -> None:
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


# --- cold after all ---------------------------------------------------------------------------------------------------


def test_an_untested_ansible_runs_cold_and_is_logged_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "TESTED_SERIES", ("2.18",))
    with structlog.testing.capture_logs() as logs:
        site.runner.start_warm_servers()
        runs = [site.play(debug(WHICH)) for _ in range(2)]

    assert not any(was_warm(run) for run in runs)
    assert len(unavailable(logs)) == 1
    assert "was not tested" in unavailable(logs)[0]


def test_warm_runs_required_with_an_untested_ansible_are_a_settings_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "TESTED_SERIES", ())
    with pytest.raises(SettingsError, match="SMITH_WARM is on, but ansible-core"):
        site.runner.start_warm_servers(are_required=True)


def test_an_ansible_without_a_private_name_runs_cold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = patches.PrivateName(module="ansible.utils.vars", name="renamed", purpose="a test")
    monkeypatch.setattr(patches, "PRIVATE_NAMES", (*patches.PRIVATE_NAMES, gone))
    with structlog.testing.capture_logs() as logs:
        site.runner.start_warm_servers()
        run = site.play(debug(WHICH))

    assert not was_warm(run)
    assert unavailable(logs) == ["ansible.utils.vars has no renamed any more, which warm runs need"]
    with pytest.raises(SettingsError, match=r"SMITH_WARM is on, but ansible\.utils\.vars has no renamed"):
        site.runner.start_warm_servers(are_required=True)


def test_a_changed_ansible_cfg_is_used_by_the_next_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "RESTART_BACKOFF_S", 0.0)
    site.warmed()
    tasks = debug("{{ lookup('config', 'DEFAULT_FORKS') }} " + WHICH)
    assert said(site.play(tasks)).startswith("5 ")
    (site.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\nforks = 7\n")

    with structlog.testing.capture_logs() as logs:
        after = [site.play(tasks) for _ in range(2)]
        eventually(site.runner.warm_server_pid)
        warm_again = site.play(tasks)

    assert all(said(run).startswith("7 ") for run in (*after, warm_again))
    assert was_warm(warm_again)
    assert unavailable(logs) == [
        "ansible.cfg, ansible-core, a module or a plugin of ours has changed since the server started"
    ]


def test_an_environment_that_differs_from_the_servers_runs_cold(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.warmed()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    tasks = debug("{{ lookup('env', 'HTTPS_PROXY') }} " + WHICH)

    run = site.play(tasks)

    assert said(run).startswith("http://proxy.example:3128")
    assert not was_warm(run)


def test_after_a_stop_runs_are_cold_and_the_folder_is_removed(site: Site) -> None:
    site.warmed()
    pid = eventually(site.runner.warm_server_pid)
    site.runner.stop_warm_servers()

    assert not is_alive(pid)
    assert [path.name for path in site.run_dir.iterdir()] == [RUN_UNTIL_FILE]
    assert not was_warm(site.play(debug(WHICH)))


#: Delays the start of each Python process until the file `go` exists.
SLOW_START = """
import os, time
while not os.path.exists({go!r}):
    time.sleep(0.05)
"""


def test_closing_ends_a_server_that_is_just_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "START_TIMEOUT_S", 0.5)
    (tmp_path / "sitecustomize.py").write_text(SLOW_START.format(go=str(tmp_path / "go")))
    marker = {"SMITH_TEST_SERVER": str(tmp_path)}
    warm_servers = WarmServers(tmp_path, tmp_path, lambda: {**os.environ, **marker, "PYTHONPATH": str(tmp_path)})

    def server_pids() -> set[int]:
        found = process_tree.processes_with_variable("SMITH_TEST_SERVER", f"{tmp_path}\0")
        return {pid for pid in found if is_alive(pid)}

    with structlog.testing.capture_logs() as logs:
        warm_servers.start()
        eventually(server_pids)
        warm_servers.close()
        assert server_pids() == set()
        (tmp_path / "go").touch()  # so that the test leaves no process if it fails
    assert warm_servers.pid() is None
    assert unavailable(logs) == []


def test_runs_are_cold_while_no_thread_can_start_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm_servers = WarmServers(tmp_path, tmp_path, lambda: dict(os.environ))

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)  # as Python does at the operating system's limit
        command = warm_servers.command(["ansible-playbook", "play.yml"], str(Path(sys.executable).parent))
    assert command == [*process_tree.guard_prefix(), "ansible-playbook", "play.yml"]
    assert unavailable(logs) == ["can't start new thread"]


def test_a_server_is_replaced_without_a_cold_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "MAX_RUNS", 2)
    site.warmed()
    before = eventually(site.runner.warm_server_pid)
    runs = [site.play(debug(WHICH)) for _ in range(2)]
    eventually(lambda: site.runner.warm_server_pid() != before)
    runs.append(site.play(debug(WHICH)))

    assert all(was_warm(run) for run in runs)
    eventually(lambda: not is_alive(before))
    eventually(lambda: len(list((site.run_dir / ".warm").glob("playbook-*"))) == 2)  # the socket and the log


def test_a_sweep_ends_the_server_of_a_killed_agent_and_returns_no_run(site: Site) -> None:
    site.warmed()
    left = eventually(site.runner.warm_server_pid)

    assert site.runner.end_earlier_runs() == []
    assert not is_alive(left)
