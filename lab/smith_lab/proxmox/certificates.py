"""Creates a certificate authority (CA) for one Proxmox stand-in, and a server certificate that the CA signs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from smith_lab.private_file import write_private_file

#: The time for which the CA certificate is valid.
CA_LIFETIME = datetime.timedelta(days=30)
DAY = datetime.timedelta(days=1)


def make_certificates(folder: Path, host: str) -> tuple[Path, Path]:
    """Write a CA certificate (`ca.pem`), a server certificate and the server's key to the folder.

    The server certificate is valid for `host`, `localhost` and 127.0.0.1. Return the paths of the server certificate
    and of the server's key.
    """
    return CertificateAuthority(folder).issue(host, [host, "localhost", "127.0.0.1"])


class CertificateAuthority:
    """A CA, whose certificate is the file `ca.pem` in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("Proxmox stand-in CA")
        # Python 3.13 requires key usage and key identifiers in a CA certificate.
        builder = (
            _new_builder(self._name, self._name, self._key.public_key(), self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        _write_certificate(folder / "ca.pem", builder, self._key)

    def issue(
        self,
        common_name: str,
        hosts: Sequence[str],
        *,
        from_day: float = -1,
        until_day: float = 30,
        file_stem: str = "server",
    ) -> tuple[Path, Path]:
        """Write a server certificate and its key; return their paths.

        `hosts` are the host names and addresses for which the certificate is valid. Its validity starts `from_day`
        and ends `until_day` days from now. `file_stem` is the name of both files without suffix.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _new_builder(
                _common_name(common_name),
                self._name,
                key.public_key(),
                self._key.public_key(),
                from_day=from_day,
                until_day=until_day,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectAlternativeName(_alternative_names(hosts)), critical=False)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        _write_certificate(self.folder / f"{file_stem}.pem", builder, self._key)
        pem = serialization.Encoding.PEM
        content = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return self.folder / f"{file_stem}.pem", write_private_file(self.folder / f"{file_stem}.key", content)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write_certificate(file: Path, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> None:
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _new_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    from_day: float = -1,
    until_day: float = CA_LIFETIME / DAY,
) -> x509.CertificateBuilder:
    """Return a builder for a certificate. The caller adds more extensions, and then signs the certificate."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + from_day * DAY)
        .not_valid_after(now + until_day * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(**enabled_uses: bool) -> x509.KeyUsage:
    """Return the key usage extension in which only these uses are enabled."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: enabled_uses.get(name, False) for name in names})


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):  # without duplicates
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names
