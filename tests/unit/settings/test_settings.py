"""Settings: defaults, required settings, and how they are shown; no secret is ever shown."""

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
from support.setting_loading import SECRET, load, origin_of

from executor.errors import SettingsError
from executor.redaction import MASK, Redactor
from executor.settings.display import example_env, setting_rows
from executor.settings.masking import secret_values
from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES, Settings, load_settings

#: The required settings of FulcrumCore and Proxmox.
COMPLETE = {
    "FULCRUM_API_URL": "https://core.example.net",
    "FULCRUM_API_TOKEN": SECRET,
    "PROXMOX_HOST": "pve1.example.net",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "agent",
    "PROXMOX_TOKEN_SECRET": "0123-secret",
}


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


# Defaults


def test_the_settings_load_without_any_source_and_have_defaults() -> None:
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


def test_the_run_folder_is_in_memory_and_each_data_folder_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    first, same, second = (load({"SMITH_DATA_DIR": str(tmp_path / name)}).smith_run_dir for name in ("a", "a", "b"))
    assert first == same != second
    assert re.fullmatch(rf"/dev/shm/agent-smith-{os.getuid()}-[0-9a-f]{{8}}", str(first))  # noqa: S108


def test_the_run_folder_is_in_the_users_runtime_folder_if_only_the_user_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    run_dir = load({}).smith_run_dir
    assert run_dir.parent == folder
    assert re.fullmatch(r"agent-smith-[0-9a-f]{8}", run_dir.name)
    for unusable in (tmp_path / "link", tmp_path / "missing", "relative", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(unusable))
        assert load({}).smith_run_dir.parent == Path("/dev/shm")  # noqa: S108
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    folder.chmod(0o755)
    assert load({}).smith_run_dir.parent == Path("/dev/shm")  # noqa: S108


def test_the_default_playbook_timeout_is_80_percent_of_the_job_timeout() -> None:
    assert load().smith_playbook_timeout_s == 240
    assert load({"FULCRUM_JOB_TIMEOUT_S": "100"}).smith_playbook_timeout_s == 80


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().smith_concurrency = 9  # type: ignore[misc]


def test_settings_made_directly_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMITH_CONCURRENCY", "3")
    settings = Settings(smith_cluster="lab")
    assert (settings.smith_concurrency, settings.smith_cluster) == (0, "lab")
    assert (origin_of(settings, "SMITH_CLUSTER"), origin_of(settings, "SMITH_CONCURRENCY")) == ("argument", "default")


def test_without_arguments_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMITH_CONCURRENCY", "3")
    assert load_settings(env_file=None).smith_concurrency == 3


# Required settings


def test_every_missing_setting_of_fulcrumcore_and_of_proxmox_is_reported() -> None:
    settings = load()
    with pytest.raises(SettingsError) as caught:
        settings.require_fulcrum_settings()
    assert str(caught.value).splitlines() == [
        "FULCRUM_API_URL is missing: URL of FulcrumCore, without the path `/api/v1`. "
        "Example: FULCRUM_API_URL=https://core.example.net",
        "FULCRUM_API_TOKEN is missing: token of this agent, created by an administrator of FulcrumCore. "
        "Example: FULCRUM_API_TOKEN=the-token-shown-once",
    ]
    with pytest.raises(SettingsError) as caught:
        settings.require_proxmox_settings()
    names = [line.split()[0] for line in str(caught.value).splitlines()]
    assert names == ["PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"]


@pytest.mark.parametrize("missing_name", ["PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"])
def test_proxmox_needs_all_of_host_user_token_and_secret(missing_name: str) -> None:
    settings = load({name: value for name, value in COMPLETE.items() if name != missing_name})
    settings.require_fulcrum_settings()
    with pytest.raises(SettingsError, match=rf"^{missing_name} is missing: [^\n]*$"):
        settings.require_proxmox_settings()


def test_a_login_at_proxmox_needs_either_a_token_or_a_password() -> None:
    load(COMPLETE).require_proxmox_settings()
    password = {name: value for name, value in COMPLETE.items() if "TOKEN_" not in name}
    load({**password, "PROXMOX_PASSWORD": SECRET}).require_proxmox_settings()


def test_a_password_beside_a_token_is_refused() -> None:
    """The Ansible modules would use the password and proxmoxer the token."""
    with pytest.raises(SettingsError, match=r"^PROXMOX_PASSWORD must not be set together with PROXMOX_TOKEN_ID"):
        load({**COMPLETE, "PROXMOX_PASSWORD": SECRET}).require_proxmox_settings()


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
    shown = [repr(settings), str(settings), json.dumps([asdict(row) for row in setting_rows(settings)])]
    assert [text for text in shown if SECRET in text] == []
    rows = {row.name: row.value for row in setting_rows(settings)}
    assert {rows[name] for name in SECRET_SETTING_NAMES if name != "SMITH_DATABASE_URL"} == {MASK}
    assert rows["SMITH_DATABASE_URL"] == f"postgresql://smith:{MASK}@db/smith?password={MASK}"


def test_every_setting_is_described_with_origin_unit_and_default() -> None:
    settings = load({"FULCRUM_POLL_INTERVAL_S": "0.5", "PROXMOX_TEMPLATES": "a=100"})
    rows = {row.name: row for row in setting_rows(settings)}
    assert list(rows) == list(FIELDS)
    poll_interval_row = rows["FULCRUM_POLL_INTERVAL_S"]
    assert (poll_interval_row.value, poll_interval_row.origin, poll_interval_row.unit, poll_interval_row.default) == (
        "0.5",
        "environment",
        "s",
        "2",
    )
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


@pytest.mark.parametrize("written", ["p%40ss-word", "p@ss-word", "p%40ss%2Dword"])
@pytest.mark.parametrize("url", ["postgresql://smith:{}@db/smith", "postgresql://smith@db/smith?password={}"])
def test_a_password_in_a_url_is_masked_however_it_is_written(url: str, written: str) -> None:
    settings = load({**COMPLETE, "SMITH_DATABASE_URL": url.format(written)})
    shown = next(row.value for row in setting_rows(settings) if row.name == "SMITH_DATABASE_URL")
    assert shown == url.format(MASK)
    assert {written, "p@ss-word"} <= set(secret_values(settings))


def test_each_setting_has_a_meaning_and_an_example_that_it_accepts(tmp_path: Path) -> None:
    for name, field in FIELDS.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        example = str(extra["example"])
        assert field.description, name
        assert example, name
        if not re.match(r"/(etc|run)/", example):  # files and folders that this machine may lack
            load({name: example})


def test_the_name_of_a_setting_ends_with_its_unit() -> None:
    for name, field in FIELDS.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        units = {"_S": "s", "_MIB": "MiB", "_GIB": "GiB"}
        expected = next((unit for ending, unit in units.items() if name.endswith(ending)), "")
        assert extra["unit"] == expected, name


def test_the_example_file_has_every_required_setting(dotenv: Path) -> None:
    dotenv.write_text(example_env())
    settings = load(env_file=dotenv)
    settings.require_fulcrum_settings()
    settings.require_proxmox_settings()


def test_importing_the_settings_imports_no_client_library() -> None:
    libraries = {"requests", "sqlalchemy", "proxmoxer", "ansible_runner"}
    program = f"import sys, executor.settings.settings; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
