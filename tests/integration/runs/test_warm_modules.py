"""Modules of community.proxmox that are executed in the process of a warm run.

Their results are the same as in a process of their own, and they leave no change in the process of the run.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from integration.runs.test_warm import mask_volatile_values
from support.warm_site import Site, debug, events_of, eventually, is_alive, run_dir, said

from executor.model import RunArtifacts, RunStatus

__all__ = ["run_dir"]

#: A module that executes the Python code in its parameter `body`.
MODULE = """
#!/usr/bin/python
import os, sys, warnings, signal, time
from ansible.module_utils.basic import AnsibleModule

calls = []


def main():
    module = AnsibleModule(argument_spec={"body": {"type": "str", "required": True}, "secret": {"no_log": True}})
    calls.append(1)
    exec(module.params["body"])


if __name__ == "__main__":
    main()
"""
#: Code for the module. `where` returns the state of the process that executes the module.
STATE = """
def where():
    command = open("/proc/self/cmdline").read()
    return dict(
        warm="playbook_server" in command, main=__name__, calls=len(calls), argv=len(sys.argv),
        umask=os.umask(os.umask(0o77)), tmp=bool(os.environ.get("TMPDIR")), extra=os.environ.get("EXTRA"),
    )
"""


@pytest.fixture
def site(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Return a site with a collection community.proxmox of its own, whose module `proxmox_kvm` runs any code."""
    site = Site(tmp_path, run_dir)
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(site.home / "collections"))
    module = site.home / "collections/ansible_collections/community/proxmox/plugins/modules/proxmox_kvm.py"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE.lstrip())
    yield site
    site.runner.stop_warm_server()


def module_task(body: str, **fields: Any) -> str:
    """Return an Ansible task that makes the module run this code."""
    task = {"name": "Call", "community.proxmox.proxmox_kvm": {"body": textwrap.dedent(body)}, **fields}
    return f"- {json.dumps(task)}\n"


def module_result(artifacts: RunArtifacts, number: int = 0) -> dict[str, Any]:
    """Return the result of an Ansible task that called the module. The first such task has the number 0."""
    event_data = [event["event_data"] for event in events_of(artifacts) if "res" in event.get("event_data", {})]
    results = [data["res"] for data in event_data if data.get("task") == "Call"]
    return dict(results[number])


#: By name: code for the module that ends it in another way, or prints in another way.
BODIES = {
    "changed": "module.exit_json(changed=True, text='\\u00fc \\u2028', number=1.5, nothing=None)",
    "failed": "module.fail_json(msg='no room', status=[1, 2])",
    "warnings": "module.warn('first'); module.deprecate('old', version='9', collection_name='a.b'); module.exit_json()",
    "exception": "raise ValueError('unexpected')",
    "no exit": "pass",
    "exit code": "print('text'); sys.exit(3)",
    "exit text": "sys.exit('reason')",
    "output": "print('before'); print('to stderr', file=sys.stderr); module.exit_json(msg='after')",
    "python warning": "warnings.warn('beware'); module.exit_json()",
    "environment": "module.exit_json(locale=os.environ['LANG'], home=os.environ['HOME'][-4:], cwd=os.getcwd())",
    "invalid text": "print(chr(0xdc80)); module.exit_json()",
}


def test_a_module_has_the_same_result_in_the_runs_process_and_in_a_process_of_its_own(site: Site) -> None:
    tasks = "".join(module_task(body, ignore_errors=True) for body in BODIES.values())
    cold = site.play(tasks, "run-1")
    cold_results = [mask_volatile_values(module_result(cold, number)) for number in range(len(BODIES))]
    site.warmed()
    warm = site.play(tasks, "run-1")

    assert (warm.status, warm.rc) == (cold.status, cold.rc)
    for number, name in enumerate(BODIES):
        assert mask_volatile_values(module_result(warm, number)) == cold_results[number], name


def test_a_module_runs_in_the_process_of_a_warm_run_with_a_state_of_its_own(site: Site) -> None:
    body = STATE + "\nmodule.exit_json(**where())"
    tasks = module_task(body) + module_task(body)
    cold = site.play(tasks)
    site.warmed()
    warm = site.play(tasks)

    assert [module_result(warm, number)["warm"] for number in (0, 1)] == [True, True]
    for number in (0, 1):
        warm_result, cold_result = module_result(warm, number), module_result(cold, number)
        assert {**warm_result, "warm": False} == cold_result


