"""Runs a command in the context of the agent's systemd service: with its user, environment and mount namespace."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from executor.errors import SmithError

#: The systemd unit of the agent, from deploy/systemd.
AGENT_UNIT = "agent-smith.service"
#: The environment variables of the service that are passed to the command: the settings, systemd's folder of the
#: service's secrets (CREDENTIALS_DIRECTORY), and variables that Ansible, Python and Python's libraries read. A variable
#: is passed if its name begins with one of the prefixes, or if its name in upper case is in PASSED_VARIABLE_NAMES (so
#: `http_proxy` is passed).
PASSED_VARIABLE_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_", "ANSIBLE_", "LC_", "REQUESTS_", "CURL_", "SSL_")
PASSED_VARIABLE_NAMES = ("PATH", "HOME", "LANG", "TZ", "CREDENTIALS_DIRECTORY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
SYSTEMCTL_TIMEOUT_S = 30.0


class CannotRunAsService(SmithError):
    """The service does not run, the caller is not root, or a program that is needed is missing."""


def run_as_service(arguments: Sequence[str]) -> int:
    """Run `smith` with these arguments in the context of the running service; return its exit code.

    The command enters the mount namespace of the service, in which systemd has mounted the service's secrets and
    folders. Raises CannotRunAsService.
    """
    if os.geteuid() != 0:
        raise CannotRunAsService("--as-service needs root: sudo smith doctor --as-service")
    pid = _service_main_pid()
    user, group = (_effective_id(pid, status_field) for status_field in ("Uid", "Gid"))
    command = [_program_path("nsenter"), "--target", str(pid), "--mount", "--setuid", user, "--setgid", group]
    command += ["--", sys.executable, "-m", "executor", *arguments]
    return subprocess.run(command, env=_passed_environment(pid), check=False, cwd="/").returncode


def _service_main_pid() -> int:
    command = [_program_path("systemctl"), "show", "--property=MainPID", "--value", AGENT_UNIT]
    try:
        finished_process = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise CannotRunAsService(
            f"systemctl has not answered for {SYSTEMCTL_TIMEOUT_S:.0f} s: {shlex.join(command)}"
        ) from None
    pid = int(finished_process.stdout.strip() or 0) if finished_process.stdout.strip().isdecimal() else 0
    if not pid:
        raise CannotRunAsService(
            f"{AGENT_UNIT} does not run on this machine: see `systemctl status {AGENT_UNIT}`. If the agent runs in a "
            "container, use `podman exec agent-smith smith doctor`"
        )
    return pid


def _effective_id(pid: int, status_field: str) -> str:
    """Return the effective user id (`Uid`) or group id (`Gid`) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[2] for line in lines if line.startswith(f"{status_field}:"))


def _passed_environment(pid: int) -> dict[str, str]:
    """Return the environment variables of the process that are passed to the command."""
    pairs = [text.partition("=") for text in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")]
    return {
        name: value
        for name, separator, value in pairs
        if separator and (name.startswith(PASSED_VARIABLE_PREFIXES) or name.upper() in PASSED_VARIABLE_NAMES)
    }


def _program_path(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise CannotRunAsService(f"--as-service needs the program {name}")
    return path
