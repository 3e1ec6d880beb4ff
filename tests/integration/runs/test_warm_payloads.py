"""The payloads that a playbook server prepares once for all runs.

A payload is the archive with a module and its imports that Ansible executes. The server prepares the payloads of all
modules that our actions call. A module is executed in the process of a run only if its payload has no other files than
installed ones.
"""

from __future__ import annotations

import ast
import base64
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.runs.warm import payloads
from executor.runs.warm.module_script import PROXMOX_MODULE_PREFIX

ROOT = Path(__file__).parents[3]
MODULE = f"{PROXMOX_MODULE_PREFIX}proxmox_kvm"
PATH_IN_PAYLOAD = MODULE.replace(".", "/") + ".py"


@pytest.fixture
def installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a module where Python finds it first."""
    file = tmp_path / "site" / PATH_IN_PAYLOAD
    file.parent.mkdir(parents=True)
    file.write_text("print('as installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    payloads._import_folders.cache_clear()
    yield file
    payloads._import_folders.cache_clear()


def build_payload(content: str) -> str:
    """Return a payload with this module, as Ansible builds it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(PATH_IN_PAYLOAD, content)
    return base64.b64encode(data.getvalue()).decode()


def test_a_payload_of_installed_files_is_recognised(installed_module: Path) -> None:
    payload = build_payload(installed_module.read_text())

    assert payloads.find_installed_files(payload) == [installed_module]
    assert payloads.find_installed_files(payload.encode()) == [installed_module]


@pytest.mark.usefixtures("installed_module")
def test_a_payload_whose_module_differs_from_the_installed_file_is_not_recognised() -> None:
    assert payloads.find_installed_files(build_payload("print('more')\n")) is None


def test_a_payload_is_not_recognised_after_an_upgrade_of_the_installed_file(installed_module: Path) -> None:
    payload = build_payload(installed_module.read_text())
    installed_module.write_text("print('an upgrade')\n")

    assert payloads.find_installed_files(payload) is None


def list_called_modules() -> set[str]:
    """Return the modules that our actions call with `change_with_module`, according to the source of the plugins."""
    names = set()
    for file in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "change_with_module"
            ):
                texts = [item.value for item in ast.walk(node.args[0]) if isinstance(item, ast.Constant)]
                names |= {text for text in texts if isinstance(text, str) and text.startswith("proxmox")}
    return names


def test_the_list_of_modules_has_exactly_those_that_the_actions_call() -> None:
    assert list_called_modules() == set(payloads.CALLED_PROXMOX_MODULES)
