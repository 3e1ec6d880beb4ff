"""The check of the certificate with which the agent serves its pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.certificates import CertificateAuthority

from executor.doctor.checks import CheckResult, Status
from executor.doctor.machine import check_machine
from executor.settings.settings import Settings


def check(folder: Path, **settings: Any) -> list[CheckResult]:
    settings |= {"smith_data_dir": folder / "data", "smith_run_dir": folder / "run"}
    return [result for result in check_machine(Settings(**settings)) if result.name == "HTTP server's certificate"]


@pytest.mark.parametrize(
    ("until_day", "status", "text"),
    [
        (30.5, Status.OK, "30 days left"),
        (13.5, Status.WARNING, "13 days left"),
        (-1, Status.FAILED, "expired on "),
    ],
)
@pytest.mark.parametrize("has_separate_key_file", [True, False])
def test_the_remaining_days_of_the_pages_certificate_are_checked(
    tmp_path: Path, until_day: float, status: Status, text: str, has_separate_key_file: bool
) -> None:
    authority = CertificateAuthority(tmp_path)
    certificate, key = authority.issue("pages.example", ["pages.example"], from_day=-2, until_day=until_day)
    settings = {"smith_http_tls_certificate": certificate}
    if has_separate_key_file:
        settings["smith_http_tls_key"] = key
    else:
        certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    (result,) = check(tmp_path, **settings)
    assert result.status is status
    assert text in result.text
    assert str(certificate) in result.text


def test_a_certificate_that_is_not_valid_yet_fails_the_check(tmp_path: Path) -> None:
    certificate, key = CertificateAuthority(tmp_path).issue("pages.example", ["pages.example"], from_day=2)
    (result,) = check(tmp_path, smith_http_tls_certificate=certificate, smith_http_tls_key=key)
    assert result.status is Status.FAILED
    assert "is valid only from" in result.text


def test_a_certificate_whose_key_does_not_match_fails_the_check(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    certificate, _ = authority.issue("pages.example", ["pages.example"])
    _, foreign_key = authority.issue("other.example", ["other.example"], file_stem="other")
    (result,) = check(tmp_path, smith_http_tls_certificate=certificate, smith_http_tls_key=foreign_key)
    assert result.status is Status.FAILED
    assert "cannot be used" in result.text


def test_a_file_without_a_certificate_fails_the_check(tmp_path: Path) -> None:
    file = tmp_path / "pages.pem"
    file.write_text("no certificate")
    (result,) = check(tmp_path, smith_http_tls_certificate=file)
    assert result.status is Status.FAILED


def test_pages_without_tls_are_not_checked(tmp_path: Path) -> None:
    assert check(tmp_path) == []
