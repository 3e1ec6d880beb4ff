"""The connection of ProxmoxReader: settings, failures, passwords, and answers that Proxmox never sends."""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.certificates import make_certificates
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from support.proxmox_connections import connection_to, failing

from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings
from executor.shared.login_repeats import REPEAT_PAUSES_S


def test_the_connection_of_the_settings_reaches_proxmox(
    stand_in: ProxmoxStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stand_in.env().items():
        monkeypatch.setenv(name, value)
    connection = ProxmoxConnection.from_settings(load_settings(env_file=None))
    assert connection == connection_to(stand_in)
    assert ProxmoxReader(connection).version()[0].isdigit()


def test_certificates_are_not_verified_if_validate_certs_is_false(
    stand_in: ProxmoxStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (stand_in.env() | {"PROXMOX_VALIDATE_CERTS": "false"}).items():
        monkeypatch.setenv(name, value)
    connection = ProxmoxConnection.from_settings(load_settings(env_file=None))
    assert connection.verify is False
    assert ProxmoxReader(connection).version()


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (401, "authentication failure", "PVE_AUTH"),
        (403, "Permission check failed (/vms/710, VM.Audit)", "PVE_PERMISSION"),
        (500, "cluster not ready - no quorum?", "PVE_NO_QUORUM"),
        (500, "something else", "PVE_API_ERROR"),
        (503, "Service Unavailable", "PVE_UNREACHABLE"),
        (595, "No route to host", "NODE_DOWN"),
        (596, "Connection timed out", "PVE_TIMEOUT"),
        (0, "", "PVE_UNREACHABLE"),
    ],
)
def test_each_failed_request_has_the_error_code_of_its_status_and_text(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn, status: int, text: str, code: str
) -> None:
    times = 1 + len(REPEAT_PAUSES_S) if status == 401 else 1  # a refused login is repeated before it is an error
    stand_in.fail("GET", "/cluster/resources", status=status, text=text, times=times)
    with failing(code):
        reader.vms()
    assert reader.vms()  # the next request succeeds


def test_a_token_that_proxmox_cannot_check_for_a_moment_is_accepted_later(
    reader: ProxmoxReader, stand_in: ProxmoxStandIn
) -> None:
    """While its cluster file system restarts, Proxmox refuses every login."""
    stand_in.control("logins", accepted=False)
    threading.Timer(1, stand_in.control, ["logins"], {"accepted": True}).start()
    assert reader.vms()


def test_a_slow_proxmox_is_a_timeout(stand_in: ProxmoxStandIn) -> None:
    reader = ProxmoxReader(connection_to(stand_in), timeout_s=0.5)
    stand_in.fail("GET", "/cluster/resources", delay_s=3)
    with failing("PVE_TIMEOUT"):
        reader.vms()


def test_a_wrong_secret_a_wrong_port_and_an_unknown_certificate_have_their_codes(stand_in: ProxmoxStandIn) -> None:
    connection = connection_to(stand_in)
    for changed, code in (
        (replace(connection, token_secret="wrong-secret-91"), "PVE_AUTH"),
        (replace(connection, port=1), "PVE_UNREACHABLE"),
        (replace(connection, host="pve.invalid"), "PVE_UNREACHABLE"),
        (replace(connection, verify=True), "PVE_TLS"),
        (replace(connection, verify=Path("/nowhere/ca.pem")), "PVE_TLS"),
    ):
        with pytest.raises(JobError) as caught:
            ProxmoxReader(changed).version()
        assert caught.value.code == code
        assert "wrong-secret-91" not in str(caught.value)
        assert "object at 0x" not in str(caught.value)


