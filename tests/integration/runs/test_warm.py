"""Warm runs leave the same events, results and artifacts as cold ones.

A warm run is forked from a server that has imported Ansible; a cold run is a new process.
"""

from __future__ import annotations

import json
import re
import signal
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from support.warm_site import WHICH, Site, debug, events_of, eventually, run_dir, said, site, was_warm

from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.runs.actions import collection_folder
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths

__all__ = ["run_dir", "site"]

pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(900)]


#: All actions, in an order in which each of them succeeds.
ALL_ACTIONS = (
    *("create", "start", "restart", "update", "resize", "snapshot"),
    *("backup", "migrate", "stop", "rollback", "delete"),
)
#: What differs between any two runs: times, ids, process ids, and values that Proxmox generates.
VOLATILE = (
    (r"\[\d+\.\d s\]", "[seconds]"),  # at the end of a progress line
    (r"UPID:[^\"' ,\]]+", "UPID"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"(?:[0-9A-F]{2}:){5}[0-9A-F]{2}", "MAC"),
    (r"vmgenid=\w+|digest\W+\w{40}", "GENERATED"),
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


def mask_volatile_values(value: Any) -> Any:
    """Return the value without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: mask_volatile_values(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [mask_volatile_values(item) for item in value]
    if isinstance(value, str):
        for pattern, name in VOLATILE:
            value = re.sub(pattern, name, value)
    return value


def run_all_actions(stand_in: ProxmoxStandIn, folder: Path, vm: dict[str, Any], *, warm: bool) -> list[dict[str, Any]]:
    """Run all actions on a VM, in a new folder; return the artifacts of each run."""
    credentials = {
        **{"api_host": stand_in.host, "api_port": stand_in.port, "api_user": stand_in.user, "validate_certs": True},
        **{"api_token_id": stand_in.token_id, "api_token_secret": stand_in.token_secret},
    }
    paths = RunnerPaths(
        collection_folder=collection_folder(), run_dir=folder / "run", artifacts_dir=folder / "artifacts"
    )
    runner = Runner(paths, lambda: credentials, ca_bundle=stand_in.ca_bundle)
    pid = None
    if warm:
        runner.start_warm_server()
        pid = eventually(runner.warm_server_pid)
    try:
        outcomes = [run_action(runner, action, vm) for action in ALL_ACTIONS]
        assert runner.warm_server_pid() == pid, "the server was replaced"
        if warm:
            logs = "".join(file.read_text() for file in (folder / "run" / ".warm").glob("*.log"))
            assert logs == ""
            used = psutil.Process(pid).cpu_times()
            assert used.children_user > used.user / 10, "the server did no work"
    finally:
        runner.stop_warm_server()
    assert [path.name for path in (folder / "run").iterdir()] == [RUN_UNTIL_FILE]
    return outcomes


def run_action(runner: Runner, action: str, vm: dict[str, Any]) -> dict[str, Any]:
    """Run an action; return what the run has left, without what differs between any two runs."""
    playbook = collection_folder() / "playbooks" / f"{action}.yml"
    changed = {"update": {"cores": 4, "memory_mib": 4096, "disk_gib": 12}, "resize": {"disk_gib": 14}}.get(action, {})
    run = PlaybookRun(ident=f"{action}-1", action=action, playbook=playbook, vm=vm | changed, timeout_s=120)
    artifacts = runner.run(run)
    return {
        "status": (artifacts.status, artifacts.rc),
        "files": sorted((file.name, file.stat().st_mode) for file in artifacts.folder.iterdir()),
        "stdout": [
            line
            for line in mask_volatile_values((artifacts.folder / "stdout").read_text()).splitlines()
            if WAIT not in line
        ],
        "events": [
            mask_volatile_values(event) for event in events_of(artifacts) if WAIT not in str(event.get("stdout"))
        ],
    }


def test_cold_and_warm_leave_equal_events_results_and_artifacts_over_the_life_of_a_vm(run_dir: Path) -> None:
    service_id = str(uuid.uuid4())
    vm = {
        **{"service_id": service_id, "vmid": 31_000, "name": f"web-{service_id[:8]}", "node": "", "tags": ["web"]},
        **{"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 10, "timeout_s": 100},
        **{"shutdown_timeout_s": 5, "address_timeout_s": 1, "properties": {"name": "before"}, "snapshot": "before"},
        **{"storage": "ceph", "backup_storage": "backups", "target_node": "pve2"},
    }
    with running_stand_in() as for_warm, running_stand_in() as for_cold:  # a backup is kept when its VM is deleted
        warm = run_all_actions(for_warm, run_dir / "warm", vm, warm=True)
        cold = run_all_actions(for_cold, run_dir / "cold", vm, warm=False)
    for action, cold_outcome, warm_outcome in zip(ALL_ACTIONS, cold, warm, strict=True):
        assert warm_outcome["status"] == cold_outcome["status"], (action, warm_outcome["stdout"])
        assert warm_outcome["files"] == cold_outcome["files"], action
        assert warm_outcome["stdout"] == cold_outcome["stdout"], action
        assert len(warm_outcome["events"]) == len(cold_outcome["events"]), action
        for cold_event, warm_event in zip(cold_outcome["events"], warm_outcome["events"], strict=True):
            assert warm_event == cold_event, action
    assert {outcome["status"] for outcome in cold} == {(RunStatus.SUCCESSFUL, 0)}


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
            # Some libraries add filters for their own warnings at their import, which is earlier in a warm run.
            "filters": [text(entry) for entry in warnings.filters if entry[2].__module__ == "builtins"],
            "gc": [gc.isenabled(), gc.get_threshold()], "zone": time.tzname, "timeout": socket.getdefaulttimeout(),
            "seen": sorted(text(path) for path in C.config._plugins.get("action", {})),
            "plugin_paths": [text(path) for path in self._shared_loader_obj.action_loader._get_paths()],
        }
"""


@pytest.fixture
def ignored_hangup_signals() -> Iterator[None]:
    """Ignore the signals that an agent ignores under a supervisor, so that its runs inherit this."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


#: What differs for an Ansible task without a fork: the play's result thread, streams and signal handlers.
NO_FORK = {"files", "handlers", "streams", "threads"}


@pytest.mark.parametrize(("hosts", "differing_aspects"), [("here", NO_FORK), ("all", set())])
def test_an_ansible_task_sees_the_same_process_state_in_warm_and_cold_runs(
    site: Site, ignored_hangup_signals: None, hosts: str, differing_aspects: set[str]
) -> None:
    """Environment, constants, folders, files, signals, streams, limits, logging: all state that a run could inherit."""
    plugins = site.home / "playbooks" / "action_plugins"
    plugins.mkdir()
    (plugins / "process_state.py").write_text(PROCESS_STATE_PLUGIN)
    planned = site.run_of(PROCESS_STATE, hosts=hosts)
    cold_state = read_reported_process_state(site.runner.run(planned))
    site.warmed()
    warm_states = [
        read_reported_process_state(site.runner.run(replace(planned, ident=f"run-{number}"))) for number in range(3)
    ]

    assert warm_states[0] == warm_states[1] == warm_states[2]
    assert len(cold_state) > 25
    for aspect in cold_state.keys() - differing_aspects:
        assert warm_states[0][aspect] == cold_state[aspect], aspect
    for number, handler in cold_state["handlers"].items():
        assert warm_states[0]["handlers"][number] == handler or number in {str(signal.SIGINT), str(signal.SIGTERM)}
    assert set(warm_states[0]["files"]) <= set(cold_state["files"])


def read_reported_process_state(artifacts: RunArtifacts) -> dict[str, Any]:
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


def test_a_plugin_beside_the_playbook_replaces_ansibles_plugin_in_warm_and_cold_runs(site: Site) -> None:
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
def test_warm_and_cold_runs_end_with_the_same_status_and_events(site: Site, tasks: str) -> None:
    cold = site.play(tasks, "run-1")
    cold_events = [mask_volatile_values(event) for event in events_of(cold)]
    site.warmed()
    warm = site.play(tasks, "run-1")

    def without_names(events: list[dict[str, Any]]) -> str:
        return re.sub(r"[0-9a-f]{8}\.yml|\d+\.\d+s?", "NAME", json.dumps(events))

    assert (warm.status, warm.rc) == (cold.status, cold.rc)
    assert without_names([mask_volatile_values(event) for event in events_of(warm)]) == without_names(cold_events)
