"""Runs with the real ansible-runner and real processes: their artifacts, their end, their secrets."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from executor.errors import JobError
from executor.model import PlaybookRun, RunArtifacts, RunStatus
from executor.redaction import Redactor
from executor.runs import output as run_output
from executor.runs.actions import ansible_home
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths
from executor.shared.error_codes import ErrorCode

TOKEN = "canary-token-Zt7Kq2"
PASSWORD = "canary-password-\"q'uo\\te-ü"
INHERITED = "canary-inherited-9sLx"
CREDENTIALS = {"api_host": "pve.example", "api_port": 8006, "api_token_secret": TOKEN, "validate_certs": True}

#: Starts a shell, a child, and a child in its own session with an empty environment; all ignore TERM.
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
    """A folder of playbooks, and a runner for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "ansible"
        self.home.mkdir()
        (self.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
        read = "{{ lookup('ansible.builtin.file', lookup('env', 'SMITH_CREDENTIALS_FILE')) | from_yaml }}"
        local = {"hosts": {"localhost": {"ansible_connection": "local"}}, "vars": {"credentials": read}}
        (self.home / "inventory.yml").write_text(yaml.safe_dump({"all": local}))
        self.paths = RunnerPaths(ansible_home=self.home, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
        self.redactor = Redactor()
        self.runner = Runner(self.paths, lambda: dict(CREDENTIALS), redactor=self.redactor)

    def playbook(self, tasks: str) -> Path:
        """Write a play of these tasks."""
        path = self.home / f"play-{len(list(self.home.iterdir()))}.yml"
        head = "---\n- name: Play\n  hosts: localhost\n  gather_facts: false\n  tasks:\n"
        path.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
        return path

    def stubborn(self) -> Path:
        """Write a play whose processes ignore TERM."""
        orphan = self.folder / "orphan.sh"
        orphan.write_text(ORPHAN)
        orphan.chmod(0o700)
        return self.playbook(STUBBORN.format(folder=self.folder))

    def waiting(self, before: str = "") -> Path:
        """Write a play that waits and ends on TERM."""
        wait = f"echo $$ > {self.folder}/waiting.pid; sleep 600"
        return self.playbook(f"{before}- name: Wait\n  ansible.builtin.shell: {wait}\n")

    def is_waiting(self) -> bool:
        """True when the waiting play has started."""
        return (self.folder / "waiting.pid").exists()

    def run_of(self, playbook: Path, ident: str = "run-1", **fields: Any) -> PlaybookRun:
        """Return a run of this playbook."""
        fields = {"vm": {}, "timeout_s": 60.0} | fields
        return PlaybookRun(ident=ident, action="test", playbook=playbook, **fields)

    def orphans(self) -> list[psutil.Process]:
        """Return the processes of a stubborn play that are alive."""
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        return [process for pid in pids if (process := _alive(pid))]

    def is_busy(self) -> bool:
        """True when a stubborn play has started all its processes."""
        return len(list(self.folder.glob("*.pid"))) == 2


def _alive(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _eventually(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    limit = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)
    return found


def _events(artifacts: RunArtifacts) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifacts.folder / "events.jsonl").read_text().splitlines()]


def _result(artifacts: RunArtifacts) -> Any:
    """Return the `vm_result` of the last event that has one."""
    data = [event.get("event_data", {}) for event in _events(artifacts)]
    found = [item["artifact_data"]["vm_result"] for item in data if "artifact_data" in item]
    found += [
        item["res"]["ansible_stats"]["data"]["vm_result"] for item in data if "ansible_stats" in item.get("res", {})
    ]
    return found[0]


def _process_of(site: Site, word: str) -> psutil.Process | None:
    """Return the oldest process of the site's run with this text at the start of its command line."""
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("SMITH_CREDENTIALS_FILE", "")
            if mark.startswith(f"{site.paths.run_dir}/") and word in " ".join(process.cmdline()[:5]):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for orphan in site.orphans():
        for process in (*orphan.children(recursive=True), orphan):
            process.kill()
    assert not list(site.paths.run_dir.glob("*/*.yml")), "a run left its secrets behind"


PUBLISH = """
- name: Publish
  ansible.builtin.set_stats:
    data:
      vm_result:
        vmid: 101
        name: "{{ vm.name | default('') }}"
    per_host: false
    aggregate: false
"""


# --- how runs end -----------------------------------------------------------------------------------------------------


def test_a_successful_run_stores_its_events_output_and_outcome(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH), vm={"name": "web-1"}))

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert artifacts.folder == site.paths.artifacts_dir / "run-1"
    assert _result(artifacts) == {"vmid": 101, "name": "web-1"}
    assert [event["event"] for event in _events(artifacts)][:: len(_events(artifacts)) - 1] == [
        "playbook_on_start",
        "playbook_on_stats",
    ]
    assert "PLAY RECAP" in (artifacts.folder / "stdout").read_text()
    assert (artifacts.folder / "status").read_text() == "successful"
    assert (artifacts.folder / "rc").read_text() == "0"
    assert artifacts.started_at <= artifacts.ended_at


