"""The sources of settings: environment, secret files and `.env`; and names that are not settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.setting_loading import SECRET, error_lines_of, load, origin_of

from executor.settings.sources import MAX_SECRET_BYTES, NOT_SETTINGS


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


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
        assert origin_of(settings, "FULCRUM_API_TOKEN") == [*(source for _, _, source in sources), str(dotenv)][skipped]
    dotenv.write_text(f"FULCRUM_API_TOKEN_FILE={tmp_path}/named-in-dotenv\n")
    assert load(env_file=dotenv).fulcrum_api_token.get_secret_value() == "from-file-in-dotenv"


def test_the_environment_overrides_dotenv_for_settings_that_are_not_secret(dotenv: Path) -> None:
    dotenv.write_text("SMITH_CONCURRENCY=2\nSMITH_CLUSTER=lab\n")
    settings = load({"SMITH_CONCURRENCY": "3"}, env_file=dotenv)
    assert (settings.smith_concurrency, settings.smith_cluster) == (3, "lab")
    assert origin_of(settings, "SMITH_CLUSTER") == str(dotenv)


def test_an_empty_value_counts_as_not_set(dotenv: Path) -> None:
    dotenv.write_text("SMITH_CONCURRENCY=2\n")
    settings = load({"SMITH_CONCURRENCY": "  ", "FULCRUM_API_TOKEN": "", "FULCRUM_API_TOKEN_FILE": ""}, env_file=dotenv)
    assert settings.smith_concurrency == 2
    assert settings.fulcrum_api_token.get_secret_value() == ""


def test_white_space_around_a_value_is_removed() -> None:
    assert load({"SMITH_CLUSTER": "\tlab \n", "SMITH_CONCURRENCY": " 3 "}).smith_cluster == "lab"


def test_settings_that_are_not_secret_are_not_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "smith_concurrency").write_text("3")
    assert load({"SMITH_SECRETS_DIR": str(tmp_path)}).smith_concurrency == 0
    assert error_lines_of({"SMITH_CONCURRENCY_FILE": "/x"}) == [
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
        (line,) = error_lines_of({}, env_file=dotenv)
        assert line.startswith("PROXMOX_PASSWORD is wrong, it contains a line break")
    elif len(read) < 4:
        (line,) = error_lines_of({}, env_file=dotenv)
        assert line.startswith("PROXMOX_PASSWORD is wrong, it is shorter than 4 characters")
    else:
        assert load(env_file=dotenv).proxmox_password.get_secret_value() == read


@pytest.mark.parametrize(
    "line", [SECRET, f"FULCRUM_API_TOKEN='{SECRET}", f'X="{SECRET}\\"', f"=b{SECRET}", f"a b={SECRET}"]
)
def test_the_error_for_an_invalid_line_of_dotenv_has_its_number_and_not_its_text(dotenv: Path, line: str) -> None:
    dotenv.write_text(f"SMITH_CLUSTER=lab\n{line}\n")
    assert error_lines_of({}, env_file=dotenv) == [
        f"{dotenv} line 2 is not of the form NAME=value, or a quote is not closed"
    ]


def test_a_missing_dotenv_is_allowed_and_an_unreadable_one_is_a_problem(tmp_path: Path) -> None:
    load(env_file=tmp_path / "missing")
    assert error_lines_of({}, env_file=tmp_path) == [f"{tmp_path} cannot be read: Is a directory"]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert error_lines_of({}, env_file=tmp_path / "binary") == [
        f"{tmp_path}/binary cannot be read: it is not UTF-8 text"
    ]


@pytest.mark.parametrize("mode", [0o622, 0o660, 0o606])
def test_a_dotenv_that_others_can_write_is_refused(dotenv: Path, mode: int) -> None:
    dotenv.write_text("PROXMOX_VALIDATE_CERTS=false\n")
    dotenv.chmod(mode)
    (line,) = error_lines_of({}, env_file=dotenv)
    assert f"{dotenv} is refused: other users can write to it (mode {mode:04o}); run: chmod go-w .env" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_dotenv_of_another_user_is_refused(tmp_path: Path, dotenv: Path, is_link: bool) -> None:
    if is_link:
        target = tmp_path / "ours"
        target.write_text("PROXMOX_VALIDATE_CERTS=false\n")
        dotenv.symlink_to(target)
    else:
        dotenv.write_text("PROXMOX_VALIDATE_CERTS=false\n")
        dotenv.chmod(0o600)
    os.chown(dotenv, 65534, 65534, follow_symlinks=False)
    (line,) = error_lines_of({}, env_file=dotenv)
    assert "is refused: it is owned by uid 65534" in line


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
    file_in_message = str(path) if mounted else f"{path} (from PROXMOX_PASSWORD_FILE)"
    assert error_lines_of(environ) == [
        f"PROXMOX_PASSWORD cannot be read: {file_in_message} {reason}: password of the user, if there is no API token. "
        "Example: PROXMOX_PASSWORD=correct-horse"
    ]


def test_a_secret_file_that_is_missing_or_a_folder_is_a_problem(tmp_path: Path) -> None:
    (line,) = error_lines_of({"PROXMOX_PASSWORD_FILE": str(tmp_path / "nope")})
    assert "nope (from PROXMOX_PASSWORD_FILE): No such file or directory" in line
    (line,) = error_lines_of({"PROXMOX_PASSWORD_FILE": str(tmp_path)})
    assert f"{tmp_path} (from PROXMOX_PASSWORD_FILE) is a folder" in line
    (tmp_path / "fulcrum_api_token").symlink_to(tmp_path / "nope")
    (line,) = error_lines_of({"SMITH_SECRETS_DIR": str(tmp_path)})
    assert line.startswith(f"FULCRUM_API_TOKEN cannot be read: {tmp_path}/fulcrum_api_token: No such file")


def test_a_secret_file_without_read_permission_is_a_problem(tmp_path: Path) -> None:
    """The settings are read in a process that gives up root first, because root can read any file."""
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
    (line,) = error_lines_of({"SMITH_SECRETS_DIR": str(tmp_path / "nope")})
    assert line.startswith(f"SMITH_SECRETS_DIR is wrong, {tmp_path}/nope is not a folder: folder with one file")


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SMITH_CONCURENCY", "did you mean SMITH_CONCURRENCY?"),
        ("FULCRUM_URL", "did you mean FULCRUM_API_URL?"),
        ("PROXMOX_TOKEN", "did you mean PROXMOX_TOKEN_ID?"),
        ("SMITH_RUN_IDENTS", "did you mean SMITH_RUN_DIR?"),  # not SMITH_RUN_IDENT, which is no setting
        ("PROXMOX_URLS", "did you mean PROXMOX_USER?"),  # not PROXMOX_URL, which is no setting
        ("SMITH_QQQQQQQQQQ", "`smith config show` lists all settings"),
        ("smith_log_level", "write SMITH_LOG_LEVEL, in capitals"),
    ],
)
def test_the_error_for_an_unknown_name_proposes_the_most_similar_setting(dotenv: Path, name: str, hint: str) -> None:
    assert error_lines_of({name: SECRET}) == [f"{name} in the environment is not a setting: {hint}"]
    dotenv.write_text(f"{name}={SECRET}\n")
    assert error_lines_of({}, env_file=dotenv) == [f"{name} in {dotenv} is not a setting: {hint}"]


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
    assert len(error_lines_of({"SMITH_PORT": "9642"})) == 1
