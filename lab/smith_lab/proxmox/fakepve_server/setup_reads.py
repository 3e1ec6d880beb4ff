# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers the requests for the certificates of a node.

Only `smith init`, the command that sets up an agent, sends these requests. The answers follow the source code of
Proxmox: PVE/API2/Certificates.pm of pve-manager and PVE/Certificate.pm of pve-common.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from smith_lab.proxmox.fakepve_server.access import AccessChecks


class CertificateRequests(AccessChecks):
    """Handles the requests for certificates."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Maps Proxmox's name of a certificate file, such as `pve-ssl.pem`, to the stand-in's file.
        self.certificate_files: dict[str, Path] = {}

    def _routes_setup(self) -> list[tuple[str, str, Any]]:
        """Return the routes of the requests for certificates.

        fakepve, the library on which the Proxmox stand-in is built, calls every method whose name starts with
        `_routes_`.
        """
        return [("GET", "/nodes/{node}/certificates/info", self._certificates)]

    async def _certificates(self, _v: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        """Describe the CA of the cluster and the certificate of the node. Every user may read both.

        `_v` contains the parameters of the request, which are not used.
        """
        return [_describe_certificate(name, file.read_bytes()) for name, file in self.certificate_files.items()]


def _describe_certificate(name: str, pem: bytes) -> dict[str, Any]:
    certificate = x509.load_pem_x509_certificate(pem)
    return {
        "filename": name,
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        "subject": f"/{certificate.subject.rfc4514_string()}",
        "issuer": f"/{certificate.issuer.rfc4514_string()}",
        "notbefore": int(certificate.not_valid_before_utc.timestamp()),
        "notafter": int(certificate.not_valid_after_utc.timestamp()),
        "pem": pem.decode(),
    }
