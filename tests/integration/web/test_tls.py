"""The pages over TLS with a certificate of the operator: cookie, renewed and unusable files, and open handshakes."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from smith_lab.proxmox.certificates import CertificateAuthority
from structlog.testing import capture_logs
from support.cli_world import Cli
from support.web_world import TOKEN, WITHIN_S, PagesSite, address_of_this_machine

from executor.errors import SettingsError
from executor.settings.settings import load_settings
from executor.web.tls import MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS, CertificateUnusable, ServerCertificate

MakePages = Callable[..., PagesSite]
NAMES = ("localhost", "127.0.0.1")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    folder = tmp_path / "tls"
    folder.mkdir()
    return CertificateAuthority(folder)


@pytest.fixture
def tls_site(make_pages: MakePages, authority: CertificateAuthority) -> PagesSite:
    certificate, key = authority.issue("smith", NAMES)
    return make_pages(SMITH_HTTP_TLS_CERTIFICATE=str(certificate), SMITH_HTTP_TLS_KEY=str(key))


def new_connection(site: PagesSite, authority: CertificateAuthority) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    return http.client.HTTPSConnection("localhost", site.handle.port, context=context, timeout=WITHIN_S)


def test_the_pages_are_served_with_tls_only(tls_site: PagesSite, authority: CertificateAuthority) -> None:
    connection = new_connection(tls_site, authority)
    connection.request("GET", "/livez")
    assert connection.getresponse().read()
    connection.close()
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        tls_site.browser().get("/livez")


def test_the_cookie_of_a_login_is_sent_over_tls_only(tls_site: PagesSite, authority: CertificateAuthority) -> None:
    connection = new_connection(tls_site, authority)
    origin = {"Origin": f"https://localhost:{tls_site.handle.port}"}
    connection.request("POST", "/login", f"name=Ada&token={TOKEN}", FORM | origin)
    response = connection.getresponse()
    assert response.status == 303
    assert "secure" in str(response.getheader("Set-Cookie")).lower()
    connection.close()


def test_a_form_from_the_same_host_without_tls_is_refused(tls_site: PagesSite, authority: CertificateAuthority) -> None:
    connection = new_connection(tls_site, authority)
    origin = {"Origin": f"http://localhost:{tls_site.handle.port}", "Sec-Fetch-Site": "cross-site"}
    connection.request("POST", "/login", f"name=Ada&token={TOKEN}", FORM | origin)
    assert connection.getresponse().status == 403
    connection.close()


def test_smith_health_connects_with_tls(tls_site: PagesSite, tmp_path: Path) -> None:
    settings = {
        "SMITH_HTTP_ADDR": f"127.0.0.1:{tls_site.handle.port}",
        "SMITH_HTTP_TLS_CERTIFICATE": str(tls_site.settings.smith_http_tls_certificate),
    }
    answer = Cli(tmp_path)("health", "--live", **settings)
    assert "not Agent Smith" not in answer.stdout
    assert "no answer" not in answer.stdout


def test_a_renewed_certificate_is_used_and_an_unusable_one_is_not(authority: CertificateAuthority) -> None:
    certificate, key = authority.issue("smith", NAMES)
    loaded = ServerCertificate(certificate, key)
    first = loaded.context
    loaded.reload_if_changed()
    assert loaded.context is first, "nothing has changed"
    certificate.write_text("no certificate")
    with capture_logs() as logs:
        loaded.reload_if_changed()
        loaded.reload_if_changed()
    assert [entry["event"] for entry in logs] == ["http_certificate_refused"], "once for each change"
    assert loaded.context is first
    authority.issue("smith", NAMES)
    with capture_logs() as logs:
        loaded.reload_if_changed()
    assert [entry["event"] for entry in logs] == ["http_certificate_loaded"]
    assert loaded.context is not first


def test_one_file_may_have_certificate_and_key(authority: CertificateAuthority) -> None:
    certificate, key = authority.issue("smith", NAMES)
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    ServerCertificate(certificate, None)


def test_a_key_of_another_certificate_is_refused(authority: CertificateAuthority) -> None:
    certificate, _key = authority.issue("smith", NAMES)
    _other, other_key = authority.issue("other", NAMES, file_stem="other")
    with pytest.raises(CertificateUnusable, match="KEY_VALUES_MISMATCH"):
        ServerCertificate(certificate, other_key)


def test_with_an_unusable_certificate_the_agent_works_without_the_pages(make_pages: MakePages, tmp_path: Path) -> None:
    file = tmp_path / "unusable.pem"
    file.write_text("no certificate")
    with capture_logs() as logs:
        site = make_pages(SMITH_HTTP_TLS_CERTIFICATE=str(file))
    assert site.handle.port == 0
    assert "http_not_served" in [entry["event"] for entry in logs]


def test_a_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("")
    with pytest.raises(SettingsError, match="SMITH_HTTP_TLS_CERTIFICATE must be set, too"):
        load_settings(env_file=None, environ={"SMITH_HTTP_TLS_KEY": str(key)})


def test_connections_without_a_handshake_are_limited(tls_site: PagesSite, authority: CertificateAuthority) -> None:
    """Each would occupy a file descriptor of the agent for a minute."""
    silent_connections = [
        socket.create_connection(("127.0.0.1", tls_site.handle.port)) for _ in range(MAX_HANDSHAKES + 8)
    ]
    try:
        limit = time.monotonic() + WITHIN_S
        while (
            closed := sum(is_closed(connection) for connection in silent_connections)
        ) < 8 and time.monotonic() < limit:
            time.sleep(0.05)
        assert closed >= 8
    finally:
        for connection in silent_connections:
            connection.close()
    deadline = time.monotonic() + WITHIN_S
    while True:  # the server notices a little later that connections are closed
        try:
            connection = new_connection(tls_site, authority)
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            break
        except OSError:
            assert time.monotonic() < deadline
    connection.close()


def test_another_machine_cannot_occupy_all_handshakes(make_pages: MakePages, authority: CertificateAuthority) -> None:
    """A connection to this machine's network address comes from that address, so it counts as another machine's."""
    own_address = address_of_this_machine()
    certificate, key = authority.issue("smith", NAMES)
    files = {"SMITH_HTTP_TLS_CERTIFICATE": str(certificate), "SMITH_HTTP_TLS_KEY": str(key)}
    site = make_pages(SMITH_HTTP_ADDR="0.0.0.0:0", **files)
    silent_connections = [
        socket.create_connection((own_address, site.handle.port)) for _ in range(MAX_HANDSHAKES_PER_ADDRESS + 4)
    ]
    try:
        for connection in silent_connections[MAX_HANDSHAKES_PER_ADDRESS:]:
            connection.settimeout(WITHIN_S)
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        local = new_connection(site, authority)
        local.request("GET", "/livez")
        assert local.getresponse().status == 200
        local.close()
    finally:
        for connection in silent_connections:
            connection.close()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_the_files_are_read_again_after_a_rename(authority: CertificateAuthority) -> None:
    """Tools that renew certificates replace the file, instead of writing to it."""
    certificate, key = authority.issue("smith", NAMES)
    loaded = ServerCertificate(certificate, key)
    first = loaded.context
    new, new_key = authority.issue("smith", NAMES, file_stem="new")
    os.replace(new_key, key)
    os.replace(new, certificate)
    loaded.reload_if_changed()
    assert loaded.context is not first
