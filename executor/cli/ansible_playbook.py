"""Runs plain ansible-playbook with our settings, and reads the result as the executor does.

Credentials and the variable `vm` are files in a private folder, on tmpfs if possible, which is deleted after the run.
No argument and no environment variable has a secret.
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

CALLBACKS = Path(__file__).parent / "callbacks"
#: After SIGTERM; then ansible-playbook is killed.
STOP_TIMEOUT_S = 10.0
#: Removed from the environment: these settings, some of them secret, are read by us and reach the modules in a file.
_OUR_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


@dataclass(frozen=True, kw_only=True)
class Play:
    """One run of an action's playbook."""

    action: str
    playbook: Path
    vm: Mapping[str, Any]
    is_check: bool = False


def run(play: Play, settings: Settings, shown_on: IO[str]) -> JobResult:
    """Run the playbook, print its output on `shown_on`, and return the result as the executor would conclude it."""
    started_at = time.time()
    with private_folder() as folder:
        events = folder / "events.jsonl"
        events.touch(mode=0o600)
        command = [*_command(play.playbook, folder, play.vm, settings), *(("--check",) if play.is_check else ())]
        extra = {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "smith_events",
            "SMITH_EVENTS_FILE": str(events),
        }
        rc = _stream(command, environment(folder, settings) | extra, shown_on, events)
        artifacts = RunArtifacts(
            ident=f"{play.action}-{uuid.uuid4().hex[:12]}",
            folder=folder,
            status=RunStatus.FAILED if rc else RunStatus.SUCCESSFUL,
            rc=rc,
            started_at=started_at,
            ended_at=time.time(),
        )
        return results.read(artifacts)


def syntax_problem(playbook: Path) -> str:
    """Return the error of `ansible-playbook --syntax-check`, '' without one. Needs no Proxmox."""
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
    """Return our environment without our settings; with `settings`, the login is a file in the folder."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_PREFIXES)}
    found |= {
        "ANSIBLE_CONFIG": str(home() / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        CREDENTIALS_VARIABLE: str(folder / "credentials.yml") if settings else "",
    }
    if settings and settings.proxmox_ca_bundle:
        found |= dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(settings.proxmox_ca_bundle.resolve()))
    return found


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder that only our user can read, on tmpfs if possible, and delete it after the block."""
    tmpfs = Path("/dev/shm")  # noqa: S108 (mkdtemp creates a folder with mode 0700 in it)
    place = str(tmpfs) if tmpfs.is_dir() and os.access(tmpfs, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="smith-play-", dir=place) as folder:
        yield Path(folder)


def _command(playbook: Path, folder: Path, vm: Mapping[str, Any], settings: Settings) -> list[str]:
    write_extra_vars(folder / "vm.yml", dict(vm))
    write_credentials(folder / "credentials.yml", module_credentials(settings))
    return [_ansible_playbook(), str(playbook.resolve()), "-e", f"@{folder / 'vm.yml'}"]


def _stream(command: list[str], env: dict[str, str], shown_on: IO[str], events: Path) -> int:
    """Run a command, print each line without secrets and control sequences, and return its exit code."""
    if shown_on.isatty():
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
            print(shown(line.rstrip("\n")), file=shown_on, flush=True)
            if "ERROR" in line:
                _note_error(events, line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _note_error(events: Path, line: str) -> None:
    """Write an error that ansible-playbook printed before any task ran as an event, which `results.read` reads."""
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "verbose", "stdout": _COLOUR.sub("", line.strip())}) + "\n")


def shown(line: str) -> str:
    """Return the line with its colours, and without other control sequences."""
    return "".join(
        part if _COLOUR.fullmatch(part) else sanitized(part, keep_lines=True) for part in _COLOUR.split(line)
    )


def _ansible_playbook() -> str:
    """Return the path of the ansible-playbook in our own environment."""
    beside = Path(sysconfig.get_path("scripts"), "ansible-playbook")
    return str(beside) if beside.exists() else str(Path(sys.executable).with_name("ansible-playbook"))


def home() -> Path:
    """Return the folder with ansible.cfg, our playbooks and our roles."""
    return ansible_home()
