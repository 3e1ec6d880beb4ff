"""Settings: the sources of values, invalid values and their messages, and that no secret is ever shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from executor.errors import SettingsError
from executor.redaction import MASK, Redactor
from executor.settings.display import describe, example_env
from executor.settings.masking import secret_values
from executor.settings.settings import FIELDS, SECRETS, Settings, load_settings
from executor.settings.sources import MAX_SECRET_BYTES, NOT_SETTINGS

SECRET = "hunter22-canary"
#: The required settings of FulcrumCore and Proxmox.
COMPLETE = {
    "FULCRUM_API_URL": "https://core.example.net",
    "FULCRUM_API_TOKEN": SECRET,
    "PROXMOX_HOST": "pve1.example.net",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "agent",
    "PROXMOX_TOKEN_SECRET": "0123-secret",
}


def load(environ: dict[str, str] | None = None, *, env_file: Path | None = None) -> Settings:
    return load_settings(env_file=env_file, environ=environ or {})


def problems(environ: dict[str, str], *, env_file: Path | None = None) -> list[str]:
    """Return the lines of the SettingsError that these variables cause."""
    with pytest.raises(SettingsError) as caught:
        load(environ, env_file=env_file)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def origin(settings: Settings, name: str) -> str:
    return next(row.origin for row in describe(settings) if row.name == name)


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


# Defaults


def test_everything_has_a_default_and_needs_nothing_to_load() -> None:
    settings = load()
    assert settings.fulcrum_poll_interval_s == 2
    assert settings.fulcrum_heartbeat_interval_s == 10
    assert settings.proxmox_port == 8006
    assert settings.proxmox_validate_certs is True
    assert (settings.proxmox_vmid_min, settings.proxmox_vmid_max) == (100_000, 199_999)
    assert settings.smith_concurrency == 0
    assert settings.smith_job_retention_s == 7 * 24 * 3600
    assert (settings.smith_max_jobs, settings.smith_max_memory_mib, settings.smith_max_runtime_s) == (0, 0, 0)


def test_the_database_is_in_the_data_folder_by_default(tmp_path: Path) -> None:
    assert load({"SMITH_DATA_DIR": str(tmp_path)}).smith_database_url == f"sqlite:///{tmp_path}/smith.db"
    elsewhere = {"SMITH_DATA_DIR": str(tmp_path), "SMITH_DATABASE_URL": "postgresql://db/smith"}
    assert load(elsewhere).smith_database_url == "postgresql://db/smith"


def test_the_data_folder_is_in_the_users_home_by_default() -> None:
    if os.access("/data", os.W_OK):
        pytest.skip("this machine has a writable /data")
    assert load().smith_data_dir == Path.home() / ".local/share/agent-smith"


def test_the_playbook_timeout_follows_the_job_timeout() -> None:
    assert load().smith_playbook_timeout_s == 240
    assert load({"FULCRUM_JOB_TIMEOUT_S": "100"}).smith_playbook_timeout_s == 80


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().smith_concurrency = 9  # type: ignore[misc]


def test_settings_made_directly_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMITH_CONCURRENCY", "3")
    settings = Settings(smith_cluster="lab")
    assert (settings.smith_concurrency, settings.smith_cluster) == (0, "lab")
    assert (origin(settings, "SMITH_CLUSTER"), origin(settings, "SMITH_CONCURRENCY")) == ("given", "default")


def test_without_arguments_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMITH_CONCURRENCY", "3")
    assert load_settings(env_file=None).smith_concurrency == 3


# Sources of values


def test_each_source_overrides_the_next_one(tmp_path: Path, dotenv: Path) -> None:
    (tmp_path / "named").write_text("from-named-file\n")
    mounted = tmp_path / "secrets"
    mounted.mkdir()
    (mounted / "fulcrum_api_token").write_text("from-mounted-file\n")
    (tmp_path / "named-in-dotenv").write_text("from-file-in-dotenv")
    sources = [
        ("FULCRUM_API_TOKEN", "from-environment", "environment"),
        ("FULCRUM_API_TOKEN_FILE", str(tmp_path / "named"), str(tmp_path / "named")),
        ("SMITH_SECRETS_DIR", str(mounted), str(mounted / "fulcrum_api_token")),
    ]
    dotenv.write_text(f"FULCRUM_API_TOKEN=from-dotenv\nFULCRUM_API_TOKEN_FILE={tmp_path}/named-in-dotenv\n")
    expected = ["from-environment", "from-named-file", "from-mounted-file", "from-dotenv"]
    for skipped, token in enumerate(expected):
        settings = load({name: value for name, value, _ in sources[skipped:]}, env_file=dotenv)
        assert settings.fulcrum_api_token.get_secret_value() == token
        assert origin(settings, "FULCRUM_API_TOKEN") == [*(source for _, _, source in sources), str(dotenv)][skipped]
    dotenv.write_text(f"FULCRUM_API_TOKEN_FILE={tmp_path}/named-in-dotenv\n")
    assert load(env_file=dotenv).fulcrum_api_token.get_secret_value() == "from-file-in-dotenv"


def test_the_environment_overrides_dotenv_for_settings_that_are_not_secret(dotenv: Path) -> None:
    dotenv.write_text("SMITH_CONCURRENCY=2\nSMITH_CLUSTER=lab\n")
    settings = load({"SMITH_CONCURRENCY": "3"}, env_file=dotenv)
    assert (settings.smith_concurrency, settings.smith_cluster) == (3, "lab")
    assert origin(settings, "SMITH_CLUSTER") == str(dotenv)


def test_an_empty_value_counts_as_none(dotenv: Path) -> None:
    dotenv.write_text("SMITH_CONCURRENCY=2\n")
    settings = load({"SMITH_CONCURRENCY": "  ", "FULCRUM_API_TOKEN": "", "FULCRUM_API_TOKEN_FILE": ""}, env_file=dotenv)
    assert settings.smith_concurrency == 2
    assert settings.fulcrum_api_token.get_secret_value() == ""


def test_white_space_around_a_value_is_dropped() -> None:
    assert load({"SMITH_CLUSTER": "\tlab \n", "SMITH_CONCURRENCY": " 3 "}).smith_cluster == "lab"


def test_settings_that_are_not_secret_are_not_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "smith_concurrency").write_text("3")
    assert load({"SMITH_SECRETS_DIR": str(tmp_path)}).smith_concurrency == 0
    assert problems({"SMITH_CONCURRENCY_FILE": "/x"}) == [
        "SMITH_CONCURRENCY_FILE in the environment is not a setting: did you mean SMITH_CONCURRENCY?"
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("NAME", "NAME"),
        ("a b # comment", "a b"),
        ("a#b", "a#b"),
        ("'a # $b \\n'  # comment", "a # $b \\n"),
        (r'"a\"b\\n\n$c \$d"', 'a"b\\n\n$c $d'),
        ("${HOME}", "${HOME}"),
        ("  padded  ", "padded"),
        ("a'b", "a'b"),
    ],
)
def test_dotenv_values_may_have_quotes_escapes_and_comments(dotenv: Path, written: str, read: str) -> None:
    """The password is the only setting that may have any character except line breaks."""
    dotenv.write_text(f"\ufeff# comment\n\nexport PROXMOX_PASSWORD = {written}\n", encoding="utf-8")
    if "\n" in read:
        (line,) = problems({}, env_file=dotenv)
        assert line.startswith("PROXMOX_PASSWORD is wrong, it holds a line break")
    elif len(read) < 4:
        (line,) = problems({}, env_file=dotenv)
        assert line.startswith("PROXMOX_PASSWORD is wrong, it is shorter than 4 characters")
    else:
        assert load(env_file=dotenv).proxmox_password.get_secret_value() == read


@pytest.mark.parametrize(
    "line", [SECRET, f"FULCRUM_API_TOKEN='{SECRET}", f'X="{SECRET}\\"', f"=b{SECRET}", f"a b={SECRET}"]
)
def test_an_invalid_line_of_dotenv_is_named_by_its_number_only(dotenv: Path, line: str) -> None:
    dotenv.write_text(f"SMITH_CLUSTER=lab\n{line}\n")
    assert problems({}, env_file=dotenv) == [f"{dotenv} line 2 is not of the form NAME=value, or a quote is not closed"]


def test_a_missing_dotenv_is_allowed_and_an_unreadable_one_is_a_problem(tmp_path: Path) -> None:
    load(env_file=tmp_path / "missing")
    assert problems({}, env_file=tmp_path) == [f"{tmp_path} cannot be read: Is a directory"]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert problems({}, env_file=tmp_path / "binary") == [f"{tmp_path}/binary cannot be read: it is not UTF-8 text"]


def test_variables_of_other_programs_in_dotenv_are_ignored(dotenv: Path) -> None:
    dotenv.write_text("POSTGRES_PASSWORD=x\nCOMPOSE_FILE=y\n")
    load(env_file=dotenv)


# Secret files


def test_a_trailing_newline_is_not_part_of_the_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbftoken-1234\r\n\n")
    settings = load({"FULCRUM_API_TOKEN_FILE": str(tmp_path / "token")})
    assert settings.fulcrum_api_token.get_secret_value() == "token-1234"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe" + SECRET.encode(), "is not UTF-8 text"),
        (SECRET.encode() * MAX_SECRET_BYTES, "is larger than 65536 bytes"),
    ],
)
@pytest.mark.parametrize("mounted", [False, True])
def test_an_unusable_secret_file_is_a_problem(tmp_path: Path, content: bytes, reason: str, mounted: bool) -> None:
    path = tmp_path / "proxmox_password"
    path.write_bytes(content)
    environ = {"SMITH_SECRETS_DIR": str(tmp_path)} if mounted else {"PROXMOX_PASSWORD_FILE": str(path)}
    named = str(path) if mounted else f"{path} (from PROXMOX_PASSWORD_FILE)"
    assert problems(environ) == [
        f"PROXMOX_PASSWORD cannot be read: {named} {reason}: password of the user, if there is no API token. "
        "Example: PROXMOX_PASSWORD=correct-horse"
    ]


def test_a_secret_file_that_is_missing_or_a_folder_is_a_problem(tmp_path: Path) -> None:
    (line,) = problems({"PROXMOX_PASSWORD_FILE": str(tmp_path / "nope")})
    assert "nope (from PROXMOX_PASSWORD_FILE): No such file or directory" in line
    (line,) = problems({"PROXMOX_PASSWORD_FILE": str(tmp_path)})
    assert f"{tmp_path} (from PROXMOX_PASSWORD_FILE) is a folder" in line
    (tmp_path / "fulcrum_api_token").symlink_to(tmp_path / "nope")
    (line,) = problems({"SMITH_SECRETS_DIR": str(tmp_path)})
    assert line.startswith(f"FULCRUM_API_TOKEN cannot be read: {tmp_path}/fulcrum_api_token: No such file")


def test_a_secret_file_without_read_permission_is_a_problem(tmp_path: Path) -> None:
    """In a process that gives up root first, because root can read any file."""
    path = tmp_path / "token"
    path.write_text(SECRET)
    path.chmod(0)
    program = f"""
