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
CALLBACKS = Path(__file__).parent / "callbacks"
#: The time between SIGTERM and SIGKILL for ansible-playbook.
STOP_TIMEOUT_S = 10.0
#: The prefixes of the environment variables that are our settings. ansible-playbook does not get these variables,
#: because some are secrets. It reads Proxmox's login from a file instead.
_OUR_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: A terminal control sequence that sets a colour.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


@dataclass(frozen=True, kw_only=True)
class ManualRun:
    """One run of an action's playbook that an operator starts with a command."""

    action: str
    playbook: Path
    #: The extra variable `vm`, which describes the VM to the playbook.
    vm: Mapping[str, Any]
    #: Whether ansible-playbook gets --check.
    is_check: bool = False


def run(manual_run: ManualRun, settings: Settings, output: IO[str]) -> JobResult:
    """Run the playbook, copy its output to `output`, and return the result that the executor would store."""
    started_at = time.time()
    with private_folder() as folder:
        events = folder / "events.jsonl"
        events.touch(mode=0o600)
        command = [
            *_command(manual_run.playbook, folder, manual_run.vm, settings),
            *(("--check",) if manual_run.is_check else ()),
        ]
        callback = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "smith_events",
            "SMITH_EVENTS_FILE": str(events),
        }
        rc = _stream(command, environment(folder, settings) | callback, output, events)
        artifacts = RunArtifacts(
            ident=f"{manual_run.action}-{uuid.uuid4().hex[:12]}",
            folder=folder,
            status=RunStatus.FAILED if rc else RunStatus.SUCCESSFUL,
            rc=rc,
            started_at=started_at,
            ended_at=time.time(),
        )
        return results.read(artifacts)


def syntax_problem(playbook: Path) -> str:
    """Return the error of `ansible-playbook --syntax-check`, or '' if there is none. Proxmox is not contacted."""
    with private_folder() as folder:
        done = subprocess.run(
            [_ansible_playbook(), "--syntax-check", str(playbook)],
            env=environment(folder, None),
            cwd=home(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    errors = [line.strip() for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
    return " ".join(errors)[:600] if done.returncode else ""


def environment(folder: Path, settings: Settings | None) -> dict[str, str]:
    """Return the environment for ansible-playbook: this process's environment without our settings.

    Ansible's own files are created in `folder`. With `settings`, the environment also has the path of the file with
    Proxmox's login in `folder`, and the path of Proxmox's CA bundle.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_PREFIXES)}
    env |= {
        "ANSIBLE_CONFIG": str(home() / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml") if settings else "",
    }
    if settings and settings.proxmox_ca_bundle:
        env |= dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(settings.proxmox_ca_bundle.resolve()))
    return env


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder that only our user can read, and delete it after the block. It is on tmpfs if possible."""
    tmpfs = Path("/dev/shm")  # noqa: S108 (mkdtemp creates a folder with mode 0700 in it)
    place = str(tmpfs) if tmpfs.is_dir() and os.access(tmpfs, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smith-play-", dir=place) as folder:
        yield Path(folder)


def _command(playbook: Path, folder: Path, vm: Mapping[str, Any], settings: Settings) -> list[str]:
    """Write the variable `vm` and the credentials into the folder, and return ansible-playbook's command line."""
    write_extra_vars(folder / "vm.yml", dict(vm))
    write_credentials(folder / "credentials.yml", module_credentials(settings))
    return [_ansible_playbook(), str(playbook.resolve()), "-e", f"@{folder / 'vm.yml'}"]


def _stream(command: list[str], env: dict[str, str], output: IO[str], events: Path) -> int:
    """Run the command, print each line of its output sanitized, and return its exit code.

    A line with an error is also written to the file `events`. The command is stopped if this process is interrupted.
    """
    if output.isatty():
        env = env | {"ANSIBLE_FORCE_COLOR": "1"}
    process = subprocess.Popen(
        command,
        env=env,
        cwd=home(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            print(sanitized_line(line.rstrip("\n")), file=output, flush=True)
            if "ERROR" in line:
                _write_error_event(events, line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _write_error_event(events: Path, line: str) -> None:
    """Append an error line of ansible-playbook to the events, so that `results.read` finds it.

    For some errors, such as a syntax error, ansible-playbook only prints a line and calls no callback plugin.
    """
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "verbose", "stdout": _COLOUR.sub("", line.strip())}) + "\n")


def sanitized_line(line: str) -> str:
    """Return the line without secrets and without terminal control sequences; only colour sequences stay."""
    return "".join(
        part if _COLOUR.fullmatch(part) else sanitized(part, keep_lines=True) for part in _COLOUR.split(line)
    )


def _ansible_playbook() -> str:
    """Return the path of the ansible-playbook that is installed in our Python environment."""
    beside = Path(sysconfig.get_path("scripts"), "ansible-playbook")
    return str(beside) if beside.exists() else str(Path(sys.executable).with_name("ansible-playbook"))


def home() -> Path:
    """Return the folder with ansible.cfg, our playbooks and our roles."""
    return ansible_home()
