"""The installed collection, used from another folder and without ansible.cfg of the checkout, as a provider uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from executor_bench import ExecutorBench
from play_bench import ACTIONS, ANSIBLE_PLAYBOOK, ROOT, Bench, Outcome, read_record
from support.cli_world import Cli
from test_same_result import add_copy, identity, mask_varying_values

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
FULL_NAME = "agent_smith.proxmox"
#: Contains community.proxmox.
SITE_PACKAGES = sysconfig.get_path("purelib")
#: What an action needs in addition to the identity of the guest.
REQUESTS: dict[str, dict[str, Any]] = {
    "create": {"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 9, "tags": ["web"]},
    "update": {"cores": 4, "allow_reboot": True},
    "resize": {"disk_gib": 11},
    "migrate": {"target_node": "pve2"},
    "backup": {"backup_storage": "backups"},
    "delete": {"final_backup": "backups"},
}


def run_ansible_program(program: str, *arguments: str, folder: Path, collections: Path | str) -> str:
    """Run a program of Ansible in the folder; return its standard output."""
    done = subprocess.run(
        [str(Path(ANSIBLE_PLAYBOOK).with_name(program)), *arguments],
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG")},
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection and install it into an empty folder, without network; return the folder."""
    built, installed = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    script = [sys.executable, str(ROOT / "deploy" / "build_collection.py"), str(built)]
    archive = subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip()
    install = ("collection", "install", "--offline", "--collections-path", str(installed), archive)
    run_ansible_program("ansible-galaxy", *install, folder=built, collections=SITE_PACKAGES)
    return installed


@pytest.mark.parametrize("kind", ["module", "filter", "role"])
def test_ansible_doc_finds_each_action_filter_and_role(installed: Path, tmp_path: Path, kind: str) -> None:
    content = installed / "ansible_collections" / "agent_smith" / "proxmox"
    if kind == "role":
        short_names = {folder.name for folder in (content / "roles").iterdir()}
    else:
        folder = "action" if kind == "module" else kind
        short_names = {file.stem for file in (content / "plugins" / folder).glob("*.py")}
    names = {f"{FULL_NAME}.{name}" for name in short_names}
    assert len(names) >= 4
    found = json.loads(
        run_ansible_program("ansible-doc", "--json", "--type", kind, *names, folder=tmp_path, collections=installed)
    )
    assert set(found) == names
    for name, documentation in found.items():
        text = documentation["entry_points"]["main"] if kind == "role" else documentation["doc"]
        assert text["short_description"], name


def play_by_full_name(bench: Bench, installed: Path, folder: Path, action: str, vm: dict[str, Any]) -> Outcome:
    """Run a playbook of the installed collection in the folder, which holds no inventory and no ansible.cfg."""
    variables = folder / "vm.yml"
    variables.write_text(yaml.safe_dump({"vm": vm}))
    env = bench.environment(ANSIBLE_COLLECTIONS_PATH=f"{installed}:{SITE_PACKAGES}")
    command = [ANSIBLE_PLAYBOOK, "-e", f"@{variables}", f"{FULL_NAME}.{action}"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    return read_record(Path(env["PLAY_RECORD"]), done.returncode, done.stdout + done.stderr)


def play_with_smith(bench: Bench, folder: Path, action: str, vm: dict[str, Any]) -> dict[str, Any]:
    """Run the action with `smith play`; return its result document."""
    variables = folder / "vm-of-smith.yml"
    variables.write_text(yaml.safe_dump({"vm": vm}))
    smith = Cli(folder)
    smith.env |= bench.pve.env() | dict.fromkeys(("PROXMOX_BRIDGES", "PROXMOX_STORAGES", "PROXMOX_TAGS"), "*")
    smith.env["PROXMOX_ANY_TEMPLATE"] = "true"
    done = smith("play", action, "--yes", "--vars", str(variables), "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["vm"])


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_run_in_four_ways_has_the_same_result(
    bench: Bench, installed: Path, shared_executor: ExecutorBench, tmp_path: Path, action: str
) -> None:
    """From the checkout, by full name from the installed collection, with `smith play`, and by the agent's runner."""
    guests = [{**add_copy(bench, action, "qemu"), "node": "pve1"} for _ in range(4)]
    requests = [{**identity(vm), **REQUESTS.get(action, {})} for vm in guests]
    from_checkout = bench.play(action, requests[0])
    by_full_name = play_by_full_name(bench, installed, tmp_path, action, requests[1])
    by_agent = shared_executor.play(action, requests[3])
    assert from_checkout.rc == 0, from_checkout.output
    assert by_full_name.rc == 0, by_full_name.output
    assert by_agent.succeeded, by_agent.message
    assert from_checkout.result["changed"]
    documents = [from_checkout.result, by_full_name.result, play_with_smith(bench, tmp_path, action, requests[2])]
    expected = mask_varying_values(documents[0], requests[0])
    for document, request in zip([*documents, by_agent.vm], requests, strict=True):
        assert mask_varying_values(document, request) == expected


def test_a_play_by_full_name_fails_with_the_error_of_the_checkout(
    bench: Bench, installed: Path, tmp_path: Path
) -> None:
    vm = identity(bench.vm())
    from_checkout = bench.play("start", vm)
    by_full_name = play_by_full_name(bench, installed, tmp_path, "start", vm)
    assert from_checkout.rc == by_full_name.rc == 2
    assert from_checkout.message == by_full_name.message
    assert by_full_name.code == "VM_NOT_FOUND"


@pytest.mark.by_hand
@pytest.mark.parametrize("library", ["proxmoxer", "urllib3"])
def test_a_missing_python_library_is_named_in_the_error(bench: Bench, tmp_path: Path, library: str) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError(f'No module named {__name__!r}')\n")
    outcome = bench.play("start", identity(bench.vm()), PYTHONPATH=str(tmp_path))
    assert outcome.message.startswith("PLAYBOOK_FAILED: install proxmoxer and requests for ")
    assert outcome.message.endswith(f"No module named '{library}'")