import os
from executor.errors import SettingsError
from executor.settings.settings import load_settings
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    load_settings(env_file=None, environ={{"FULCRUM_API_TOKEN_FILE": {str(path)!r}}})
except SettingsError as error:
    print(error)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith(("pytest", tmp_path.name)):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "(from FULCRUM_API_TOKEN_FILE): Permission denied (as uid" in done.stdout


def test_a_named_folder_of_secrets_must_exist(tmp_path: Path) -> None:
    (line,) = problems({"SMITH_SECRETS_DIR": str(tmp_path / "nope")})
    assert line.startswith(f"SMITH_SECRETS_DIR is wrong, {tmp_path}/nope is not a folder: folder of mounted secrets")


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SMITH_CONCURENCY", "did you mean SMITH_CONCURRENCY?"),
        ("FULCRUM_URL", "did you mean FULCRUM_API_URL?"),
        ("PROXMOX_TOKEN", "did you mean PROXMOX_TOKEN_ID?"),
        ("SMITH_QQQQQQQQQQ", "`smith config show` lists all settings"),
        ("smith_log_level", "write SMITH_LOG_LEVEL, in capitals"),
    ],
)
def test_an_unknown_name_is_a_problem_with_the_most_similar_name(dotenv: Path, name: str, hint: str) -> None:
    assert problems({name: SECRET}) == [f"{name} in the environment is not a setting: {hint}"]
    dotenv.write_text(f"{name}={SECRET}\n")
    assert problems({}, env_file=dotenv) == [f"{name} in {dotenv} is not a setting: {hint}"]


