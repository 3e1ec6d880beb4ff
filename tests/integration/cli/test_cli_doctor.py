"""`smith doctor`: prints each result at once, and runs with the settings of agent-smith.service (`--as-service`).

"Service" means the systemd unit of the agent in this file, not a service of FulcrumCore.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Takes the place of systemctl, and prints the process id of the service.
SYSTEMCTL = "#!/bin/sh\necho {pid}\n"
SERVICE_PROGRAM = "import time; print(flush=True); time.sleep(600)"


def start_smith(*arguments: str, path: Path, **settings: str) -> subprocess.Popen[str]:
    names = ("PATH", "HOME", "LANG", "PYTHONPATH")
    env = {name: os.environ[name] for name in names if name in os.environ} | settings
    env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    command = [sys.executable, "-m", "executor", *arguments]
    return subprocess.Popen(command, env=env, cwd=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    """Start a process with its own settings that `systemctl` shows as the service; yield the folder of `systemctl`."""
    env = {"SMITH_DATA_DIR": "/dev/shm/data-of-the-service", "PATH": os.environ["PATH"], "CORE_ADMIN_TOKEN": "secret"}  # noqa: S108
    with subprocess.Popen([sys.executable, "-c", SERVICE_PROGRAM], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        program = tmp_path / "systemctl"
        program.write_text(SYSTEMCTL.format(pid=process.pid))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        yield tmp_path
        process.kill()


def test_doctor_prints_each_result_before_the_next_check_ends(tmp_path: Path) -> None:
    """FulcrumCore accepts the connection and does not answer: its check waits, and the settings are printed already."""
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = start_smith(
            "doctor",
            path=tmp_path,
            FULCRUM_API_URL=url,
            FULCRUM_API_TOKEN="not-a-real-token",
            SMITH_DATA_DIR=str(tmp_path / "data"),
        )
        connection, _ = listener.accept()  # the check of FulcrumCore now waits for a response
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        connection.close()
    process.communicate()
    assert lines[0].split() == ["AREA", "CHECK", "STATUS", "FOUND"]
    assert lines[1].split()[0] == "settings"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nsenter") is None, reason="only root can act as a service")
def test_doctor_as_service_uses_the_settings_of_the_service(service: Path) -> None:
    process = start_smith("doctor", "--as-service", "--json", path=service, SMITH_DATA_DIR="/not/this/one")
    output, errors = process.communicate()
    assert process.returncode == 3, errors  # the service has no settings of FulcrumCore
    checks = {(check["area"], check["name"]): check for check in json.loads(output)["checks"]}
    assert checks["database", "usable"]["text"].startswith("the agent creates /dev/shm/data-of-the-service/smith.db")
    assert ("settings", "readable") not in checks


def test_doctor_as_service_fails_without_a_running_service_or_without_root(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(pid=0))
    program.chmod(0o700)
    process = start_smith("doctor", "--as-service", path=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 1
    expected = "agent-smith.service does not run" if os.geteuid() == 0 else "needs root"
    assert expected in errors
