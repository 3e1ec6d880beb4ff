"""An invalid certificate is refused with a text that names the remedy; disabled TLS is logged at each start."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from smith_lab.system import run_lab_system

from executor.errors import FulcrumUnavailable, JobError
from executor.fulcrum.client import FulcrumClient
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings
from executor.shared.error_codes import ErrorCode

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Endpoint:
    """A TLS server and the CA of its certificate."""

    port: int
    ca: Path


def write_certificates(folder: Path, *, address: str = "127.0.0.1", ends: datetime.datetime = NOW + DAY) -> Path:
    """Write `ca.pem`, and a file with a certificate signed by this CA and its private key; return the second file."""
    folder.mkdir(exist_ok=True)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {folder.name}")])

    def builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        certificate = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public_key)
        return certificate.serial_number(x509.random_serial_number()).not_valid_before(NOW - 9 * DAY)

    pem = serialization.Encoding.PEM
    ca = builder(ca_name, ca_key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
    (folder / "ca.pem").write_bytes(ca.not_valid_after(NOW + DAY).sign(ca_key, hashes.SHA256()).public_bytes(pem))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    leaf = builder(x509.Name([]), key.public_key()).not_valid_after(ends).add_extension(names, critical=True)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem) + private)
    return folder / "server.pem"


@contextlib.contextmanager
def endpoint(folder: Path, **certificate: object) -> Iterator[Endpoint]:
    """Serve TLS handshakes; respond to no request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write_certificates(folder, **certificate))  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept_handshakes, args=(listener, context), daemon=True)
        thread.start()
        yield Endpoint(listener.getsockname()[1], folder / "ca.pem")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _accept_handshakes(listener: socket.socket, context: ssl.SSLContext) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as secure:
                secure.recv(1)


CASES = {
    "wrong host": ({"address": "192.0.2.1"}, ("FULCRUM_API_URL", "PROXMOX_HOST")),
    "expired": ({"ends": NOW - DAY}, ("Renew FulcrumCore's certificate", "Renew Proxmox's certificate")),
    "unknown CA": ({}, ("FULCRUM_CA_BUNDLE", "PROXMOX_CA_BUNDLE")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_invalid_certificate_is_refused_with_a_text_that_names_the_remedy(tmp_path: Path, case: str) -> None:
    certificate, (fulcrum_remedy, proxmox_remedy) = CASES[case]
    with endpoint(tmp_path / "server", **certificate) as server:
        write_certificates(tmp_path / "other")
        ca = tmp_path / "other" / "ca.pem" if case == "unknown CA" else server.ca
        client = FulcrumClient(f"https://127.0.0.1:{server.port}", lambda: "token-1", ca_bundle=ca)
        connection = ProxmoxConnection(
            host="127.0.0.1", port=server.port, user="a@pve", token_id="t", token_secret="token-2", verify=ca
        )

        with pytest.raises(FulcrumUnavailable) as fulcrum_error:
            client.get_own_agent()
        with pytest.raises(JobError) as proxmox_error:
            ProxmoxReader(connection).version()

    assert fulcrum_remedy in str(fulcrum_error.value)
    assert proxmox_error.value.code is ErrorCode.PVE_TLS
    assert proxmox_remedy in proxmox_error.value.detail
    assert "token-" not in f"{fulcrum_error.value}{proxmox_error.value}"


@pytest.mark.parametrize(
    ("variables", "insecure_names"),
    [
        ({"FULCRUM_API_URL": "https://core.example"}, []),
        ({"FULCRUM_API_URL": "http://127.0.0.1:3000"}, []),
        ({"FULCRUM_API_URL": "http://localhost:3000"}, []),
        ({"FULCRUM_API_URL": "http://core.example"}, ["FULCRUM_API_URL"]),
        ({"FULCRUM_API_URL": "https://core.example", "FULCRUM_VERIFY_TLS": "false"}, ["FULCRUM_VERIFY_TLS"]),
        ({"PROXMOX_HOST": "pve1", "PROXMOX_VALIDATE_CERTS": "false"}, ["PROXMOX_VALIDATE_CERTS"]),
        (
            {"FULCRUM_API_URL": "http://core.example", "PROXMOX_HOST": "pve1", "PROXMOX_VALIDATE_CERTS": "false"},
            ["FULCRUM_API_URL", "PROXMOX_VALIDATE_CERTS"],
        ),
    ],
)
def test_each_setting_that_disables_tls_is_named(variables: dict[str, str], insecure_names: list[str]) -> None:
    assert [name for name, _ in load_settings(env_file=None, environ=variables).insecure_settings()] == insecure_names


def test_disabled_tls_is_logged_once_at_each_start(tmp_path: Path) -> None:
    with run_lab_system(tmp_path, settings={"PROXMOX_VALIDATE_CERTS": "false", "PROXMOX_CA_BUNDLE": ""}) as lab:
        for start_count in (1, 2):
            done = subprocess.run(
                [sys.executable, "-m", "executor", "run", "--no-supervisor", "--once"],
                env=lab.environment(),
                cwd=tmp_path,
                capture_output=True,
                check=False,
                timeout=240,
            )
            assert done.returncode == 0, done.stdout.decode()
            with lab.log_file.open("ab") as log:
                log.write(done.stdout)
            warned = lab.log_events("insecure_transport")
            assert [event["setting"] for event in warned] == ["PROXMOX_VALIDATE_CERTS"] * start_count
            assert {event["level"] for event in warned} == {"warning"}
