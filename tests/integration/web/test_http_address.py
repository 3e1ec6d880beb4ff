"""The address of the HTTP server: which settings are refused, and when its port is open."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest
from support.health_site import TOKEN, WITHIN_S

from executor.errors import SettingsError
from executor.settings.settings import Settings, load_settings
from executor.web import serve
from executor.web.server import serving_pages


@pytest.mark.parametrize(
    ("variables", "expected_text"),
    [
        ({"SMITH_HTTP_PROXIES": "0.0.0.0/0"}, "any client could claim to be any user"),
        ({"SMITH_HTTP_PROXIES": "::/0"}, "any client could claim to be any user"),
        ({"SMITH_HTTP_PROXIES": "proxy.example.net"}, "must be a list of addresses or networks"),
        ({"SMITH_HTTP_PROXIES": "10.8.0.7/24"}, "must be a list of addresses or networks"),
        ({"SMITH_HTTP_USER_HEADER": "X Login"}, "must be a header name"),
        ({"SMITH_HTTP_USER_HEADER": "Authorization"}, "must be a header name"),
    ],
)
def test_an_unsafe_proxy_setting_is_refused(variables: dict[str, str], expected_text: str) -> None:
    with pytest.raises(SettingsError, match=expected_text):
        load_settings(env_file=None, environ=variables)


@pytest.mark.parametrize("address", ["0.0.0.0:9642", "[::]:9642", "192.0.2.1:80", "host.example.net:9642"])
def test_an_address_that_other_machines_reach_needs_a_token_or_a_proxy(address: str) -> None:
    with pytest.raises(SettingsError, match="SMITH_HTTP_ADDR is wrong, other machines can reach"):
        load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address})
    settings = load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address, "SMITH_HTTP_TOKEN": TOKEN})
    assert settings.smith_http_addr == address
    proxied = load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address, "SMITH_HTTP_PROXIES": "192.0.2.7"})
    assert proxied.smith_http_proxies == ("192.0.2.7/32",)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "off"])
def test_a_loopback_address_needs_no_token(address: str) -> None:
    assert load_settings(env_file=None, environ={"SMITH_HTTP_ADDR": address}).smith_http_addr == address


def test_a_token_is_read_from_a_file_and_must_not_be_short(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    settings = load_settings(env_file=None, environ={"SMITH_HTTP_TOKEN_FILE": str(file)})
    assert settings.smith_http_token.get_secret_value() == TOKEN
    with pytest.raises(SettingsError, match="shorter than 16 characters"):
        load_settings(env_file=None, environ={"SMITH_HTTP_TOKEN": "fifteen-letters"})


# The socket


def test_the_address_off_opens_no_port(tmp_path: Path) -> None:
    with serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr="off")) as handle:
        assert handle.port == 0


def test_a_port_in_use_is_logged_once_and_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level(logging.INFO, logger="executor"):
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr=address)) as handle:
            assert handle.port == 0
    assert caplog.text.count("http_not_served") == 1
    assert address in caplog.text
    assert "in use" in caplog.text


def test_the_port_is_free_after_the_agent_has_stopped(tmp_path: Path) -> None:
    with serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr="127.0.0.1:0")) as handle:
        port = handle.port
        socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S).close()
    with serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr=f"127.0.0.1:{port}")) as handle:
        assert handle.port == port


def test_the_stop_of_the_server_does_not_wait_for_its_next_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "TICK_S", 3600.0)
    with (
        serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr="127.0.0.1:0")) as handle,
        closing(http.client.HTTPConnection("127.0.0.1", handle.port, timeout=WITHIN_S)) as connection,
    ):
        connection.request("GET", "/livez")
        assert connection.getresponse().headers["Date"]
    assert "http" not in [thread.name for thread in threading.enumerate()]


def test_ipv6_is_served(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving_pages(Settings(smith_data_dir=tmp_path, smith_http_addr="[::1]:0")) as handle:
        socket.create_connection(("::1", handle.port), timeout=WITHIN_S).close()
