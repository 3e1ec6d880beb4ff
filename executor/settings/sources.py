"""Reads settings from the environment, from secret files and from `.env`, and reports misspelt names of settings.

Each setting gets its value from the first of these sources that has a value for it. An empty value counts as no value.

1. the environment variable `NAME`
2. for secrets, the file whose path is in the environment variable `NAME_FILE`
3. for secrets, `/run/secrets/<name in lower case>` (SMITH_SECRETS_DIR names another folder)
4. the variable `NAME` in the `.env` file
5. for secrets, the file whose path is in the variable `NAME_FILE` in the `.env` file
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executor.errors import SettingsError

#: The name of every setting begins with one of these prefixes.
PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
DEFAULT_SECRETS_DIR = Path("/run/secrets")
#: Default of SMITH_HTTP_ADDR. This module defines it, because `smith health` needs it and must not import pydantic.
DEFAULT_HTTP_ADDR = "127.0.0.1:9642"
#: Variables that begin with one of PREFIXES and are not settings, but may be in the environment.
NOT_SETTINGS = frozenset(
    {
        # some versions of the community.proxmox collection read these
        "PROXMOX_CA_PATH",
        "PROXMOX_API_TIMEOUT",
        "PROXMOX_OTP",
        "PROXMOX_URL",
        # the agent's processes pass these to their child processes
        "SMITH_RUN_IDENT",  # id of a playbook run
        "SMITH_CREDENTIALS_FILE",  # path of a file with the login for Proxmox
        "SMITH_RUN_UNTIL_FILE",  # path of a file with the time at which the agent's runs must end
        "SMITH_PROGRESS_FD",  # pipe through which a process reports its progress to its parent process
        # only tests set this: path of a file that lists the places in the code at which a process kills itself
        "SMITH_CRASH_AT",
    }
)
#: Matches the end of the name of a variable that Kubernetes sets for one of its services, such as
#: FULCRUM_CORE_SERVICE_HOST for the service `fulcrum-core`.
_KUBERNETES_SERVICE_VARIABLE = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$"
)
#: Maximum size of a secret's file. Without this limit, a path such as /dev/zero would block the agent's start.
MAX_SECRET_BYTES = 65_536
#: Matches a line `NAME=value` or `export NAME=value` of a `.env` file. The groups are the name and the text after `=`.
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
#: Match a value in quotes, and a comment after it. The group is the text between the quotes.
_SINGLE_QUOTED = re.compile(r"'([^']*)'\s*(?:#.*)?")
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
#: The escapes in a value in double quotes, with the characters that they stand for.
_DOUBLE_QUOTED_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"', r"\\": "\\", r"\$": "$"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with the settings.

    If `name` is set, `text` continues a sentence that starts with this name. Otherwise `text` is a whole sentence.
    """

    text: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class GatheredValues:
    """The values of the settings, the origin of each value, and all problems."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def gather_values(
    *, names: Collection[str], secret_names: Collection[str], environ: Mapping[str, str], env_file: Path | None
) -> GatheredValues:
    """Find the values of the settings in `names`. Secret files are read only for the settings in `secret_names`.

    The returned object has a problem for each variable that may be a misspelt setting.
    """
    gathered = GatheredValues()
    dotenv = _read_env_file(env_file, gathered.problems) if env_file else {}
    settable_names = {*names, *(f"{name}_FILE" for name in secret_names)}
    for variables, source in ((environ, "the environment"), (dotenv, str(env_file))):
        gathered.problems.extend(_unknown_setting_problems(variables, settable_names, source))
    secrets_dir = _secrets_dir(environ, dotenv, gathered.problems)
    # If `env_file` is None, `dotenv` is empty, so `dotenv_path` is not used.
    sources = _Sources(environ=environ, secrets_dir=secrets_dir, dotenv=dotenv, dotenv_path=str(env_file))
    for name in names:
        try:
            value_and_origin = sources.find_secret(name) if name in secret_names else sources.find_non_secret(name)
        except _UnusableFile as error:
            gathered.problems.append(Problem(name=name, text=str(error)))
            continue
        if value_and_origin:
            gathered.values[name], gathered.origins[name] = value_and_origin
    return gathered


class _UnusableFile(Exception):
    """A file cannot be read, or contains no usable secret.

    The text of the exception continues a sentence that starts with the setting's name.
    """


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """The sources of the settings.

    Each method returns the value of a setting and the origin of this value, or None if no source has a value.
    """

    environ: Mapping[str, str] = field(repr=False)
    secrets_dir: Path  #: SMITH_SECRETS_DIR, by default /run/secrets
    dotenv: Mapping[str, str] = field(repr=False)  #: the variables in the `.env` file
    dotenv_path: str

    def find_non_secret(self, name: str) -> tuple[str, str] | None:
        """Find the value of a setting that is not a secret."""
        for variables, origin in ((self.environ, "environment"), (self.dotenv, self.dotenv_path)):
            if value := variables.get(name, "").strip():
                return value, origin
        return None

    def find_secret(self, name: str) -> tuple[str, str] | None:
        """Find the value of a secret. Raises _UnusableFile if the secret is in a file that is not usable."""
        if value_and_origin := self._find_secret_in(self.environ, name, "environment"):
            return value_and_origin
        secret_file = self.secrets_dir / name.lower()
        if os.path.lexists(secret_file):  # True for a broken symbolic link, too, so that _read_secret reports it
            return _read_secret(secret_file), str(secret_file)
        return self._find_secret_in(self.dotenv, name, self.dotenv_path)

    def _find_secret_in(self, variables: Mapping[str, str], name: str, origin: str) -> tuple[str, str] | None:
        """Find a secret in these variables, or in the file that the variable `<name>_FILE` names."""
        if value := variables.get(name, "").strip():
            return value, origin
        file_variable = f"{name}_FILE"
        if path := variables.get(file_variable, "").strip():
            return _read_secret(Path(path), file_variable), path
        return None


def read_secret_file(path: Path) -> str:
    """Return a secret that is not a setting, such as an administrator's token, from its file. Raises SettingsError."""
    try:
        return _read_secret(path)
    except _UnusableFile as error:
        raise SettingsError(f"the secret {error}") from None


