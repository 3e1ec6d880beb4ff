"""Reads settings from the environment, from secret files and from `.env`, and reports unknown names.

Each setting gets its value from the first of these sources that has a value for it. An empty value counts as no value.

1. the environment variable `NAME`
2. for secrets, the file that `NAME_FILE` names
3. for secrets, `/run/secrets/<name in lower case>` (SMITH_SECRETS_DIR names another folder)
4. `NAME`, or `NAME_FILE` for secrets, in the `.env` file
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executor.errors import SettingsError

#: Every setting has one of these prefixes.
PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
DEFAULT_SECRETS_DIR = Path("/run/secrets")
#: Default of SMITH_HTTP_ADDR. This module defines it, because `smith health` needs it and must not import pydantic.
DEFAULT_HTTP_ADDR = "127.0.0.1:9642"
#: Names that begin with one of PREFIXES and are no settings, but are allowed in the environment.
NOT_SETTINGS = frozenset(
    {
        # newer versions of the community.proxmox collection read these
        "PROXMOX_CA_PATH",
        "PROXMOX_API_TIMEOUT",
        "PROXMOX_OTP",
        "PROXMOX_URL",
        # the agent's processes pass these to their child processes
        "SMITH_RUN_IDENT",
        "SMITH_CREDENTIALS_FILE",
        "SMITH_PROGRESS_FD",
        "SMITH_CRASH_AT",
        "SMITH_NODE_ID",
        "SMITH_BOOT_ID",
    }
)
#: Matches variables that Kubernetes sets for its services, such as FULCRUM_CORE_SERVICE_HOST for `fulcrum-core`.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
#: Maximum size of a secret's file. Without it, a path such as /dev/zero would block the start.
MAX_SECRET_BYTES = 65_536
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
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
    """The values that were found, the origin of each value, and all problems."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def gather(
    names: Collection[str], secret_names: Collection[str], environ: Mapping[str, str], env_file: Path | None
) -> GatheredValues:
    """Find the values of the settings in `names`, and the problems. `secret_names` are those that may be in files.

    A name that begins with one of PREFIXES and is not a setting is a problem, too.
    """
    gathered = GatheredValues()
    dotenv = _read_env_file(env_file, gathered.problems) if env_file else {}
    known = {*names, *NOT_SETTINGS, *(f"{name}_FILE" for name in secret_names)}
    for variables, source in ((environ, "the environment"), (dotenv, str(env_file))):
        gathered.problems.extend(_unknown_names(variables, known, source))
    folder = _secrets_dir(environ, dotenv, gathered.problems)
    sources = _Sources(environ=environ, folder=folder, dotenv=dotenv, dotenv_name=str(env_file))
    for name in names:
        try:
            found = sources.find_secret(name) if name in secret_names else sources.find_plain(name)
        except _UnusableFile as error:
            gathered.problems.append(Problem(name=name, text=str(error)))
            continue
        if found:
            gathered.values[name], gathered.origins[name] = found
    return gathered


class _UnusableFile(Exception):
    """A file contains no usable secret. The text continues a sentence that starts with the setting's name."""


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """The sources of values. Each method returns the value of a setting and its origin, or None."""

    environ: Mapping[str, str] = field(repr=False)
    folder: Path  #: the folder of mounted secrets
    dotenv: Mapping[str, str] = field(repr=False)
    dotenv_name: str  #: the path of the `.env` file

    def find_plain(self, name: str) -> tuple[str, str] | None:
        """Find a setting that is not a secret."""
        for variables, origin in ((self.environ, "environment"), (self.dotenv, self.dotenv_name)):
            if value := variables.get(name, "").strip():
                return value, origin
        return None

    def find_secret(self, name: str) -> tuple[str, str] | None:
        """Find a secret. Raises _UnusableFile if its file cannot be read."""
        mounted = self.folder / name.lower()
        if found := self._find_or_read(name, self.environ, "environment"):
            return found
        if os.path.lexists(mounted):
            return _read_secret("", mounted), str(mounted)
        return self._find_or_read(name, self.dotenv, self.dotenv_name)

    def _find_or_read(self, name: str, variables: Mapping[str, str], origin: str) -> tuple[str, str] | None:
        """Find a secret in these variables, or in the file that `NAME_FILE` among them names."""
        if value := variables.get(name, "").strip():
            return value, origin
        if path := variables.get(f"{name}_FILE", "").strip():
            return _read_secret(f"{name}_FILE", Path(path)), path
        return None