def test_what_a_module_changes_of_its_process_is_restored(site: Site) -> None:
    change = """
        os.environ["EXTRA"] = "left"
        os.chdir("/")
        os.umask(0)
        sys.argv.append("left")
        sys.stdout.write("")
        warnings.simplefilter("error")
        module.exit_json()
    """
    state = STATE + "\nmodule.exit_json(cwd=os.getcwd(), filters=[f[0] for f in warnings.filters[:1]], **where())"
    site.warmed()
    run = site.play(module_task(state) + module_task(change) + module_task(state))

    assert run.status is RunStatus.SUCCESSFUL
    assert module_result(run, 2) == module_result(run, 0)


def test_an_environment_of_an_ansible_task_applies_to_that_task_only(site: Site) -> None:
    body = STATE + "\nmodule.exit_json(**where())"
    site.warmed()
    run = site.play(module_task(body, environment={"EXTRA": "it's $HOME"}) + module_task(body))

    assert [module_result(run, number)["extra"] for number in (0, 1)] == ["it's $HOME", None]
    assert module_result(run)["warm"]


@pytest.mark.parametrize(
    ("body", "rc"),
    [
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import ctypes; ctypes.string_at(0)", 139),
    ],
)
def test_a_module_that_ends_its_process_ends_only_its_own_run(site: Site, body: str, rc: int) -> None:
    site.warmed()
    server = site.runner.warm_server_pid()
    marker = site.folder / "waits"
    wait = f"open({str(marker)!r}, 'w'); time.sleep(3); module.exit_json(msg='done')"
    with ThreadPoolExecutor(1) as pool:
        other_run = pool.submit(site.play, module_task(wait))
        eventually(marker.exists)
        crashed_run = site.play(module_task(body))
        assert other_run.result().status is RunStatus.SUCCESSFUL

    assert crashed_run.status is RunStatus.FAILED
    assert crashed_run.rc == rc
    assert site.runner.warm_server_pid() == server
    assert module_result(site.play(module_task(STATE + "\nmodule.exit_json(**where())")))["warm"]


def test_a_module_that_does_not_return_is_ended_with_its_run(site: Site) -> None:
    site.warmed()
    pid_file = site.folder / "pid"
    run = site.play(module_task(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"), timeout_s=8)

    assert run.status is RunStatus.TIMEOUT
    assert not is_alive(int(pid_file.read_text()))


def test_a_module_of_another_collection_or_with_other_code_runs_in_a_process_of_its_own(site: Site) -> None:
    library = site.home / "playbooks" / "library"
    library.mkdir()
    (library / "proxmox_kvm.py").write_text(MODULE.lstrip())
    state = STATE + "\nmodule.exit_json(**where())"
    task_of_another_module = module_task(state).replace("community.proxmox.proxmox_kvm", "proxmox_kvm")
    site.warmed()
    run = site.play(task_of_another_module + module_task(state))

    assert not module_result(run, 0)["warm"]
    assert module_result(run, 1)["warm"]


def test_a_changed_module_is_used_by_the_next_run(site: Site) -> None:
    site.warmed()
    file = site.home / "collections/ansible_collections/community/proxmox/plugins/modules/proxmox_kvm.py"
    first = site.play(module_task("module.exit_json(msg='v1')"))
    file.write_text(file.read_text().replace("calls.append(1)", 'module.exit_json(msg="v2")'))
    second = site.play(module_task("module.exit_json(msg='v1')"))

    assert [module_result(run)["msg"] for run in (first, second)] == ["v1", "v2"]


def test_no_secret_of_a_module_is_shown(site: Site) -> None:
    site.warmed()
    task = module_task("module.exit_json(given=module.params['secret'])")
    task = task.replace('"body"', '"secret": "canary-secret-7", "body"')
    run = site.play(task + debug("x"))

    assert "canary-secret-7" not in json.dumps(events_of(run))
    assert "x" in said(run)