def _read_secret(path: Path, file_variable: str = "") -> str:
    """Return the text of a file. `file_variable` is the variable that contains the path, '' if no variable does.

    White space around the text is removed, because editors add a newline at the end.
    """
    shown_path = f"{path} (from {file_variable})" if file_variable else str(path)
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except IsADirectoryError:
        raise _UnusableFile(f"cannot be read: {shown_path} is a folder") from None
    # RuntimeError: the path begins with `~user` for an unknown user. ValueError: the path contains a NUL character.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable path"  # only OSError has `strerror`
        raise _UnusableFile(f"cannot be read: {shown_path}: {reason} (as uid {os.getuid()})") from None
    if len(content) > MAX_SECRET_BYTES:
        raise _UnusableFile(f"cannot be read: {shown_path} is larger than {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _UnusableFile(f"cannot be read: {shown_path} is not UTF-8 text") from None
    if not text:
        raise _UnusableFile(f"cannot be read: {shown_path} is empty")
    return text


def _secrets_dir(environ: Mapping[str, str], dotenv: Mapping[str, str], problems: list[Problem]) -> Path:
    """Return SMITH_SECRETS_DIR, by default /run/secrets. Add a problem if SMITH_SECRETS_DIR is not a folder."""
    value = environ.get("SMITH_SECRETS_DIR", "").strip() or dotenv.get("SMITH_SECRETS_DIR", "").strip()
    if not value:
        return DEFAULT_SECRETS_DIR
    folder = Path(os.path.expanduser(value))
    if not folder.is_dir():
        problems.append(Problem(name="SMITH_SECRETS_DIR", text=f"is wrong, {folder} is not a folder"))
    return folder


def _unknown_setting_problems(
    variables: Mapping[str, str], settable_names: Collection[str], source: str
) -> Iterator[Problem]:
    """Yield a problem for each variable that may be a misspelt setting.

    The name of such a variable begins with one of PREFIXES, or is the name of a setting with letters in lower case. The
    problem proposes the most similar of `settable_names`.
    """
    for name in sorted(variables):
        if name in settable_names or name in NOT_SETTINGS or _is_set_by_kubernetes(name, variables[name]):
            continue
        if name.upper() in settable_names:
            yield Problem(text=f"{name} in {source} is not a setting: write {name.upper()}, in capitals")
        elif name.startswith(PREFIXES):
            similar_names = difflib.get_close_matches(name, settable_names, n=1)
            hint = f"did you mean {similar_names[0]}?" if similar_names else "`smith config show` lists all settings"
            yield Problem(text=f"{name} in {source} is not a setting: {hint}")


def _is_set_by_kubernetes(name: str, value: str) -> bool:
    """Return whether Kubernetes has set the variable for one of its services.

    A setting such as PROXMOX_PORT can have the same form of name as the Kubernetes variable <SERVICE>_PORT. Only the
    Kubernetes variable contains a URL, such as tcp://10.0.0.7:80.
    """
    return bool(_KUBERNETES_SERVICE_VARIABLE.search(name)) or (name.endswith("_PORT") and "://" in value)


def _read_env_file(path: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the values in the `NAME=value` lines of a file. A missing file counts as an empty file.

    Variables such as `$HOME` are not expanded, so a secret may contain `$`. A value in single quotes has no escapes. A
    value in double quotes may have the escapes \\n, \\t, \\", \\$ and \\\\. A value without quotes ends at ` #`.
    """
    try:
        if reason := _reason_to_refuse_env_file(path):
            problems.append(Problem(text=f"{path.absolute()} is refused: {reason}"))
            return {}
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"  # only OSError has `strerror`
        problems.append(Problem(text=f"{path} cannot be read: {reason}"))
        return {}
    values: dict[str, str] = {}
    for line_number, raw_line in enumerate(text.splitlines(), start=1):
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(line)
        value = _unquote(assignment[2]) if assignment else None
        if assignment and value is not None:
            values[assignment[1]] = value
        else:  # the problem does not show the line, because it may contain a secret
            problems.append(
                Problem(text=f"{path} line {line_number} is not of the form NAME=value, or a quote is not closed")
            )
    return values


def _reason_to_refuse_env_file(path: Path) -> str:
    """Return the reason to refuse the `.env` file, or ''.

    Only root and the user of this process may own the file or write to it. Any other user could make the agent send its
    secrets to another server. If the path is a symbolic link, the owner of the link is checked, too. Raises OSError.
    """
    for status in (path.lstat(), path.stat()):
        if status.st_uid not in (0, os.geteuid()):
            return f"it is owned by uid {status.st_uid}, not by root or the user of this process (uid {os.geteuid()})"
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode, command = stat.S_IMODE(status.st_mode), shlex.join(["chmod", "go-w", path.name])
            return f"other users can write to it (mode {mode:04o}); run: {command}"
    return ""


def _unquote(text: str) -> str | None:
    """Return the value from the text after `=` in a `.env` file; None if a quote is not closed."""
    if text.startswith("'"):
        match = _SINGLE_QUOTED.fullmatch(text)
        return match[1] if match else None
    if text.startswith('"'):
        match = _DOUBLE_QUOTED.fullmatch(text)
        return re.sub(r"\\.", _replace_escape, match[1]) if match else None
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()  # without the comment after ` #`


def _replace_escape(escape: re.Match[str]) -> str:
    """Return the character of an escape in double quotes. An unknown escape is returned unchanged."""
    return _DOUBLE_QUOTED_ESCAPES.get(escape[0], escape[0])