def read_secret_file(path: Path) -> str:
    """Return a secret, which is not a setting, from a file that the caller names. Raises SettingsError."""
    try:
        return _read_secret("", path)
    except _UnusableFile as error:
        raise SettingsError(f"the secret {error}") from None


def _read_secret(variable: str, path: Path) -> str:
    """Return the text of a file. `variable` is the variable that names the file, '' if no variable does.

    White space around the text is removed, because editors add a newline at the end.
    """
    named = f"{path} (from {variable})" if variable else str(path)
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except IsADirectoryError:
        raise _UnusableFile(f"cannot be read: {named} is a folder") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: `~user` for an unknown user. ValueError: a NUL.
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise _UnusableFile(f"cannot be read: {named}: {reason} (as uid {os.getuid()})") from None
    if len(content) > MAX_SECRET_BYTES:
        raise _UnusableFile(f"cannot be read: {named} is larger than {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _UnusableFile(f"cannot be read: {named} is not UTF-8 text") from None
    if not text:
        raise _UnusableFile(f"cannot be read: {named} is empty")
    return text


def _secrets_dir(environ: Mapping[str, str], dotenv: Mapping[str, str], problems: list[Problem]) -> Path:
    """Return the folder of mounted secrets. Add a problem if SMITH_SECRETS_DIR names a folder that does not exist."""
    named = environ.get("SMITH_SECRETS_DIR", "").strip() or dotenv.get("SMITH_SECRETS_DIR", "").strip()
    folder = Path(os.path.expanduser(named)) if named else DEFAULT_SECRETS_DIR
    if named and not folder.is_dir():
        problems.append(Problem(name="SMITH_SECRETS_DIR", text=f"is wrong, {folder} is not a folder"))
    return folder


def _unknown_names(variables: Mapping[str, str], known: Collection[str], source: str) -> Iterator[Problem]:
    """Yield a problem for each variable that may be a misspelt setting: it begins with one of PREFIXES."""
    for name in sorted(variables):
        if name in known or _is_service_link(name, variables[name]):
            continue
        if name.upper() in known:
            yield Problem(text=f"{name} in {source} is not a setting: write {name.upper()}, in capitals")
        elif name.startswith(PREFIXES):
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else "`smith config show` lists all settings"
            yield Problem(text=f"{name} in {source} is not a setting: {hint}")


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes has set the variable for one of its services."""
    return bool(_SERVICE_LINK.search(name)) or (name.endswith("_PORT") and "://" in value)


def _read_env_file(path: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the values in the `NAME=value` lines of a file. A missing file counts as an empty file.

    Variables such as `$HOME` are not expanded, so a secret may contain `$`. A value in single quotes has no escapes. A
    value in double quotes may have the escapes \\n, \\t, \\", \\$ and \\\\. A value without quotes ends at ` #`.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        problems.append(Problem(text=f"{path} cannot be read: {reason}"))
        return {}
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        if (assignment := _ASSIGNMENT.fullmatch(line)) and (value := _unquote(assignment[2])) is not None:
            values[assignment[1]] = value
        else:  # the problem does not show the line, because it may contain a secret
            problems.append(
                Problem(text=f"{path} line {number} is not of the form NAME=value, or a quote is not closed")
            )
    return values


def _unquote(text: str) -> str | None:
    """Return the value from the text after `=` in a `.env` file; None if a quote is not closed."""
    if text[:1] in {"'", '"'}:
        quote = text[0]
        body = r"[^']*" if quote == "'" else r'(?:[^"\\]|\\.)*'
        if not (quoted := re.fullmatch(rf"{quote}({body}){quote}\s*(?:#.*)?", text)):
            return None
        if quote == "'":
            return quoted[1]
        return re.sub(r"\\.", lambda found: _DOUBLE_QUOTED_ESCAPES.get(found[0], found[0]), quoted[1])
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
