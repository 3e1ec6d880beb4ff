"""Runs an action's playbook with ansible-playbook for a command, and reads the result as the executor does.

ansible-playbook gets the credentials and the extra variable `vm` as files in a private folder. The folder is on tmpfs
if possible, and is deleted after the run. No argument and no environment variable of the run contains a secret.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from executor.cli.output import sanitized
from executor.model import JobResult, RunArtifacts, RunStatus
from executor.runs import results
from executor.runs.actions import ansible_home
from executor.runs.private_folder import CREDENTIALS_VARIABLE, module_credentials, write_credentials, write_extra_vars
from executor.settings.settings import Settings

#: The folder with the callback plugin `smith_events`, which writes the events that `results.read` needs.
CALLBACK_PLUGINS = Path(__file__).parent / "callbacks"
#: ansible-playbook gets SIGTERM, and SIGKILL if it has not ended after this time.
STOP_TIMEOUT_S = 10.0
#: The prefixes of the names of our settings. ansible-playbook does not get these environment variables, because some of
#: them are secrets. It reads Proxmox's login from a file instead.
_SETTING_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: Matches a terminal control sequence that sets a colour. Because of the group, `split` also returns the sequences.
_COLOUR_SEQUENCE = re.compile(r"(\x1b\[[0-9;]*m)")
#: The maximum length of the text that `find_syntax_problem` returns.
_MAX_SYNTAX_PROBLEM_LENGTH = 600


@dataclass(frozen=True, kw_only=True)
class ManualRun:
    """One run of an action's playbook that an operator starts with a command."""

    action: str
    playbook: Path
    #: The extra variable `vm`, which describes the VM to the playbook.
    vm: Mapping[str, Any]
    #: Whether ansible-playbook gets the option --check, with which it changes nothing.
    is_check_mode: bool = False


def run(manual_run: ManualRun, settings: Settings, output: IO[str]) -> JobResult:
    """Run the playbook, copy its output to `output`, and return the result that the executor would store."""
    started_at = time.time()
    with temporary_private_folder() as folder:
        events_file = folder / "events.jsonl"
        events_file.touch(mode=0o600)
        command = _prepare_command(manual_run.playbook, folder, manual_run.vm, settings)
        if manual_run.is_check_mode:
            command.append("--check")
        callback_variables = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACK_PLUGINS),
            "ANSIBLE_CALLBACKS_ENABLED": "smith_events",
            "SMITH_EVENTS_FILE": str(events_file),
        }
        rc = _run_command(command, build_environment(folder, settings) | callback_variables, output, events_file)
        artifacts = RunArtifacts(
            ident=f"{manual_run.action}-{uuid.uuid4().hex[:12]}",
            folder=folder,
            status=RunStatus.FAILED if rc else RunStatus.SUCCESSFUL,
            rc=rc,
            started_at=started_at,
            ended_at=time.time(),
        )
        return results.read(artifacts)


def find_syntax_problem(playbook: Path) -> str:
    """Return the error of `ansible-playbook --syntax-check`, or '' if there is none. Proxmox is not contacted."""
    with temporary_private_folder() as folder:
        finished_process = subprocess.run(
            [_ansible_playbook_path(), "--syntax-check", str(playbook)],
            env=build_environment(folder, settings=None),
            cwd=ansible_home(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if finished_process.returncode == 0:
        return ""
    lines = [line.strip() for line in finished_process.stderr.splitlines()]
    return " ".join(line for line in lines if line and "WARNING" not in line)[:_MAX_SYNTAX_PROBLEM_LENGTH]


def build_environment(folder: Path, settings: Settings | None) -> dict[str, str]:
    """Return the environment for ansible-playbook: this process's environment without our settings.

    Ansible creates its own files in `folder`. With `settings`, the environment also has the path of Proxmox's CA bundle
    and the path of the file in `folder` with Proxmox's login. Without `settings`, the path of this file is empty.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(_SETTING_PREFIXES)}
    env |= {
        "ANSIBLE_CONFIG": str(ansible_home() / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml") if settings else "",
    }
    if settings and settings.proxmox_ca_bundle:
        ca_bundle = str(settings.proxmox_ca_bundle.resolve())
        env |= {"REQUESTS_CA_BUNDLE": ca_bundle, "SSL_CERT_FILE": ca_bundle}
    return env


@contextmanager
def temporary_private_folder() -> Iterator[Path]:
    """Create a folder that only our user can read, and delete it after the block. It is on tmpfs if possible."""
    tmpfs = Path("/dev/shm")  # noqa: S108 (mkdtemp creates a folder with mode 0700 in it)
    parent_folder = str(tmpfs) if tmpfs.is_dir() and os.access(tmpfs, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smith-play-", dir=parent_folder) as folder:
        yield Path(folder)


def _prepare_command(playbook: Path, folder: Path, vm: Mapping[str, Any], settings: Settings) -> list[str]:
    """Write the variable `vm` and the credentials into the folder, and return ansible-playbook's command line."""
    write_extra_vars(folder / "vm.yml", dict(vm))
    write_credentials(folder / "credentials.yml", module_credentials(settings))
    return [_ansible_playbook_path(), str(playbook.resolve()), "-e", f"@{folder / 'vm.yml'}"]


def _run_command(command: list[str], env: dict[str, str], output: IO[str], events_file: Path) -> int:
    """Run the command, print its sanitized output to `output`, and return the command's exit code.

    A line that contains an error is also appended to `events_file`. If this process is interrupted, the command is
    stopped.
    """
    if output.isatty():
        env = env | {"ANSIBLE_FORCE_COLOR": "1"}
    process = subprocess.Popen(
        command,
        env=env,
        cwd=ansible_home(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            print(sanitized_except_colours(line.rstrip("\n")), file=output, flush=True)
            if "ERROR" in line:
                _write_error_event(events_file, line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _write_error_event(events_file: Path, line: str) -> None:
    """Append an error line of ansible-playbook to the events, so that `results.read` finds the error.

    For some errors, such as a syntax error, ansible-playbook prints a line but calls no callback plugin. `verbose` is
    ansible-runner's event for a line of output that no callback plugin reports.
    """
    with events_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "verbose", "stdout": _COLOUR_SEQUENCE.sub("", line.strip())}) + "\n")


def sanitized_except_colours(line: str) -> str:
    """Return the line without secrets and without terminal control sequences; only colour sequences stay."""
    parts = _COLOUR_SEQUENCE.split(line)
    # With keep_lines, `sanitized` also keeps the tabs.
    return "".join(part if _COLOUR_SEQUENCE.fullmatch(part) else sanitized(part, keep_lines=True) for part in parts)


def _ansible_playbook_path() -> str:
    """Return the path of the ansible-playbook that is installed in our Python environment."""
    script = Path(sysconfig.get_path("scripts"), "ansible-playbook")
    return str(script if script.exists() else Path(sys.executable).with_name("ansible-playbook"))