def test_artifacts_are_private_and_nothing_else_is_stored(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert {path.name for path in artifacts.folder.iterdir()} == {"events.jsonl", "stdout", "rc", "status"}
    modes = {path.stat().st_mode & 0o777 for path in artifacts.folder.iterdir()}
    folders = {path.stat().st_mode & 0o777 for path in (artifacts.folder, site.paths.artifacts_dir, site.paths.run_dir)}
    assert (modes, folders) == ({0o600}, {0o700})
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


def test_a_failed_run_has_its_error_and_the_result_published_before(site: Site) -> None:
    tasks = PUBLISH + "- name: Fail\n  ansible.builtin.fail:\n    msg: 'CAPACITY: no space'\n"

    artifacts = site.runner.run(site.run_of(site.playbook(tasks)))

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 2)
    assert _result(artifacts)["vmid"] == 101
    failures = [event for event in _events(artifacts) if event["event"] == "runner_on_failed"]
    assert [event["event_data"]["res"]["msg"] for event in failures] == ["CAPACITY: no space"]


@pytest.mark.parametrize("text", ["- hosts: [", "- hosts: localhost\n  tasks:\n    - no.such.module: {}\n"])
def test_an_invalid_playbook_fails_with_the_error_in_its_output(site: Site, text: str) -> None:
    playbook = site.home / "broken.yml"
    playbook.write_text(text)

    artifacts = site.runner.run(site.run_of(playbook))

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 4)
    assert "ERROR" in (artifacts.folder / "stdout").read_text()
    assert any("ERROR" in event["stdout"] for event in _events(artifacts))


def test_f24_a_run_without_output_at_its_end_has_not_failed(site: Site) -> None:
    """A run has no output at its end until pexpect would time out → its outcome is that of its events."""
    silence = "- name: Say nothing for longer than five seconds\n  ansible.builtin.wait_for:\n    timeout: 6\n"

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH + silence)))

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert _result(artifacts)["vmid"] == 101


def test_a_timed_out_run_ends_with_all_its_processes(site: Site) -> None:
    """ansible-core's workers leave the process group, and these processes also leave session and environment."""
    playbook = site.stubborn()
    for timeout_s in (4, 8, 16, 32):  # on a busy machine the play may need longer to start its processes
        artifacts = site.runner.run(site.run_of(playbook, ident=f"run-{timeout_s}", timeout_s=timeout_s))
        assert (artifacts.status, artifacts.rc) == (RunStatus.TIMEOUT, 254)
        if site.is_busy():
            break

    assert site.is_busy()
    assert site.orphans() == []
    assert _events(artifacts)


def test_a_cancelled_run_ends_with_all_its_processes(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.stubborn()), should_cancel=site.is_busy)

    assert artifacts.status is RunStatus.CANCELED
    assert site.is_busy()
    assert site.orphans() == []


def test_a_run_killed_by_its_ident_from_another_thread_is_canceled(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()))
        _eventually(site.is_busy)
        site.runner.kill("run-1")
        assert site.orphans() == []
        assert future.result().status is RunStatus.CANCELED


def test_killing_an_ended_or_unknown_run_does_nothing(site: Site) -> None:
    site.runner.run(site.run_of(site.playbook(PUBLISH)))

    site.runner.kill("run-1")
    site.runner.kill("run-2")


def test_an_exception_of_the_cancelled_callback_ends_the_run_first(site: Site) -> None:
    def ask() -> bool:
        if site.is_waiting():
            raise LookupError("database gone")
        return False

    with pytest.raises(LookupError, match="database gone"):
        site.runner.run(site.run_of(site.waiting()), should_cancel=ask)

    assert site.orphans() == []
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


