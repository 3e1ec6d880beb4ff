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
UNIT = "agent-smith.service"
#: The environment variables that the command gets from the service: the beginnings of names, and whole names. These are
#: the settings, and variables that Ansible, Python and Python's libraries read.
KEPT_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_", "ANSIBLE_", "LC_", "REQUESTS_", "CURL_", "SSL_")
KEPT_NAMES = ("PATH", "HOME", "LANG", "TZ", "CREDENTIALS_DIRECTORY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
TIMEOUT_S = 30.0


class NoService(SmithError):
    """The service does not run, the caller is not root, or a program that is needed is missing."""


def run_as_service(arguments: Sequence[str]) -> int:
    """Run `smith` with these arguments in the context of the running service; return its exit code. Raises NoService.

    The command enters the mount namespace of the service, in which systemd has mounted the service's secrets and
    folders.
    """
    if os.geteuid() != 0:
        raise NoService("--as-service needs root: sudo smith doctor --as-service")
    pid = _main_pid()
    user, group = (_id_of(pid, kind) for kind in ("Uid", "Gid"))
    command = [_program("nsenter"), "--target", str(pid), "--mount", "--setuid", user, "--setgid", group]
    command += ["--", sys.executable, "-m", "executor", *arguments]
    return subprocess.run(command, env=_environment(pid), check=False, cwd="/").returncode


def _main_pid() -> int:
    command = [_program("systemctl"), "show", "--property=MainPID", "--value", UNIT]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NoService(f"systemctl has not answered for {TIMEOUT_S:.0f} s: {shlex.join(command)}") from None
    pid = int(shown.stdout.strip() or 0) if shown.stdout.strip().isdecimal() else 0
    if not pid:
        in_container = "in a container: podman exec agent-smith smith doctor"
        raise NoService(f"{UNIT} does not run on this machine (systemctl status {UNIT}; {in_container})")
    return pid


def _id_of(pid: int, kind: str) -> str:
    """Return the effective user id (`Uid`) or group id (`Gid`) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[2] for line in lines if line.startswith(f"{kind}:"))


def _environment(pid: int) -> dict[str, str]:
    """Return the environment variables of the process that KEPT_PREFIXES and KEPT_NAMES select."""
    pairs = [text.partition("=") for text in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")]
    return {
        name: value
        for name, separator, value in pairs
        if separator and (name.startswith(KEPT_PREFIXES) or name.upper() in KEPT_NAMES)
    }


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NoService(f"--as-service needs the program {name}")
    return path
