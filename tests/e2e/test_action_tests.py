"""A provider's new action: `smith actions new`, `validate` and `test`, on a stand-in for Proxmox."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from smith_lab.lab_test.lab_settings import VARIABLE_PREFIX
from support.cli_world import Cli

ROOT = Path(__file__).parents[2]
TASKS = "roles/say_hello/tasks/main.yml"
PUBLISH = "- name: Publish the result"
#: An Ansible task that fails with an error code. A test inserts it into the provider's role.
FAILING_TASK = """\
- name: Fail
  ansible.builtin.fail:
    msg: "CAPACITY: the greeting is too long"

"""
TIMEOUT_S = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "actions"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture
def smith(tmp_path: Path, folder: Path) -> Cli:
    """`smith` without the settings of a lab, so that `smith actions test` starts a stand-in."""
    cli = Cli(tmp_path)
    cli.env["SMITH_ACTIONS_PATH"] = str(folder)
    return cli


def run_action_tests(smith: Cli, *arguments: str) -> tuple[int, str]:
    """Run `smith actions test`; return its exit code and all that it prints."""
    env = {
        name: text for name, text in os.environ.items() if not name.startswith((VARIABLE_PREFIX, "PROXMOX_", "PYTEST_"))
    }
    done = subprocess.run(
        smith.command("actions", "test", *arguments),
        env=env | smith.env,
        cwd=smith.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_new_action_is_valid_and_its_tests_pass_until_it_is_broken(smith: Cli, folder: Path) -> None:
    smith.ok("actions", "new", "say-hello")
    smith.ok("actions", "validate", "say-hello")
    before = {file for file in folder.rglob("*")}
    code, shown = run_action_tests(smith, "say-hello", "--junit", "report.xml")
    assert (code, "3 passed" in shown) == (0, True), shown
    assert shown.startswith("lab: a stand-in for Proxmox\n")
    assert {file for file in folder.rglob("*")} == before  # pytest leaves no file
    assert 'tests="3"' in (smith.folder / "report.xml").read_text()

    tasks = folder / TASKS
    tasks.write_text(tasks.read_text().replace(PUBLISH, FAILING_TASK + PUBLISH))
    code, shown = run_action_tests(smith, "say-hello", "-k", "check_mode")
    assert (code, "AssertionError: CAPACITY: the greeting is too long" in shown) == (1, True), shown


def test_only_an_action_of_the_provider_that_has_tests_can_be_tested(smith: Cli, folder: Path) -> None:
    smith.ok("actions", "new", "say-hello")
    (folder / "tests" / "test_say_hello.py").unlink()
    assert "say-hello has no tests" in smith("actions", "test", "say-hello").stderr
    done = smith("actions", "test", "start")
    assert (done.returncode, "`smith lab-test -k start` tests it" in done.stderr) == (2, True)
    assert "no playbook for the action" in smith("actions", "test", "say-good-bye").stderr
    (folder / "say-hello.yml").chmod(0o666)
    done = smith("actions", "test", "say-hello")
    assert (done.returncode, "is writable by all users" in done.stderr) == (1, True)


def test_without_the_lab_package_the_command_names_the_package_to_install(smith: Cli, tmp_path: Path) -> None:
    smith.ok("actions", "new", "say-hello")
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("agent_smith_lab-", "smith_lab")) and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "executor", "actions", "test", "say-hello"],
        env=smith.environment(PYTHONPATH=f"{packages}:{ROOT}"),
        cwd=smith.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "the wheel agent-smith-lab" in done.stderr) == (1, True), done.stderr