@pytest.mark.parametrize("word", ["/ansible-playbook", "process_tree.py guard"])
def test_f23_a_run_killed_from_outside_is_failed_and_leaves_no_process(site: Site, word: str) -> None:
    """A run, its guard or its module is killed → the run has failed, and no process of it is left."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()))
        _eventually(site.is_busy)
        found = _process_of(site, word)
        assert found is not None
        found.kill()
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 137)
    assert [process for process in site.orphans() if "SMITH_RUN_IDENT" in process.environ()] == []
    assert word != "/ansible-playbook" or site.orphans() == []


def test_a_run_ends_even_if_its_guard_is_suspended(site: Site) -> None:
    hangs = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()), should_cancel=hangs.is_set)
        _eventually(site.is_busy)
        guard = _process_of(site, "process_tree.py guard")
        assert guard is not None
        guard.suspend()
        hangs.set()
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.CANCELED, 254)
    assert site.orphans() == []


def test_a_successful_run_leaves_no_process(site: Site) -> None:
    leave = f"setsid sleep 600 >/dev/null 2>&1 & echo $! > {site.folder}/x.pid"
    tasks = f"- name: Leave one\n  ansible.builtin.shell: {leave}\n"

    artifacts = site.runner.run(site.run_of(site.playbook(tasks)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert site.orphans() == []


# --- what runs print --------------------------------------------------------------------------------------------------


def test_f25_the_output_of_20_mb_is_truncated_and_the_result_is_read(site: Site) -> None:
    """A run prints without end → the stored output is truncated and marked; its result is still read."""
    tasks = (
        '- name: Shout\n  ansible.builtin.debug:\n    msg: "{{ \'x\' * 1000000 }}"\n  loop: "{{ range(20) | list }}"\n'
    )

    artifacts = site.runner.run(site.run_of(site.playbook(tasks + PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL, (artifacts.folder / "stdout").read_text()[:2000]
    assert _result(artifacts)["vmid"] == 101
    assert run_output.LEFT_OUT_TEXT in (artifacts.folder / "stdout").read_text()
    sizes = {path.name: path.stat().st_size for path in artifacts.folder.iterdir()}
    assert sizes["stdout"] < run_output.MAX_OUTPUT_BYTES
    assert sizes["events.jsonl"] < run_output.MAX_TOTAL_EVENTS_BYTES + run_output.MAX_EVENT_BYTES


def _with_callback(site: Site, body: str) -> None:
    """Install a callback that writes what no module can: raw bytes, without Ansible's display."""
    folder = site.home / "callback_plugins"
    folder.mkdir()
    site.home.joinpath("ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\ncallbacks_enabled = noise\n")
    head = """
        import base64, json, os, pathlib
        from ansible.plugins.callback import CallbackBase

        DOCUMENTATION = "name: noise\\ntype: notification\\nshort_description: noise\\ndescription: noise"

        def mark(data):
            text = base64.b64encode(json.dumps(data).encode()).decode()
            return f"\\x1b[K{text}\\x1b[{len(text)}D\\x1b[K".encode()

        class CallbackModule(CallbackBase):
            CALLBACK_VERSION = 2.0
            CALLBACK_TYPE = "notification"
            CALLBACK_NAME = "noise"
            CALLBACK_NEEDS_ENABLED = True

            def v2_playbook_on_task_start(self, task, is_conditional):
                folder = pathlib.Path(os.environ["AWX_ISOLATED_DATA_DIR"], "job_events")
    """
    indented = textwrap.indent(textwrap.dedent(body), " " * 8)
    (folder / "noise.py").write_text(textwrap.dedent(head) + indented)


def test_f25_bytes_that_are_not_utf8_are_replaced(site: Site) -> None:
    """A run prints bytes that are not UTF-8 → they are replaced, and the run is not affected."""
    _with_callback(site, r'os.write(1, b"\xff\xfe caf\xe9 \xed\xa0\x80\n")')

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert _result(artifacts)["vmid"] == 101
    assert " caf" in (artifacts.folder / "stdout").read_text(encoding="utf-8")


