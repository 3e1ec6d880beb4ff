"""Reads the certificates of FulcrumCore, Proxmox and the agent's HTTP server, and finds why TLS connections fail.

To read the certificate of FulcrumCore or Proxmox, this module opens a TLS connection of its own, through a proxy if
HTTPS_PROXY names one. It reads the certificate of the agent's HTTP server from a file.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from executor.proxies import open_connection

#: The maximum time for a connection with its TLS handshake.
TIMEOUT_S = 5.0
#: The checks warn if a certificate is valid for fewer days than this.
MIN_DAYS_LEFT = 14
#: Names by which a machine reaches itself. Proxmox's certificates contain these names, but from another machine they do
#: not lead to Proxmox.
LOCAL_NAMES = ("localhost", "127.0.0.1", "0:0:0:0:0:0:0:1", "::1")
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the module `ssl` does not name.
_NO_CHECK_TIME = 0x200000
#: OpenSSL's error codes (X509_V_ERR_…) for certificates that are not valid now, or not for the requested host.
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, 62, 64


class TlsProblem(StrEnum):
    """The reasons for which a TLS connection to a server fails."""

    NO_TLS = "no TLS"  #: the server answers, but not with TLS
    NO_CONNECTION = "no connection"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    WRONG_HOST = "wrong host"
    UNKNOWN_CA = "unknown CA"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The facts of a server's certificate that an operator needs."""

    valid_from: datetime
    valid_until: datetime
    names: tuple[str, ...]  #: the host names and addresses for which the certificate is valid
    issuer: str

    @property
    def preferred_host_name(self) -> str:
        """The first name that other machines can use, or else the first name; '' if there are no names."""
        return next((name for name in self.names if name not in LOCAL_NAMES), self.names[0] if self.names else "")

    @property
    def days_left(self) -> int:
        """The number of whole days until the certificate expires; negative if it has expired."""
        return (self.valid_until - datetime.now(UTC)).days


@dataclass(frozen=True)
class TlsState:
    """The result of an attempt to open a TLS connection."""

    problem: TlsProblem | None  #: None if the connection succeeded
    certificate: Certificate | None = None  #: the server's certificate; None if it cannot be read


def read_tls_state(host: str, port: int, ca_bundle: Path | None) -> TlsState:
    """Connect with TLS. Return the certificate of the server, and the reason if the connection fails.

    The certificate is verified with the CA bundle. If `ca_bundle` is None, the CAs of the system are used instead.
    """
    context = ssl.create_default_context(cafile=str(ca_bundle) if ca_bundle else None)
    try:
        _handshake(host, port, context)
        problem = None
    except ssl.SSLCertVerificationError as error:
        problem = _problem_of_verify_code(error.verify_code)
    except (ssl.SSLError, ConnectionResetError):
        return TlsState(TlsProblem.NO_TLS)
    except (OSError, ValueError):
        return TlsState(TlsProblem.NO_CONNECTION)
    return TlsState(problem, read_certificate(host, port))


def read_certificate(host: str, port: int) -> Certificate | None:
    """Return the certificate of a server, even if it is not valid. Return None if it cannot be read."""
    try:
        return _read_certificate_from_handshake(lambda context: _handshake(host, port, context))
    except (OSError, ValueError, KeyError):
        return None


def read_certificate_file(certificate: Path, key: Path) -> Certificate:
    """Return the certificate in a file, even if it is not valid now.

    Raises OSError, ValueError or KeyError if a server cannot use the certificate with this key.
    """
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key, password="")  # without a password, OpenSSL asks for one on the terminal
    return _read_certificate_from_handshake(lambda context: _handshake_in_memory(server, context))


#: A function that does a TLS handshake with a server, as a client that uses the given context. It returns the server's
#: certificate twice: as DER bytes, and decoded (empty if the context does not verify certificates).
_Handshake = Callable[[ssl.SSLContext], tuple[bytes, dict[str, Any]]]


def _read_certificate_from_handshake(handshake: _Handshake) -> Certificate:
    """Return the certificate that the server sends in the handshake. Raises OSError, ValueError or KeyError."""
    context_without_check = ssl.create_default_context()
    context_without_check.check_hostname, context_without_check.verify_mode = False, ssl.CERT_NONE
    der_certificate, _ = handshake(context_without_check)
    # `ssl` decodes only a verified certificate. So the context of a second handshake trusts this certificate.
    context_that_trusts_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context_that_trusts_certificate.check_hostname = False
    context_that_trusts_certificate.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    context_that_trusts_certificate.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(der_certificate))
    return _parse_certificate(handshake(context_that_trusts_certificate)[1])


def _handshake(host: str, port: int, context: ssl.SSLContext) -> tuple[bytes, dict[str, Any]]:
    with (
        open_connection(host, port, TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname=host.strip("[]")) as tls_connection,
    ):
        return tls_connection.getpeercert(binary_form=True) or b"", tls_connection.getpeercert() or {}


def _handshake_in_memory(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> tuple[bytes, dict[str, Any]]:
    """Do a handshake with a server in this process, because `ssl` decodes only certificates received in a handshake."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    # These three steps suffice: in TLS 1.3, the server sends its certificate in its first step.
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True) or b"", client.getpeercert() or {}


def _problem_of_verify_code(verify_code: int) -> TlsProblem:
    problems = {_EXPIRED: TlsProblem.EXPIRED, _NOT_YET_VALID: TlsProblem.NOT_YET_VALID}
    problems |= {_WRONG_HOST: TlsProblem.WRONG_HOST, _WRONG_ADDRESS: TlsProblem.WRONG_HOST}
    return problems.get(verify_code, TlsProblem.UNKNOWN_CA)


def _parse_certificate(decoded: dict[str, Any]) -> Certificate:
    issuer = {name: str(value) for group in decoded.get("issuer", ()) for name, value in group}
    return Certificate(
        valid_from=_parse_time(decoded["notBefore"]),
        valid_until=_parse_time(decoded["notAfter"]),
        names=tuple(str(value) for _kind, value in decoded.get("subjectAltName", ())),
        issuer=issuer.get("commonName") or issuer.get("organizationName") or "unknown",
    )


def _parse_time(text: object) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(text)), UTC)


def describe_certificate_problem(host: str, state: TlsState) -> str:
    """Return a text about the problem of the server's certificate; '' if the certificate is not the problem."""
    certificate = state.certificate
    if certificate is None:
        return ""
    subject = f"the certificate of {host}"
    texts = {
        TlsProblem.EXPIRED: f"{subject} expired on {certificate.valid_until:%Y-%m-%d %H:%M}Z",
        TlsProblem.NOT_YET_VALID: f"{subject} is valid only from {certificate.valid_from:%Y-%m-%d %H:%M}Z",
        TlsProblem.WRONG_HOST: f"{subject} is not for this host, but for {', '.join(certificate.names) or 'no host'}",
        TlsProblem.UNKNOWN_CA: f"{subject} is from a CA that is not known here (issuer {certificate.issuer})",
    }
    return texts.get(state.problem, "") if state.problem else ""


def describe_validity(certificate: Certificate) -> str:
    """Return a text with the date until which a certificate is valid, and the number of days left."""
    return f"the certificate is valid until {certificate.valid_until:%Y-%m-%d}, {certificate.days_left} days left"


def system_ca_bundle() -> str:
    """Return the path of the file with the CA certificates of this machine."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.openssl_cafile
