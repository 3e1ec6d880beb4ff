"""The executor, a playbook and the inventory reach Proxmox through a proxy and at an IPv6 address."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from support.connect_proxy import ConnectProxy, connect_proxy
from support.proxmox_connections import connection_to

from executor.doctor import certificates
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.certificate import find_ca, read_fingerprint
from executor.settings.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 120
VM = {"service_id": "0a1b2c3d-0000-4000-8000-000000000001", "vmid": 100123, "name": "web-1", "cluster": "lab"}


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    with connect_proxy() as running:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, running.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        yield running


@pytest.fixture
def stand_in_at_ipv6(tmp_path: Path) -> Iterator[ProxmoxStandIn]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    running = ProxmoxStandIn(tmp_path / "stand-in", host="::1")
    try:
        yield running.start()
    finally:
        running.stop()


def run_ansible(
    program: str, stand_in: ProxmoxStandIn, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        env=os.environ | stand_in.env() | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def start_unknown_vm(stand_in: ProxmoxStandIn, **env: str) -> str:
    """Run a playbook that logs in and finds no VM; return what it printed."""
    done = run_ansible("ansible-playbook", stand_in, "playbooks/start.yml", "-e", json.dumps({"vm": VM}), **env)
    return done.stdout + done.stderr


def test_an_administrator_and_doctor_reach_proxmox_through_the_proxy(
    proxy: ConnectProxy, stand_in: ProxmoxStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> list[str]:
        proxy.targets.clear()
        fingerprint = read_fingerprint(stand_in.host, stand_in.port)
        session = AdminSession(stand_in.host, stand_in.port, "root@pam", fingerprint)
        session.log_in(stand_in.root_password, str)
        assert find_ca(session)
        assert certificates.read_tls_state(stand_in.host, stand_in.port, stand_in.ca_bundle).problem is None
        return proxy.targets

    assert set(connect()) == {f"{stand_in.host}:{stand_in.port}"}
    monkeypatch.setenv("NO_PROXY", stand_in.host)
    assert connect() == []


def test_a_proxy_receives_the_login_of_its_url_and_a_refusal_by_the_proxy_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connect_proxy(refuses=True) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://ops:se%20cret@"))
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(JobError) as refusal:
            read_fingerprint("pve1.example.net", 8006)
        with pytest.raises(JobError) as login_refusal:
            AdminSession("pve1.example.net", 8006, "root@pam", "AB:" * 31 + "AB").log_in("password", str)
    assert "407" in str(refusal.value)
    assert "cret" not in f"{refusal.value} {login_refusal.value}"
    assert set(proxy.logins) == {f"Basic {base64.b64encode(b'ops:se cret').decode()}"}
    assert set(proxy.targets) == {"pve1.example.net:8006"}


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_certificate_of_proxmox_at_an_ipv6_address_is_read(stand_in_at_ipv6: ProxmoxStandIn, host: str) -> None:
    state = certificates.read_tls_state(host, stand_in_at_ipv6.port, stand_in_at_ipv6.ca_bundle)
    assert state.problem is None
    assert state.certificate is not None


def test_the_executor_and_playbooks_reach_proxmox_through_the_proxy(
    proxy: ConnectProxy, stand_in: ProxmoxStandIn
) -> None:
    target = f"{stand_in.host}:{stand_in.port}"
    assert ProxmoxReader(connection_to(stand_in)).version()
    assert set(proxy.targets) == {target}
    proxy.targets.clear()
    assert "VM_NOT_FOUND" in start_unknown_vm(stand_in)
    assert set(proxy.targets) == {target}


def test_no_proxy_names_hosts_that_are_reached_without_the_proxy(
    proxy: ConnectProxy, stand_in: ProxmoxStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "core.example.net,127.0.0.1")
    assert ProxmoxReader(connection_to(stand_in)).version()
    assert proxy.targets == []


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_proxmox_may_have_an_ipv6_address_with_or_without_brackets(host: str, stand_in_at_ipv6: ProxmoxStandIn) -> None:
    environ = stand_in_at_ipv6.env() | {"PROXMOX_HOST": host}
    connection = ProxmoxConnection.from_settings(load_settings(env_file=None, environ=environ))
    assert ProxmoxReader(connection).version()
    assert "VM_NOT_FOUND" in start_unknown_vm(stand_in_at_ipv6, PROXMOX_HOST=host)
    inventory = run_ansible(
        "ansible-inventory", stand_in_at_ipv6, "-i", "inventory/smith.proxmox.yml", "--list",
        PROXMOX_HOST=host,
        ANSIBLE_INVENTORY_ENABLED="community.proxmox.proxmox",
        REQUESTS_CA_BUNDLE=str(stand_in_at_ipv6.ca_bundle),
    )  # fmt: skip
    assert inventory.returncode == 0, inventory.stderr