def test_f25_invalid_event_files_do_not_stop_the_others(site: Site) -> None:
    """Event files are truncated, too large or not JSON → they are left out, and the others are read."""
    body = r"""
        (folder / "aaaa-partial.json").write_bytes(b'{"event": "runner_on_ok", "event_da')
        (folder / "bbbb-partial.json").write_bytes(b"\xff\xff")
        (folder / "cccc-partial.json").write_bytes(b"[" * 200000)
        (folder / "dddd-partial.json").write_bytes(b" " * 5000000 + b'{"event": "runner_on_ok"}')
        (folder / "eeee-partial.json").write_bytes(b'["no object"]')
        for name in ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "../../../../../x"):
            os.write(1, mark({"uuid": name}) + b"text\n" + mark({}))
    """
    _with_callback(site, body)

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert _result(artifacts)["vmid"] == 101
    kinds = {event.get("uuid"): event["event"] for event in _events(artifacts)}
    assert {kinds[uuid] for uuid in ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff")} == {"verbose"}


def test_text_that_looks_like_an_event_is_not_an_event(site: Site) -> None:
    """Only the callback's files define events: text of a guest must not become a result."""
    forged = {"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 666}}}}
    _with_callback(site, f"os.write(1, mark({{'uuid': 'abcd', **{forged!r}}}) + b'text' + mark({{}}))")

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert _result(artifacts)["vmid"] == 101
    assert "666" not in (artifacts.folder / "events.jsonl").read_text()


def _mark(data: dict[str, Any]) -> bytes:
    text = base64.b64encode(json.dumps(data).encode()).decode()
    return f"\x1b[K{text}\x1b[{len(text)}D\x1b[K".encode()


def test_beyond_the_limit_each_event_mark_is_found_in_any_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_output, "MAX_OUTPUT_BYTES", 0)
    marks = [_mark({"uuid": "0123-4567"}), _mark({}), _mark({"uuid": "89ab-cdef"}), _mark({})]
    stream = b"lead" + b"some \x1b[K text".join(marks) + b"tail"
    for size in range(1, len(stream) + 1):
        taken: list[str] = []
        reader = run_output.OutputDecoder(taken.append, lambda: None)
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
        assert "".join(taken).encode() == b"".join(marks)


def test_a_full_event_file_still_gets_failures_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_output, "MAX_TOTAL_EVENTS_BYTES", 1000)
    output = run_output.RunOutput(tmp_path / "kept", Redactor())
    for number in range(50):
        output.add_event({"event": "runner_on_ok", "counter": number, "event_data": {"res": {"msg": "x" * 100}}})
    output.add_event({"event": "runner_on_failed", "event_data": {"res": {"msg": "why"}}})
    output.add_event({"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 101}}}})
    output.finish(status="failed", rc=2)

    events = [json.loads(line) for line in (tmp_path / "kept" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-3:]] == ["runner_on_failed", "playbook_on_stats", "smith_truncated"]
    assert len(events) + events[-1]["left_out"] == 53


def test_a_too_large_event_keeps_its_error_text_and_result(tmp_path: Path) -> None:
    output = run_output.RunOutput(tmp_path / "kept", Redactor())
    many = {str(number): "x" * 1000 for number in range(5000)}
    output.add_event({"event": "runner_on_failed", "event_data": {"res": {"msg": "CAPACITY: full", "other": many}}})
    output.add_event(
        {"event": "playbook_on_stats", "event_data": {"artifact_data": {"vm_result": {"vmid": 1}, **many}}}
    )
    output.finish(status="failed", rc=2)

    first, second = [json.loads(line) for line in (tmp_path / "kept" / "events.jsonl").read_text().splitlines()]
    assert first["event_data"]["res"] == {"msg": "CAPACITY: full"}
    assert second["event_data"]["artifact_data"] == {"vm_result": {"vmid": 1}}


# --- text from outside is data ----------------------------------------------------------------------------------------


def test_a_template_in_a_value_is_not_evaluated(site: Site) -> None:
    victim = site.folder / "victim"
    payloads = [
        "{{ lookup('ansible.builtin.pipe', 'touch %s') }}" % victim,  # noqa: UP031  braces are the payload
        "{% set x = lookup('ansible.builtin.pipe', 'touch " + str(victim) + "') %}",
        "!unsafe {{ 1 + 1 }}",
    ]
    tasks = """
        - name: Use the values as a playbook does
          ansible.builtin.set_stats:
            data:
              vm_result:
                name: "{{ vm.name }}"
                tags: "{{ vm.tags }}"
                joined: "{{ vm.tags | join(',') }} {{ vm.deep.deeper[0] }}"
            per_host: false
    """
    vm = {"name": payloads[0], "tags": payloads, "deep": {"deeper": payloads}}

    artifacts = site.runner.run(site.run_of(site.playbook(tasks), vm=vm))

    assert _result(artifacts) == {
        "name": payloads[0],
        "tags": payloads,
        "joined": f"{','.join(payloads)} {payloads[0]}",
    }
    assert not victim.exists()


def test_values_reach_the_playbook_unchanged(site: Site) -> None:
    values = {
        "texts": [
            "yes",
            "null",
            "~",
            "012",
            "1e3",
            "",
            " x ",
            "a\nb\n",
            "\ttab",
            "'\"\\",
            "ü😀\u2028\x85",
            "- a: b",
            "&a *a",
            "\x7f\x01",
        ],
        "numbers": [0, -1, 101, 2**40, 1.5],
        "others": [True, False, None, [], {}],
        "same": {"once": ["x"]},
    }
    values["again"] = values["same"]
    tasks = """
        - name: Echo
          ansible.builtin.set_stats:
            data:
              vm_result:
                echo: "{{ vm }}"
            per_host: false
    """

    artifacts = site.runner.run(site.run_of(site.playbook(tasks), vm=values))

    echoed = _result(artifacts)["echo"]
    assert abs(echoed.pop("deadline_monotonic_s") - time.monotonic()) < 120  # added by the runner
    assert echoed == values


def test_half_a_surrogate_pair_is_an_invalid_request(site: Site) -> None:
    with pytest.raises(JobError) as caught:
        site.runner.run(site.run_of(site.playbook(PUBLISH), vm={"name": "x\ud800"}))

    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


@pytest.mark.parametrize("ident", ["", "..", "a/b", "../a", "-a", "a b", "a\n", "x" * 200, ".kept"])
def test_an_ident_that_cannot_name_a_folder_is_refused(site: Site, ident: str) -> None:
    with pytest.raises(ValueError, match="not a run ident"):
        site.runner.run(site.run_of(site.playbook(PUBLISH), ident=ident))
    with pytest.raises(ValueError, match="not a run ident"):
        site.runner.kill(ident)


# --- secrets ----------------------------------------------------------------------------------------------------------


def _files_with(folder: Path, needles: list[bytes]) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


def test_r12_no_secret_is_in_any_argument_environment_or_kept_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULCRUM_API_TOKEN", INHERITED)
    monkeypatch.setenv("PROXMOX_TOKEN_SECRET", INHERITED)
    started, go_on = site.folder / "started", site.folder / "go-on"
    tasks = f"""
        - name: Show every secret in every way
          ansible.builtin.debug:
            msg: ["{{{{ credentials.api_token_secret }}}}", "{{{{ vm.cloud_init.password }}}}", "{{{{ credentials }}}}"]

        - name: Show the environment, and wait to be looked at
          ansible.builtin.shell: "env; touch {started}; until test -e {go_on}; do sleep 0.1; done"

        - name: Fail with a secret
          ansible.builtin.fail:
            msg: "bad {{{{ vm.cloud_init.password }}}} {{{{ credentials.api_token_secret | b64encode }}}}"
    """
    planned = site.run_of(site.playbook(tasks), vm={"cloud_init": {"password": PASSWORD}}, secrets=(PASSWORD,))
    needles = [text.encode() for text in (TOKEN, PASSWORD, INHERITED, json.dumps(PASSWORD)[1:-1], "canary")]
    needles.append(base64.b64encode(TOKEN.encode()))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, planned)
        _eventually(started.exists)
        seen = _look_at_processes_of(site)
        readable = _files_with(site.paths.run_dir, needles)
        go_on.touch()
        artifacts = future.result()

    assert len(seen) >= 4
    assert [text for text in seen if any(needle in text for needle in needles)] == []
    assert {path.name for path in readable} == {"vm.yml", "credentials.yml"}
    assert artifacts.status is RunStatus.FAILED
    assert _files_with(site.folder, needles) == []
    assert "********" in (artifacts.folder / "stdout").read_text()
    names = {line.split("=")[0] for event in _events(artifacts) for line in _stdout_of(event)}
    assert {"SMITH_RUN_IDENT", "SMITH_CREDENTIALS_FILE", "PATH"} <= names
    assert not names & {"FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET"}


def _look_at_processes_of(site: Site) -> list[bytes]:
    """Return arguments and environment of all processes of the site's run from /proc."""
    seen = []
    for process in psutil.process_iter():
        folder = Path("/proc", str(process.pid))
        try:
            environ = (folder / "environ").read_bytes()
            if f"SMITH_CREDENTIALS_FILE={site.paths.run_dir}/".encode() in environ:
                seen.append((folder / "cmdline").read_bytes() + b"\n" + environ)
        except OSError:
            continue
    return seen


def _stdout_of(event: dict[str, Any]) -> list[str]:
    result = event.get("event_data", {}).get("res", {})
    return result.get("stdout_lines", []) if isinstance(result, dict) else []


def test_the_secrets_of_a_current_run_are_readable_by_our_user_only(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.waiting()))
        _eventually(site.is_waiting)
        folder = site.paths.run_dir / "run-1"
        modes = {path.stat().st_mode & 0o777 for path in (folder / "vm.yml", folder / "credentials.yml")}
        folders = {path.stat().st_mode & 0o777 for path in (site.paths.run_dir, folder)}
        site.runner.kill("run-1")
        future.result()

    assert (modes, folders) == ({0o600}, {0o700})


