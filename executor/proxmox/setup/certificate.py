"""Reads the certificate that Proxmox presents, and finds the CA with which later connections verify the certificate."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

from executor.proxies import open_connection
from executor.proxmox.connection import CONNECT_TIMEOUT_S, raise_job_error
from executor.proxmox.rows import as_objects, as_text
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.plan import SetupPrevented

#: Proxmox's name for the file with the CA of the cluster.
CA_FILE = "pve-root-ca.pem"


def read_fingerprint(host: str, port: int) -> str:
    """Return the SHA-256 fingerprint of the certificate, in the form in which Proxmox's web interface shows it.

    The certificate is not verified. Raises JobError if it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return ":".join(f"{byte:02X}" for byte in hashlib.sha256(_read_certificate(host, port, context)).digest())
    except OSError as exc:
        raise_job_error(exc)


def normalize_fingerprint(text: str) -> str:
    """Return the fingerprint in capitals, with a colon between bytes. Raises ValueError for a text of another form."""
    digest = bytes.fromhex(text.replace(":", "").strip())
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("not a SHA-256 fingerprint")
    return digest.hex(":").upper()


def is_certificate_verifiable(host: str, port: int, ca_pem: str) -> bool:
    """Return whether the certificate can be verified with this CA, or with the system's CAs if `ca_pem` is ''.

    Raises JobError if the server cannot be reached.
    """
    return not _verification_problem(host, port, ca_pem or None)


def find_ca(session: AdminSession, ca_pem: str = "") -> str:
    """Return the CA, in PEM, with which the certificate can be verified; '' if the system's CAs suffice.

    If `ca_pem` is given, only this CA is tried. Otherwise the system's CAs are tried first, and then the cluster's own
    CA, which Proxmox shows to every user. Raises SetupPrevented if the certificate is not valid for the host, or if
    none of the tried CAs has signed it.
    """
    connection = session.connection
    if not ca_pem and is_certificate_verifiable(connection.host, connection.port, ""):
        return ""
    ca_pem = ca_pem or _cluster_ca(session)
    problem = _verification_problem(connection.host, connection.port, ca_pem)
    if not problem:
        return ca_pem
    if "mismatch" in problem or "not valid for" in problem:
        remedy = "use a host name or an address for which the certificate is valid"
    else:
        remedy = "give the CA that has signed the certificate: --ca-file FILE"
    raise SetupPrevented(f"Proxmox's certificate cannot be verified: {problem}; {remedy}")


def _cluster_ca(session: AdminSession) -> str:
    node = next((as_text(row.get("node")) for row in as_objects(session.get("/nodes"))), "")
    rows = as_objects(session.get(f"/nodes/{node}/certificates/info"))
    return next((as_text(row.get("pem")) for row in rows if row.get("filename") == CA_FILE), "")


def _verification_problem(host: str, port: int, ca_pem: str | None) -> str:
    """Return why the certificate cannot be verified; '' if it can. If `ca_pem` is None, the system's CAs are used."""
    try:
        context = ssl.create_default_context(cadata=ca_pem)
        _read_certificate(host, port, context)
    except ssl.SSLCertVerificationError as exc:
        return str(exc.verify_message)
    except ssl.SSLError as exc:
        return str(exc.reason or exc)
    except OSError as exc:
        raise_job_error(exc)
    return ""


def _read_certificate(host: str, port: int, context: ssl.SSLContext) -> bytes:
    """Return the server's certificate in DER. Raises OSError if the connection or the verification fails."""
    with open_connection(host, port, CONNECT_TIMEOUT_S) as plain_socket:
        plain_socket.settimeout(CONNECT_TIMEOUT_S)
        connection: Any
        with context.wrap_socket(plain_socket, server_hostname=host.strip("[]")) as connection:
            return bytes(connection.getpeercert(binary_form=True))
