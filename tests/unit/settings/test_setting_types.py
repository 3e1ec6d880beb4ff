"""The values of settings: which are valid, what they become, and the message for each invalid one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.setting_loading import SECRET, error_lines_of, load

from executor.agent.retry import MIN_RUN_S, REPORT_MARGIN_S
from executor.settings.fulcrum import MIN_TIME_FOR_JOB_S
from executor.settings.problems import problem_line
from executor.settings.settings import FIELDS, Settings


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("https://core.example.net", "https://core.example.net"),
        ("https://core.example.net/", "https://core.example.net"),
        ("https://core.example.net/api/v1", "https://core.example.net"),
        ("http://127.0.0.1:3000/api/v1/", "http://127.0.0.1:3000"),
        ("https://example.net/fulcrum/api/v1", "https://example.net/fulcrum"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_the_url_of_fulcrumcore_is_stored_without_the_api_path(written: str, stored: str) -> None:
    assert load({"FULCRUM_API_URL": written}).fulcrum_api_url == stored


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FULCRUM_API_URL", "core.example.net", "must start with http:// or https:// and name a host"),
        ("FULCRUM_API_URL", "ftp://core", "must start with http:// or https:// and name a host"),
        ("FULCRUM_API_URL", "https://", "must start with http:// or https:// and name a host"),
        ("FULCRUM_API_URL", f"https://me:{SECRET}@core", "must be without user, password"),
        ("FULCRUM_API_URL", f"https://core?token={SECRET}", "must be without user, password"),
        ("FULCRUM_API_URL", "https://core:99999", "is wrong, it cannot be read as a URL"),
        ("FULCRUM_API_URL", "https://[::1", "is wrong, it cannot be read as a URL"),
        ("FULCRUM_API_URL", "https://co\nre", "must be without line breaks"),
        ("FULCRUM_API_TOKEN", "abc", "is wrong, it is shorter than 4 characters"),
        ("FULCRUM_API_TOKEN", f'"{SECRET}"', "is wrong, the quotes around it would be part of the token"),
        ("FULCRUM_API_TOKEN", f"{SECRET}\nX-Evil: 1", "is wrong, it contains a line break"),
        ("FULCRUM_API_TOKEN", f"Bearer {SECRET}", "is wrong, a token is one word"),
        ("FULCRUM_CA_BUNDLE", "/nope", "is wrong, /nope is not a file"),
        ("FULCRUM_VERIFY_TLS", "maybe", "must be true or false, not 'maybe'"),
        ("FULCRUM_HEARTBEAT_INTERVAL_S", "26", "must be at most 25, not '26'"),
        ("FULCRUM_JOB_TIMEOUT_S", "nan", "must be at "),
        ("FULCRUM_JOB_TIMEOUT_S", "29.9", "must be at least 30, not '29.9'"),
        ("FULCRUM_POLL_INTERVAL_S", "281", "must be at most 280 with FULCRUM_JOB_TIMEOUT_S=300"),
        ("FULCRUM_JOB_TIMEOUT_S", "1e309", "must be at most"),
        ("FULCRUM_JOB_TIMEOUT_S", "5m", "must be a number, not '5m'"),
        ("PROXMOX_HOST", "https://pve1:8006/", "must be a host name or an address, without https://"),
        ("PROXMOX_HOST", "pve1:8006", "must be a host name or an address; the port belongs in PROXMOX_PORT"),
        ("PROXMOX_HOST", "pve 1", "is wrong, it is neither a host name nor an address"),
        ("PROXMOX_PORT", "0", "must be at least 1, not '0'"),
        ("PROXMOX_PORT", "65536", "must be at most 65535, not '65536'"),
        ("PROXMOX_USER", "root", "must be a user with its realm, as in smith@pve"),
        (
            "PROXMOX_USER",
            "smith@pve!agent",
            "must not contain a '!': the token's name, which follows the '!', belongs in PROXMOX_TOKEN_ID",
        ),
        ("PROXMOX_TOKEN_ID", f"smith@pve!agent={SECRET}", "must not contain a '!', since the user before it"),
        ("PROXMOX_TOKEN_ID", f"agent={SECRET}", "must not contain a '=', since the secret after it belongs in"),
        ("PROXMOX_BRIDGE", "vmbr0,firewall=0", "is wrong, it may contain letters"),
        ("PROXMOX_NODES", "pve1,-x", "is wrong, it may contain letters"),
        ("PROXMOX_STORAGES", "a/b", "is wrong, it may contain letters"),
        ("PROXMOX_STORAGE", "local/zfs", "is wrong, it may contain letters"),
        ("PROXMOX_BACKUP_STORAGE", "nfs/a", "is wrong, it may contain letters"),
        ("PROXMOX_BRIDGES", "*,x", "is wrong, `*` allows everything, so it must be the only value"),
        ("PROXMOX_STORAGES", "ceph,*", "is wrong, `*` allows everything, so it must be the only value"),
        ("PROXMOX_VLANS", "7,*", "is wrong, `*` allows everything, so it must be the only value"),
        ("PROXMOX_TAGS", "*,web", "is wrong, `*` allows everything, so it must be the only value"),
        ("PROXMOX_VMID_MIN", "99", "must be at least 100, not '99'"),
        ("PROXMOX_VMID_MAX", "1000000000", "must be at most 999999999, not '1000000000'"),
        ("PROXMOX_VMID_MAX", "99999", "is wrong, it is less than PROXMOX_VMID_MIN"),
        ("PROXMOX_VMID_MIN", "200000", ""),
        ("PROXMOX_VLANS", "30-20", "is wrong, the range '30-20' must begin with the lower VLAN"),
        ("PROXMOX_VLANS", "20-4095", "is wrong, '20-4095' is not within 1 to 4094"),
        ("PROXMOX_VLANS", "a", "is wrong, 'a' is neither a VLAN nor a range such as 100-199"),
        ("PROXMOX_TEMPLATES", "debian", "is wrong, 'debian' is not of the form name=vmid with a VMID of 100 or more"),
        (
            "PROXMOX_TEMPLATES",
            "a=12",
            "is wrong, 'a=12' is not of the form name=vmid with a VMID of 100 or more",
        ),
        (
            "PROXMOX_TEMPLATES",
            "a=one",
            "is wrong, 'a=one' is not of the form name=vmid with a VMID of 100 or more",
        ),
        ("PROXMOX_TEMPLATES", "a=100,a=101", "is wrong, 'a' occurs twice"),
        ("SMITH_DATABASE_URL", f"mysql://me:{SECRET}@db/smith", "must start with sqlite:/// or postgresql://"),
        ("SMITH_DATABASE_URL", "postgres://db/smith", "must start with sqlite:/// or postgresql://"),
        ("SMITH_DATABASE_URL", "sqlite://", "must name a file"),
        ("SMITH_DATABASE_URL", "sqlite:///:memory:", "must name a file"),
        ("SMITH_DATABASE_URL", "sqlite://data/smith.db", "must name a file"),
        ("SMITH_DATA_DIR", "/etc/passwd", "is wrong, /etc/passwd is not a folder"),
        ("SMITH_DATA_DIR", "~no-such-user/x", "is wrong, it is not a usable path"),
        ("SMITH_ACTIONS_PATH", "/nope", "is wrong, /nope is not a folder"),
        ("SMITH_CONCURRENCY", "-1", "must be at least 0, not '-1'"),
        ("SMITH_CONCURRENCY", "eight", "must be a whole number, not 'eight'"),
        ("SMITH_CONCURRENCY", "2.5", "must be a whole number, not '2.5'"),
        ("SMITH_CONCURRENCY", "9" * 5000, "must be a "),
        ("SMITH_MAX_JOBS", "-1", "must be at least 0, not '-1'"),
        ("SMITH_PLAYBOOK_TIMEOUT_S", "300", "is wrong, it must be less than FULCRUM_JOB_TIMEOUT_S (300)"),
        ("SMITH_HTTP_ADDR", "9642", "must be host:port, or off"),
        ("SMITH_HTTP_ADDR", "localhost:99999", "must be host:port, or off"),
        ("SMITH_LOG_FORMAT", "xml", "must be 'auto', 'json' or 'console', not 'xml'"),
        ("SMITH_LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
    ],
)
def test_the_error_for_an_invalid_value_is_one_line_with_reason_meaning_and_example(
    name: str, value: str, reason: str
) -> None:
    (line,) = error_lines_of({name: value})
    if not reason:  # the other end of the range is reported
        name, reason = "PROXMOX_VMID_MAX", "is wrong, it is less than PROXMOX_VMID_MIN"
    meaning = FIELDS[name].description
    assert line.startswith(f"{name} {reason}")
    assert f": {meaning}. Example: {name}=" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FULCRUM_VERIFY_TLS", "No", False),
        ("PROXMOX_VALIDATE_CERTS", "0", False),
        ("FULCRUM_POLL_INTERVAL_S", "0.5", 0.5),
        ("PROXMOX_HOST", "10.0.0.1", "10.0.0.1"),
        ("PROXMOX_HOST", "fd00::1", "fd00::1"),
        ("PROXMOX_HOST", "[fd00::1]", "[fd00::1]"),
        ("SMITH_DATABASE_URL", "postgresql://[fd00::1]:5432/smith", "postgresql://[fd00::1]:5432/smith"),
        ("PROXMOX_NODES", " pve1 ,pve2,", ("pve1", "pve2")),
        ("PROXMOX_POOL", "customers/gold", "customers/gold"),
        ("PROXMOX_BRIDGES", "*", ("*",)),
        ("PROXMOX_TEMPLATES", "debian-12 = 9000 ,ubuntu=9001,", {"debian-12": 9000, "ubuntu": 9001}),
        ("PROXMOX_VMID_MIN", "199999", 199_999),
        ("SMITH_DATABASE_URL", "sqlite:////data/smith.db", "sqlite:////data/smith.db"),
        ("SMITH_DATABASE_URL", "postgresql+psycopg://db/smith", "postgresql+psycopg://db/smith"),
        ("SMITH_HTTP_ADDR", "[::1]:9642", "[::1]:9642"),
        ("SMITH_HTTP_ADDR", "off", "off"),
        ("SMITH_LOG_LEVEL", "DEBUG", "debug"),
        ("SMITH_LOG_FORMAT", "JSON", "json"),
    ],
)
def test_a_valid_value_is_read(name: str, value: str, expected: object) -> None:
    assert getattr(load({name: value}), name.lower()) == expected


def test_paths_are_made_absolute_and_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({"SMITH_DATA_DIR": "data", "SMITH_RUN_DIR": "~/run"})
    assert (settings.smith_data_dir, settings.smith_run_dir) == (tmp_path / "data", Path.home() / "run")


def test_all_problems_are_reported_at_once() -> None:
    environ = {
        "SMITH_CONCURENCY": "8",
        "SMITH_CONCURRENCY": "eight",
        "FULCRUM_API_URL": "core",
        "FULCRUM_API_TOKEN_FILE": "/nope",
        "PROXMOX_VMID_MIN": "5000",
        "PROXMOX_VMID_MAX": "4000",
        "SMITH_DATA_DIR": "/etc/passwd",
    }
    names = [line.split()[0] for line in error_lines_of(environ)]
    assert names == [
        "SMITH_CONCURENCY",
        "FULCRUM_API_TOKEN",
        "FULCRUM_API_URL",
        "PROXMOX_VMID_MAX",
        "SMITH_DATA_DIR",
        "SMITH_CONCURRENCY",
    ]


def test_the_poll_interval_leaves_time_for_the_shortest_job() -> None:
    assert MIN_TIME_FOR_JOB_S == MIN_RUN_S + REPORT_MARGIN_S
    assert load({"FULCRUM_JOB_TIMEOUT_S": "30", "FULCRUM_POLL_INTERVAL_S": "10"}).fulcrum_poll_interval_s == 10
    (line,) = error_lines_of({"FULCRUM_JOB_TIMEOUT_S": "30", "FULCRUM_POLL_INTERVAL_S": "10.1"})
    assert line.startswith("FULCRUM_POLL_INTERVAL_S must be at most 10 with FULCRUM_JOB_TIMEOUT_S=30")


def test_a_setting_that_depends_on_an_invalid_one_is_not_reported() -> None:
    (line,) = error_lines_of({"FULCRUM_JOB_TIMEOUT_S": "soon"})
    assert line.startswith("FULCRUM_JOB_TIMEOUT_S must be a number")


def test_an_error_line_shows_the_beginning_of_a_long_description() -> None:
    line = problem_line(Settings, "SMITH_FENCE", "is wrong")
    assert len(FIELDS["SMITH_FENCE"].description or "") > 300
    assert line == (
        "SMITH_FENCE is wrong: whether an agent ends its own runs when it has not renewed its leases for two thirds of "
        "SMITH_LEASE_S. Example: SMITH_FENCE=auto"
    )