def test_secrets_are_masked_until_the_last_run_with_them_ends(site: Site) -> None:
    site.runner.run(site.run_of(site.playbook(PUBLISH), secrets=("only-for-this-run",)))

    assert site.redactor.redact(f"only-for-this-run {TOKEN}") == f"only-for-this-run {TOKEN}"


def test_a_run_dir_that_others_can_read_gets_private_first(site: Site) -> None:
    site.paths.run_dir.mkdir(mode=0o755)
    site.paths.run_dir.chmod(0o777)

    site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert site.paths.run_dir.stat().st_mode & 0o777 == 0o700


def test_each_library_of_a_playbook_gets_the_ca_bundle(site: Site) -> None:
    bundle = site.folder / "ca.pem"
    bundle.touch()
    runner = Runner(site.paths, lambda: dict(CREDENTIALS), ca_bundle=bundle, redactor=site.redactor)

    artifacts = runner.run(site.run_of(site.playbook("- name: Show\n  ansible.builtin.command: env\n")))

    shown = [line for event in _events(artifacts) for line in _stdout_of(event)]
    wanted = {f"{name}={bundle}" for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PROXMOX_CA_PATH")}
    assert wanted <= set(shown)


# --- several at once, and after a crash -------------------------------------------------------------------------------


def test_concurrent_runs_do_not_affect_each_other(site: Site) -> None:
    good = site.playbook(PUBLISH)
    bad = site.playbook(PUBLISH + "- name: Fail\n  ansible.builtin.fail:\n    msg: 'no'\n")
    orders = [site.run_of(bad if n % 3 == 0 else good, ident=f"run-{n}", vm={"name": f"vm-{n}"}) for n in range(6)]

    with ThreadPoolExecutor(6) as pool:
        all_artifacts = list(pool.map(site.runner.run, orders))

    assert [_result(artifacts)["name"] for artifacts in all_artifacts] == [f"vm-{n}" for n in range(6)]
    assert [artifacts.rc for artifacts in all_artifacts] == [2, 0, 0, 2, 0, 0]
    assert threading.active_count() == 1


def test_a_run_uses_the_credentials_that_are_valid_at_its_start(site: Site) -> None:
    tokens = iter(["first-secret-token", "second-secret-token"])
    runner = Runner(site.paths, lambda: {"api_token_secret": next(tokens)}, redactor=Redactor())
    tasks = """
        - name: Measure
          ansible.builtin.set_stats:
            data:
              vm_result: "{{ credentials | string | length }}"
            per_host: false
    """
    playbook = site.playbook(tasks)

    lengths = [_result(runner.run(site.run_of(playbook, ident=f"run-{n}"))) for n in range(2)]

    assert int(lengths[1]) - int(lengths[0]) == len("second") - len("first")


AGENT = """
import sys
from pathlib import Path
from executor.model import PlaybookRun
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths

home, folder, playbook = (Path(argument) for argument in sys.argv[1:])
paths = RunnerPaths(ansible_home=home, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
runner = Runner(paths, lambda: {"api_token_secret": "canary-of-another-process"})
runner.run(PlaybookRun(ident="run-1", action="test", playbook=playbook, vm={"name": "x"}, timeout_s=600))
"""


@pytest.fixture
def other_agent(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Start another agent process with a stubborn run in the same folders."""
    command = [sys.executable, "-c", AGENT, str(site.home), str(site.folder), str(site.stubborn())]
    with subprocess.Popen(command) as process:
        _eventually(site.is_busy)
        yield process
        process.kill()


def test_r7_a_killed_agent_leaves_no_process_of_its_runs(site: Site, other_agent: subprocess.Popen[bytes]) -> None:
    """Without a supervisor: the run's guard sees that the agent has died."""
    other_agent.kill()

    _eventually(lambda: not site.orphans())
    _eventually(lambda: not _look_at_processes_of(site))
    site.runner.end_earlier_runs()


def test_a_sweep_ends_orphan_processes_and_stores_their_artifacts(
    site: Site, other_agent: subprocess.Popen[bytes]
) -> None:
    guard = _process_of(site, "process_tree.py guard")
    assert guard is not None
    guard.suspend()  # only the sweep can end the run
    other_agent.kill()

    assert site.runner.end_earlier_runs() == ["run-1"]

    assert site.orphans() == []
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]
    kept = site.paths.artifacts_dir / "run-1"
    assert (kept / "status").read_text() == "failed"
    assert "playbook_on_start" in (kept / "events.jsonl").read_text()
    assert site.runner.end_earlier_runs() == []


def test_a_sweep_does_not_affect_the_runs_of_other_agents(
    site: Site, other_agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    paths = RunnerPaths(ansible_home=site.home, run_dir=tmp_path / "ru", artifacts_dir=tmp_path / "other")

    assert Runner(paths, dict).end_earlier_runs() == []

    assert len(site.orphans()) == 2
    assert other_agent.poll() is None
    other_agent.kill()
    other_agent.wait()  # it would store the artifacts of its run at the same time as the sweep
    site.runner.end_earlier_runs()


def test_f33_artifacts_that_cannot_be_moved_stay_readable_and_are_moved_by_the_next_sweep(site: Site) -> None:
    """Artifacts cannot be moved to their folder → they stay readable on tmpfs, and the next start moves them."""
    site.paths.artifacts_dir.touch()  # a file in place of the folder

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert _result(artifacts)["vmid"] == 101
    site.paths.artifacts_dir.unlink()
    assert site.runner.end_earlier_runs() == []
    assert "101" in (site.paths.artifacts_dir / "run-1" / "events.jsonl").read_text()
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


def test_the_output_of_a_current_run_can_be_read_redacted(site: Site) -> None:
    playbook = site.waiting(f"- name: Say\n  ansible.builtin.debug:\n    msg: 'hello {TOKEN}'\n")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(playbook))
        _eventually(site.is_waiting)
        shown = (site.runner.current_artifacts_folder("run-1") / "stdout").read_text()
        site.runner.kill("run-1")
        future.result()

    assert "hello ********" in shown


def test_the_story_of_a_run_is_read_during_the_run_and_returned_at_its_end(site: Site) -> None:
    playbook = site.waiting(f"- name: Say {TOKEN}\n  ansible.builtin.debug:\n    msg: hello\n")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(playbook))
        _eventually(site.is_waiting)
        stories = site.runner.changed_stories()
        site.runner.kill("run-1")
        artifacts = future.result()

    tasks = [(row["task"], row["outcome"]) for row in stories["run-1"]["tasks"]]
    assert tasks == [("Say ********", "ok"), ("Wait", "running")]
    assert artifacts.story is not None
    assert [row["outcome"] for row in artifacts.story["tasks"]] == ["ok", "interrupted"]
    assert site.runner.changed_stories() == {}


def test_the_playbooks_of_a_checkout_are_at_its_top_level() -> None:
    assert (ansible_home() / "ansible.cfg").is_file()


def test_a_missing_command_is_an_error_in_the_output() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", _process_tree_file(), "guard", "no-such-command"],
        stdin=subprocess.PIPE,
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (127, b"no-such-command: No such file or directory\n")


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_a_guard_exits_with_the_code_of_its_command(script: str, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", _process_tree_file(), "guard", "sh", "-c", script], stdin=subprocess.PIPE
    ) as guard:
        assert guard.wait() == code


def _process_tree_file() -> str:
    from executor.processes import process_tree  # noqa: PLC0415  only the file's path is needed

    return os.path.abspath(process_tree.__file__)
