"""`smith config`: the value of each setting, where it comes from, and which settings are missing or invalid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli_world import Cli

#: All settings that have no default.
REQUIRED = {
    "FULCRUM_API_URL": "https://core.example.net",
    "FULCRUM_API_TOKEN": "a-token-that-nobody-may-see",
    "PROXMOX_HOST": "pve1.example.net",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_PASSWORD": "a-password-that-nobody-may-see",
}


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def rows_by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["settings"]}


def test_every_setting_is_shown_with_its_source_and_secrets_are_masked(smith: Cli) -> None:
    shown_config = smith.json("config", "show", **REQUIRED)
    assert shown_config["problems"] == []
    settings = rows_by_name(shown_config)
    assert settings["PROXMOX_HOST"]["value"] == "pve1.example.net"
    assert settings["PROXMOX_HOST"]["origin"] == "environment"
    assert settings["SMITH_CONCURRENCY"]["origin"] == "default"
    assert settings["FULCRUM_JOB_TIMEOUT_S"]["unit"] == "s"
    assert set(settings["PROXMOX_HOST"]) == {"name", "value", "origin", "unit", "default", "description"}
    for output in (json.dumps(shown_config), smith.ok("config", "show", **REQUIRED)):
        assert "nobody-may-see" not in output
    assert settings["FULCRUM_API_TOKEN"]["value"] == "********"


def test_missing_settings_are_shown_as_missing_and_explained(smith: Cli) -> None:
    done = smith("config", "show")
    assert done.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    for name in ("FULCRUM_API_URL", "FULCRUM_API_TOKEN", "PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID"):
        assert lines[name][0] == "missing", name
        assert f"smith: {name} is missing: " in done.stderr
    assert lines["PROXMOX_PORT"][0] == "8006"
    shown_config = smith.json("config", "show")
    assert rows_by_name(shown_config)["FULCRUM_API_URL"]["value"] == "missing"
    assert len(shown_config["problems"]) == len(done.stderr.splitlines())


def test_a_password_makes_a_token_unnecessary(smith: Cli) -> None:
    assert rows_by_name(smith.json("config", "show", **REQUIRED))["PROXMOX_TOKEN_ID"]["value"] == ""


def test_beside_an_invalid_setting_no_setting_is_missing_that_fulcrumcore_provides(smith: Cli) -> None:
    env = {
        "FULCRUM_API_URL": "http://127.0.0.1:1",
        "FULCRUM_API_TOKEN": "nobody-may-see",
        "SMITH_REMOTE_CONFIG": "true",
    }
    lines = {
        kind: set(smith("config", "show", **env, **more).stderr.splitlines())
        for kind, more in {"valid": {}, "invalid": {"SMITH_CONCURRENCY": "many"}}.items()
    }
    assert len(lines["invalid"] - lines["valid"]) == 1
    assert not any("PROXMOX_HOST" in line for line in lines["invalid"])
    assert lines["valid"] <= lines["invalid"]


def test_invalid_settings_are_reported_beside_the_valid_ones_with_exit_code_3(smith: Cli) -> None:
    wrong = {"SMITH_CONCURRENCY": "many", "SMITH_CONCURENCY": "8", "PROXMOX_VMID_MIN": "300000"}
    env = {**REQUIRED, **wrong, "FULCRUM_API_URL": "https://me:hunter2pass@core.example.net"}
    done = smith("config", "show", "--json", **env)
    assert (done.returncode, done.stderr) == (3, "")
    shown_config = json.loads(done.stdout)
    settings = rows_by_name(shown_config)
    assert settings["PROXMOX_HOST"]["value"] == "pve1.example.net"
    assert settings["SMITH_CONCURRENCY"]["value"] == "invalid"
    assert settings["FULCRUM_API_URL"]["value"] == "invalid"
    assert settings["FULCRUM_API_TOKEN"]["value"] == "********"
    for name in ("SMITH_CONCURRENCY", "SMITH_CONCURENCY", "PROXMOX_VMID_MAX", "FULCRUM_API_URL"):
        assert any(line.startswith(name) for line in shown_config["problems"]), name
    table = smith("config", "show", **env)
    assert table.returncode == 3
    assert "did you mean SMITH_CONCURRENCY?" in table.stderr
    for output in (done.stdout, table.stdout, table.stderr):
        assert "hunter2pass" not in output
        assert "nobody-may-see" not in output


def test_the_env_file_in_the_current_folder_is_read(smith: Cli) -> None:
    (smith.folder / ".env").write_text("PROXMOX_HOST=from-the-file.example.net\n")
    row = rows_by_name(smith.json("config", "show"))["PROXMOX_HOST"]
    assert (row["value"], row["origin"]) == ("from-the-file.example.net", ".env")


def test_the_example_is_a_valid_env_file(smith: Cli) -> None:
    """Every value in the example is valid, so an operator changes only the values that differ in their installation."""
    (smith.folder / ".env").write_text(smith.ok("config", "example"))
    shown_config = smith.json("config", "show")
    assert shown_config["problems"] == []
    assert rows_by_name(shown_config)["FULCRUM_API_URL"]["origin"] == ".env"


def test_an_invalid_setting_ends_a_query_with_exit_code_3(smith: Cli) -> None:
    done = smith("jobs", "list", SMITH_CONCURRENCY="many")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("smith: SMITH_CONCURRENCY must be a whole number")
