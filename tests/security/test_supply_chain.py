"""Every installed distribution has an accepted licence, and the repository contains no secret."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

import licences  # noqa: E402  (a script of deploy/, not a package)
import scan_secrets  # noqa: E402  (see above)

#: Concatenated, so that this file itself contains no match.
SECRETS = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + "A" * 64,
    "AWS key": "AKIA" + "A" * 16,
    "GitHub token": "ghp_" + "a" * 36,
    "JSON web token": ".".join(("eyJ" + "a" * 24, "eyJ" + "b" * 24, "c" * 24)),
    "Proxmox token": "PVEAPIToken=a@pve!b=" + "-".join(("0" * 8, "0" * 4, "0" * 4, "0" * 4, "0" * 12)),
    "password in a URL": "postgresql://smith" + ":hunter2hunter2" + "@db.northwind.cloud/x",
}


def test_every_distribution_that_an_operator_installs_has_an_accepted_licence() -> None:
    assert licences.unaccepted_licences() == []


def test_only_the_lab_depends_on_agpl_software() -> None:
    operator_dependencies = licences.installed_dependencies(licences.ROOTS_FOR_OPERATORS)
    developer_dependencies = licences.installed_dependencies(licences.ROOTS_FOR_DEVELOPERS)
    assert len(operator_dependencies) > 20
    assert "fakepve" not in operator_dependencies
    assert licences.licence_kinds_of("fakepve", developer_dependencies["fakepve"]) == {"agpl"}


def test_the_repository_contains_no_secret() -> None:
    assert [line for file in scan_secrets.tracked_files() for line in scan_secrets.find_secrets(ROOT / file)] == []


@pytest.mark.parametrize("kind", SECRETS)
def test_the_scan_finds_each_kind_of_secret_and_prints_none(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "settings.py"
    file.write_text(f"x = 1\nvalue = '{SECRETS[kind]}'\n")
    assert list(scan_secrets.find_secrets(file)) == [f"{file}:2: {kind}"]
    file.write_text(f"value = '{SECRETS[kind]}'  # {scan_secrets.IGNORED_LINE_MARK}\n")
    assert list(scan_secrets.find_secrets(file)) == []


@pytest.mark.parametrize(
    "harmless",
    [
        "postgresql://smith:password@db.example.net/smith",
        "http://127.0.0.1:9642",
        "vault://4f1c-1234",
        "https://x.y/z@3",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "smith://a:********@b.c",
    ],
)
def test_example_values_are_not_reported_as_secrets(tmp_path: Path, harmless: str) -> None:
    file = tmp_path / "doc.md"
    file.write_text(harmless)
    assert list(scan_secrets.find_secrets(file)) == []