def test_variables_of_other_programs_are_allowed() -> None:
    load({name: "anything" for name in NOT_SETTINGS})
    load({"PATH": "/bin", "SMITHY": "x", "HOME": "/"})


def test_the_service_variables_of_kubernetes_are_allowed() -> None:
    load(
        {
            "SMITH_SERVICE_HOST": "10.0.0.1",
            "SMITH_PORT": "tcp://10.0.0.1:9642",
            "SMITH_PORT_9642_TCP_ADDR": "10.0.0.1",
            "FULCRUM_CORE_SERVICE_PORT_HTTP": "3000",
            "FULCRUM_CORE_PORT_3000_TCP": "tcp://10.0.0.1:3000",
        }
    )
    assert len(problems({"SMITH_PORT": "9642"})) == 1


# Values


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://core.example.net", "https://core.example.net"),
        ("https://core.example.net/", "https://core.example.net"),
        ("https://core.example.net/api/v1", "https://core.example.net"),
        ("http://127.0.0.1:3000/api/v1/", "http://127.0.0.1:3000"),
        ("https://example.net/fulcrum/api/v1", "https://example.net/fulcrum"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_the_url_of_fulcrumcore_is_stored_without_the_api_path(given: str, kept: str) -> None:
    assert load({"FULCRUM_API_URL": given}).fulcrum_api_url == kept


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
        ("FULCRUM_API_TOKEN", f"{SECRET}\nX-Evil: 1", "is wrong, it holds a line break"),
        ("FULCRUM_API_TOKEN", f"Bearer {SECRET}", "is wrong, a token is one word"),
        ("FULCRUM_CA_BUNDLE", "/nope", "is wrong, /nope is not a file"),
        ("FULCRUM_VERIFY_TLS", "maybe", "must be true or false, not 'maybe'"),
        ("FULCRUM_HEARTBEAT_INTERVAL_S", "26", "must be at most 25, not '26'"),
        ("FULCRUM_JOB_TIMEOUT_S", "nan", "must be at "),
        ("FULCRUM_JOB_TIMEOUT_S", "1e309", "must be at most"),
        ("FULCRUM_JOB_TIMEOUT_S", "5m", "must be a number, not '5m'"),
        ("PROXMOX_HOST", "https://pve1:8006/", "must be a host name or an address, without https://"),
        ("PROXMOX_HOST", "pve1:8006", "must be a host name or an address; its port belongs in PROXMOX_PORT"),
        ("PROXMOX_HOST", "pve 1", "is wrong, it is neither a host name nor an address"),
        ("PROXMOX_PORT", "0", "must be at least 1, not '0'"),
        ("PROXMOX_PORT", "65536", "must be at most 65535, not '65536'"),
        ("PROXMOX_USER", "root", "must be a user with its realm, as in smith@pve"),
        ("PROXMOX_USER", "smith@pve!agent", "must not hold a '!', since the token's name belongs in PROXMOX_TOKEN_ID"),
        ("PROXMOX_TOKEN_ID", f"smith@pve!agent={SECRET}", "must not hold a '!', since the user before it"),
        ("PROXMOX_TOKEN_ID", f"agent={SECRET}", "must not hold a '=', since the secret after it belongs in"),
        ("PROXMOX_BRIDGE", "vmbr0,firewall=0", "is wrong, it may hold letters"),
        ("PROXMOX_NODES", "pve1,-x", "is wrong, it may hold letters"),
        ("PROXMOX_VMID_MIN", "99", "must be at least 100, not '99'"),
        ("PROXMOX_VMID_MAX", "1000000000", "must be at most 999999999, not '1000000000'"),
        ("PROXMOX_VMID_MAX", "99999", "is wrong, it is less than PROXMOX_VMID_MIN"),
        ("PROXMOX_VMID_MIN", "200000", ""),
        ("PROXMOX_TEMPLATES", "debian", "is wrong, 'debian' is not of the form name=vmid"),
        ("PROXMOX_TEMPLATES", "debian=12", "is wrong, 'debian=12' is not of the form name=vmid"),
        ("PROXMOX_TEMPLATES", "debian=one", "is wrong, 'debian=one' is not of the form name=vmid"),
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
def test_an_invalid_value_is_one_line_with_reason_meaning_and_example(name: str, value: str, reason: str) -> None:
    (line,) = problems({name: value})
    if not reason:  # the other end of the range is reported
        name, reason = "PROXMOX_VMID_MAX", "is wrong, it is less than PROXMOX_VMID_MIN"
    meaning = FIELDS[name].description
    assert line.startswith(f"{name} {reason}")
    assert f": {meaning}. Example: {name}=" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("FULCRUM_VERIFY_TLS", "No", False),
        ("PROXMOX_VALIDATE_CERTS", "0", False),
        ("FULCRUM_POLL_INTERVAL_S", "0.5", 0.5),
        ("PROXMOX_HOST", "10.0.0.1", "10.0.0.1"),
        ("PROXMOX_HOST", "fd00::1", "fd00::1"),
        ("PROXMOX_NODES", " pve1 ,pve2,", ("pve1", "pve2")),
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
def test_a_valid_value_is_read(name: str, value: str, read: object) -> None:
    assert getattr(load({name: value}), name.lower()) == read


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
    names = [line.split()[0] for line in problems(environ)]
    assert names == [
        "SMITH_CONCURENCY",
        "FULCRUM_API_TOKEN",
        "FULCRUM_API_URL",
        "PROXMOX_VMID_MAX",
        "SMITH_DATA_DIR",
        "SMITH_CONCURRENCY",
    ]


def test_a_setting_that_depends_on_an_invalid_one_is_not_reported() -> None:
    (line,) = problems({"FULCRUM_JOB_TIMEOUT_S": "soon"})
    assert line.startswith("FULCRUM_JOB_TIMEOUT_S must be a number")


# Required settings


def test_every_missing_setting_of_fulcrumcore_and_of_proxmox_is_reported() -> None:
    settings = load()
    with pytest.raises(SettingsError) as caught:
        settings.require_fulcrum()
    assert str(caught.value).splitlines() == [
        "FULCRUM_API_URL is missing: URL of FulcrumCore, without the path `/api/v1`. "
        "Example: FULCRUM_API_URL=https://core.example.net",
        "FULCRUM_API_TOKEN is missing: token of this agent, created by an administrator of FulcrumCore. "
        "Example: FULCRUM_API_TOKEN=the-token-shown-once",
    ]
    with pytest.raises(SettingsError) as caught:
        settings.require_proxmox()
    names = [line.split()[0] for line in str(caught.value).splitlines()]
    assert names == ["PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"]


@pytest.mark.parametrize("without", ["PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"])
def test_proxmox_needs_all_of_host_user_token_and_secret(without: str) -> None:
    settings = load({name: value for name, value in COMPLETE.items() if name != without})
    settings.require_fulcrum()
    with pytest.raises(SettingsError, match=rf"^{without} is missing: [^\n]*$"):
        settings.require_proxmox()


def test_a_token_or_a_password_is_enough_for_proxmox() -> None:
    load(COMPLETE).require_proxmox()
    password = {name: value for name, value in COMPLETE.items() if "TOKEN_" not in name}
    load({**password, "PROXMOX_PASSWORD": SECRET}).require_proxmox()


def test_a_password_beside_a_token_is_refused() -> None:
    """The Ansible modules would use the password and proxmoxer the token."""
    with pytest.raises(SettingsError, match=r"^PROXMOX_PASSWORD must not be set beside PROXMOX_TOKEN_ID"):
        load({**COMPLETE, "PROXMOX_PASSWORD": SECRET}).require_proxmox()


# Display


def test_no_secret_is_shown_anywhere() -> None:
    environ = {
        **COMPLETE,
        "FULCRUM_API_TOKEN": SECRET,
        "PROXMOX_TOKEN_SECRET": SECRET,
        "PROXMOX_PASSWORD": SECRET,
        "SMITH_DATABASE_URL": f"postgresql://smith:{SECRET}@db/smith?password={SECRET}",
        "SMITH_HTTP_TOKEN": f"{SECRET}-sixteen",
    }
    settings = load(environ)
    shown = [repr(settings), str(settings), json.dumps([asdict(row) for row in describe(settings)])]
    assert [text for text in shown if SECRET in text] == []
    rows = {row.name: row.value for row in describe(settings)}
    assert {rows[name] for name in SECRETS if name != "SMITH_DATABASE_URL"} == {MASK}
    assert rows["SMITH_DATABASE_URL"] == f"postgresql://smith:{MASK}@db/smith?password={MASK}"


def test_every_setting_is_described_with_origin_unit_and_default() -> None:
    rows = {row.name: row for row in describe(load({"FULCRUM_POLL_INTERVAL_S": "0.5", "PROXMOX_TEMPLATES": "a=100"}))}
    assert list(rows) == list(FIELDS)
    polled = rows["FULCRUM_POLL_INTERVAL_S"]
    assert (polled.value, polled.origin, polled.unit, polled.default) == ("0.5", "environment", "s", "2")
    assert rows["PROXMOX_TEMPLATES"].value == "a=100"
    assert rows["SMITH_LOG_LEVEL"].origin == "default"
    assert rows["FULCRUM_API_TOKEN"].value == ""


def test_the_secret_values_include_passwords_inside_urls() -> None:
    settings = load({**COMPLETE, "SMITH_DATABASE_URL": "postgresql://smith:p%40ss-word@db/smith"})
    assert secret_values(settings) == (SECRET, "0123-secret", "p%40ss-word", "p@ss-word")
    redactor = Redactor()
    redactor.add(*secret_values(settings))
    assert redactor.redact("could not log in with p@ss-word") == f"could not log in with {MASK}"
    assert secret_values(load()) == ()


def test_each_setting_has_a_meaning_and_an_example_that_it_accepts(tmp_path: Path) -> None:
    for name, field in FIELDS.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        example = str(extra["example"])
        assert field.description, name
        assert example, name
        if not re.match(r"/(etc|run)/", example):  # files and folders that this machine may lack
            load({name: example})


def test_names_end_with_their_unit() -> None:
    for name, field in FIELDS.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        expected = "s" if name.endswith("_S") else "MiB" if name.endswith("_MIB") else ""
        assert extra["unit"] == expected, name


def test_the_example_file_sets_everything_that_is_required(dotenv: Path) -> None:
    dotenv.write_text(example_env())
    settings = load(env_file=dotenv)
    settings.require_fulcrum()
    settings.require_proxmox()


def test_importing_the_settings_imports_no_client_library() -> None:
    libraries = {"requests", "sqlalchemy", "proxmoxer", "ansible_runner"}
    program = f"import sys, executor.settings.settings; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