def test_a_changed_secret_is_an_authentication_error_and_never_logged(
    stand_in: ProxmoxStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    reader = ProxmoxReader(connection_to(stand_in))
    reader.version()
    stand_in.control("token_secret", secret="another-secret-17")
    try:
        with failing("PVE_AUTH"):
            reader.version()
    finally:
        stand_in.control("token_secret", secret=stand_in.token_secret)
    assert stand_in.token_secret not in caplog.text


def test_concurrent_threads_get_the_answers_to_their_own_requests(reader: ProxmoxReader, vm: int) -> None:
    wrong: list[Any] = []

    def send_requests() -> None:
        for _ in range(10):
            if reader.is_vmid_free(vm) or not reader.is_vmid_free(711) or reader.vm_config("pve2", vm)["cores"] is None:
                wrong.append("answer of another request")

    threads = [threading.Thread(target=send_requests) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Logins with a password


def connection_with_password(stand_in: ProxmoxStandIn) -> ProxmoxConnection:
    password = json.loads((stand_in.folder / "settings.json").read_text())["root_password"]
    return replace(connection_to(stand_in), user="root@pam", token_id="", token_secret="", password=password)


def count_logins(stand_in: ProxmoxStandIn) -> int:
    return sum(entry["path"].endswith("/access/ticket") for entry in stand_in.request_log())


def test_a_reader_with_a_password_logs_in_once_for_many_requests(stand_in: ProxmoxStandIn) -> None:
    reader = ProxmoxReader(connection_with_password(stand_in))
    stand_in.reset_request_log()
    reader.version()
    reader.vms()
    assert count_logins(stand_in) == 1


def test_an_expired_ticket_is_replaced_once(stand_in: ProxmoxStandIn) -> None:
    reader = ProxmoxReader(connection_with_password(stand_in))
    reader.version()
    stand_in.reset_request_log()
    stand_in.fail("GET", "/cluster/resources", status=401, text="permission denied - invalid PVE ticket")
    assert reader.vms()
    assert count_logins(stand_in) == 1
    stand_in.fail("GET", "/cluster/resources", status=401, text="permission denied - invalid PVE ticket", times=2)
    with failing("PVE_AUTH"):
        reader.vms()
    assert count_logins(stand_in) == 2


def test_a_wrong_password_is_tried_once_and_not_shown(stand_in: ProxmoxStandIn) -> None:
    """Repeated failures may lock the account."""
    stand_in.reset_request_log()
    reader = ProxmoxReader(replace(connection_with_password(stand_in), password="wrong-password-23"))
    with pytest.raises(JobError) as caught:
        reader.version()
    assert caught.value.code == "PVE_AUTH"
    assert "wrong-password-23" not in str(caught.value)
    assert count_logins(stand_in) == 1


# Answers that Proxmox never sends


class FixedServer:
    """Answers every GET request with the same status and body, over TLS."""

    def __init__(self, folder: Path, status: int, body: bytes, headers: dict[str, str]) -> None:
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append((self.path, self.headers.get("Authorization", "")))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.reader = ProxmoxReader(
            ProxmoxConnection(
                host="127.0.0.1",
                port=self.port,
                user="smith@pve",
                token_id="job",
                token_secret="secret-of-the-token",
                verify=folder / "ca.pem",
            )
        )


Serve = Callable[..., FixedServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts a server with a fixed answer. The server ends with the test."""
    running: list[tuple[FixedServer, threading.Thread]] = []
    make_certificates(tmp_path, "127.0.0.1")

    def start(status: int, body: bytes, **headers: str) -> FixedServer:
        server = FixedServer(tmp_path, status, body, headers)
        thread = threading.Thread(target=server.server.serve_forever, args=(0.05,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>proxy</html>", b"[]", b"7", b"null", b"{}", b'{"data": 7}', b'{"data": {}}', b"\xff", b"[" * 50_000],
)
def test_an_answer_that_is_not_a_list_is_an_api_error_and_never_an_empty_list(serve: Serve, body: bytes) -> None:
    reader = serve(200, body).reader
    for read in (reader.vms, reader.nodes, reader.is_quorate):
        with failing("PVE_API_ERROR"):
            read()


@pytest.mark.parametrize("body", [b"", b"<html>proxy</html>", b"[]", b"{}", b'{"data": 7}', b'{"data": []}', b"\xff"])
def test_an_answer_that_is_not_an_object_is_an_api_error_and_never_an_empty_object(serve: Serve, body: bytes) -> None:
    reader = serve(200, body).reader
    read_functions: list[Callable[[], Any]] = [
        reader.version,
        lambda: reader.vm_config("pve1", 100),
        lambda: reader.permissions("/vms"),
    ]
    for read in read_functions:
        with failing("PVE_API_ERROR"):
            read()


@pytest.mark.parametrize("body", [b"", b"<html>proxy</html>", b"[]", b'{"errors": ["x"]}', b"\xff", b"x" * 100_000])
def test_an_error_page_is_an_error_with_a_short_text(serve: Serve, body: bytes) -> None:
    with pytest.raises(JobError) as caught:
        serve(502, body).reader.vms()
    assert caught.value.code in ("PVE_UNREACHABLE", "PVE_API_ERROR")
    assert len(str(caught.value)) < 500


def test_the_target_of_a_redirect_gets_no_token(serve: Serve) -> None:
    redirect_target = serve(200, b'{"data": []}')
    server = serve(302, b"", Location=f"https://127.0.0.1:{redirect_target.port}/api2/json/version")
    with pytest.raises(JobError):
        server.reader.version()
    assert server.received
    assert redirect_target.received == []


def test_a_list_that_is_null_is_empty(serve: Serve) -> None:
    assert serve(200, b'{"data": null}').reader.vms() == []


def test_a_netrc_and_a_ca_bundle_in_the_environment_are_not_used(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(netrc))
    server = serve(200, b'{"data": {"version": "9.0.3"}}')
    assert server.reader.version() == "9.0.3"
    assert server.received == [("/api2/json/version", "PVEAPIToken=smith@pve!job=secret-of-the-token")]
