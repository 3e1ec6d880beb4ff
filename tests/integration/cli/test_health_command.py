"""`smith health`, with the health pages of a real agent, with fixed responses, and without an agent."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem, run_lab_system, wait_for
from support import fork_server
from support.cli_world import GIVE_UP_S, Cli

#: Modules whose import takes long. `smith health` is called every few seconds and must not import them.
HEAVY = ("typer", "rich", "pydantic", "requests", "sqlalchemy", "structlog", "urllib3")


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@contextmanager
def serve_responses(*answers: tuple[int, bytes]) -> Iterator[str]:
    """Serve these responses (status and body), one to each request; yield the address of the server."""
    remaining = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = remaining.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page(status: str, *checks: dict[str, Any]) -> bytes:
    return json.dumps({"status": status, "checks": checks}).encode()


def run_health(smith: Cli, *args: str, **env: str) -> tuple[int, str]:
    done = smith("health", *args, **env)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout.strip()


def test_the_exit_code_of_an_agent_that_is_alive_and_ready_is_0(smith: Cli) -> None:
    with serve_responses((200, page("alive")), (200, page("ready"))) as address:
        assert run_health(smith, SMITH_HTTP_ADDR=address) == (0, "alive and ready")


def test_with_the_option_live_only_one_page_is_requested(smith: Cli) -> None:
    with serve_responses((200, page("alive"))) as address:
        assert run_health(smith, "--live", SMITH_HTTP_ADDR=address) == (0, "alive")


def test_the_failed_checks_are_named_in_one_line(smith: Cli) -> None:
    good, bad = (
        {"name": "disk", "ok": True},
        {"name": "proxmox", "ok": False, "reason": "is silent", "detail": "a\nb\x1b"},
    )
    with serve_responses((200, page("alive")), (503, page("not ready", good, bad))) as address:
        assert run_health(smith, SMITH_HTTP_ADDR=address) == (1, "not ready: proxmox is silent a b")


def test_a_stalled_loop_is_reported_without_a_request_for_readiness(smith: Cli) -> None:
    stuck = page("stuck", {"name": "dispatch", "ok": False, "reason": "no progress for 200 s"})
    with serve_responses((503, stuck)) as address:
        assert run_health(smith, SMITH_HTTP_ADDR=address) == (1, "stuck: dispatch no progress for 200 s")


def test_without_a_server_the_exit_code_is_1(smith: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_server:
        port = closed_server.getsockname()[1]
    code, line = run_health(smith, SMITH_HTTP_ADDR=f"127.0.0.1:{port}")
    assert code == 1
    expected = (
        f"no answer from 127.0.0.1:{port}/livez: Connection refused; `smith status` shows whether an agent is running"
    )
    assert line == expected


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"status": 7}', b"\xff"])
def test_the_exit_code_is_1_if_another_program_answers_on_the_port(body: bytes, smith: Cli) -> None:
    with serve_responses((503, body)) as address:
        code, line = run_health(smith, SMITH_HTTP_ADDR=address)
    assert (code, line.endswith("/livez is not Agent Smith")) == (1, True)


@pytest.mark.parametrize("address", ["off", "127.0.0.1:0", "nonsense"])
def test_without_an_http_server_the_agent_is_not_healthy(address: str, smith: Cli) -> None:
    code, line = run_health(smith, SMITH_HTTP_ADDR=address)
    assert (code, line) == (
        1,
        f"the agent has no HTTP server to ask: set SMITH_HTTP_ADDR, which is {address}, to HOST:PORT",
    )


def test_an_agent_that_listens_on_all_addresses_is_called_on_loopback_without_a_proxy(smith: Cli) -> None:
    with serve_responses((200, page("alive"))) as address:
        all_addresses = f"0.0.0.0:{address.rpartition(':')[2]}"
        result = run_health(
            smith, "--live", SMITH_HTTP_ADDR=all_addresses, http_proxy="http://127.0.0.1:9", HTTP_PROXY="x"
        )
    assert result == (0, "alive")


def test_all_settings_except_smith_http_addr_may_be_invalid_or_missing(smith: Cli) -> None:
    """The command concerns the process of the agent, and needs no setting but SMITH_HTTP_ADDR."""
    with serve_responses((200, page("alive"))) as address:
        (smith.folder / ".env").write_text(f"SMITH_HTTP_ADDR={address}\nPROXMOX_PORT=nonsense\nSMITH_TYPO=1\n")
        assert run_health(smith, "--live") == (0, "alive")


def test_the_module_imports_nothing_heavy(smith: Cli) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['health', '--live']\n"
        "try: runpy.run_module('executor.cli.health', run_name='__main__')\n"
        "except SystemExit as leaving: print(leaving.code)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    with serve_responses((200, page("alive"))) as address:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=smith.environment(SMITH_HTTP_ADDR=address),
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
            check=True,
        )
    assert done.stdout.splitlines() == ["alive", "0", "[]"]


# --- with a real agent --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with socket.create_server(("127.0.0.1", 0)) as server_with_free_port:
        address = f"127.0.0.1:{server_with_free_port.getsockname()[1]}"
    with run_lab_system(tmp_path_factory.mktemp("lab"), settings={"SMITH_HTTP_ADDR": address}) as system:
        system.start_executor()
        yield system


def _health_of(lab: LabSystem, *args: str) -> tuple[int, str]:
    done = fork_server.run(["health", *args], env=lab.environment(), cwd=lab.folder, timeout=GIVE_UP_S)
    return done.returncode, done.stdout.strip()


def test_a_working_agent_is_healthy_and_one_without_fulcrumcore_only_alive(lab: LabSystem) -> None:
    wait_for(lambda: _health_of(lab) == (0, "alive and ready"), GIVE_UP_S, "the agent to be ready")
    lab.core.pause()
    failing = wait_for(lambda: (result := _health_of(lab))[0] and result, GIVE_UP_S, "the agent to miss FulcrumCore")
    assert "fulcrum FulcrumCore does not answer, or refuses the token" in failing[1]
    assert _health_of(lab, "--live") == (0, "alive")
    lab.core.resume()
    wait_for(lambda: _health_of(lab) == (0, "alive and ready"), GIVE_UP_S, "the agent to be ready again")
