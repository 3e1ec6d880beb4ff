"""Where settings come from: environment, secret files, the folder of mounted secrets, `.env`; and typos in their names.

For each setting the first of these that has a value wins, and an empty value is none:

1. the environment variable `NAME`
2. for secrets, the file that `NAME_FILE` names
3. for secrets, `/run/secrets/<name in lower case>` (another folder by SMITH_SECRETS_DIR)
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

PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
DEFAULT_SECRETS_DIR = Path("/run/secrets")
#: Here and not beside its setting, because `smith health` asks for nothing else and must start fast.
DEFAULT_HTTP_ADDR = "127.0.0.1:9642"
#: Names that may stand in the environment and are not settings.
NOT_SETTINGS = frozenset(
    {
        # read by the Ansible collection, newer ones only
        "PROXMOX_CA_PATH",
        "PROXMOX_API_TIMEOUT",
        "PROXMOX_OTP",
        "PROXMOX_URL",
        # passed between our own processes
        "SMITH_RUN_IDENT",
        "SMITH_CREDENTIALS_FILE",
        "SMITH_PROGRESS_FD",
        "SMITH_CRASH_AT",
        "SMITH_NODE_ID",
        "SMITH_BOOT_ID",
    }
)
#: Kubernetes tells every pod of every service: one named `fulcrum-core` gives FULCRUM_CORE_SERVICE_HOST and more.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
#: A secret is a line or a key, not a disk image; a path like /dev/zero must not hang the start.
MAX_SECRET_BYTES = 65_536
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_DOUBLE_QUOTED_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"', r"\\": "\\", r"\$": "$"}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong: of a setting (its meaning and an example are to be added), or a whole sentence of its own."""

    text: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Every value found, with its origin, and everything that was wrong on the way."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def gather(
    names: Collection[str], secret_names: Collection[str], environ: Mapping[str, str], env_file: Path | None
) -> Gathered:
    """Find the value of each setting in `names`, and note each name with our prefixes that is none."""
    gathered = Gathered()
    dotenv = _read_env_file(env_file, gathered.problems) if env_file else {}
    known = {*names, *NOT_SETTINGS, *(f"{name}_FILE" for name in secret_names)}
    for variables, place in ((environ, "the environment"), (dotenv, str(env_file))):
        gathered.problems.extend(_unknown_names(variables, known, place))
    folder = _secrets_dir(environ, dotenv, gathered.problems)
    places = _Places(environ=environ, folder=folder, dotenv=dotenv, dotenv_name=str(env_file))
    for name in names:
        try:
            found = places.find_secret(name) if name in secret_names else places.find_plain(name)
        except _Unusable as unusable:
            gathered.problems.append(Problem(name=name, text=str(unusable)))
            continue
        if found:
            gathered.values[name], gathered.origins[name] = found
    return gathered


class _Unusable(Exception):
    """A file that should hold a secret does not; the text goes on after the setting's name."""


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where to look, in order; each look-up returns value and origin, or None."""

    environ: Mapping[str, str] = field(repr=False)
    folder: Path
    dotenv: Mapping[str, str] = field(repr=False)
    dotenv_name: str

    def find_plain(self, name: str) -> tuple[str, str] | None:
        for variables, origin in ((self.environ, "environment"), (self.dotenv, self.dotenv_name)):
            if value := variables.get(name, "").strip():
                return value, origin
        return None

    def find_secret(self, name: str) -> tuple[str, str] | None:
        mounted = self.folder / name.lower()
        if found := self._find_or_read(name, self.environ, "environment"):
            return found
        if os.path.lexists(mounted):
            return _read_secret("", mounted), str(mounted)
        return self._find_or_read(name, self.dotenv, self.dotenv_name)

    def _find_or_read(self, name: str, variables: Mapping[str, str], origin: str) -> tuple[str, str] | None:
        if value := variables.get(name, "").strip():
            return value, origin
        if path := variables.get(f"{name}_FILE", "").strip():
            return _read_secret(f"{name}_FILE", Path(path)), path
        return None


def read_secret_file(path: Path) -> str:
    """Return a secret that is no setting, from a file that somebody named. Raises SettingsError."""
    try:
        return _read_secret("", path)
    except _Unusable as unusable:
        raise SettingsError(f"the secret {unusable}") from None


def _read_secret(variable: str, path: Path) -> str:
    """Return the file's text without the white space around it; a trailing newline is an editor's, not the secret's."""
    named = f"{path}, named by {variable}," if variable else str(path)
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except IsADirectoryError:
        raise _Unusable(f"cannot be read: {named} is a folder") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no such home; ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise _Unusable(f"cannot be read: {named} gives '{reason}' to uid {os.getuid()}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise _Unusable(f"cannot be read: {named} is larger than {MAX_SECRET_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _Unusable(f"cannot be read: {named} is not UTF-8 text") from None
    if not text:
        raise _Unusable(f"cannot be read: {named} is empty")
    return text


def _secrets_dir(environ: Mapping[str, str], dotenv: Mapping[str, str], problems: list[Problem]) -> Path:
    """Return the folder of mounted secrets; only a folder that somebody named has to exist."""
    named = environ.get("SMITH_SECRETS_DIR", "").strip() or dotenv.get("SMITH_SECRETS_DIR", "").strip()
    folder = Path(os.path.expanduser(named)) if named else DEFAULT_SECRETS_DIR
    if named and not folder.is_dir():
        problems.append(Problem(name="SMITH_SECRETS_DIR", text=f"is wrong, {folder} is not a folder"))
    return folder


def _unknown_names(variables: Mapping[str, str], known: Collection[str], place: str) -> Iterator[Problem]:
    """Name the variables that look like settings and are none: a typo would otherwise be a default in silence."""
    for name in sorted(variables):
        if name in known or _is_service_link(name, variables[name]):
            continue
        if name.upper() in known:
            yield Problem(text=f"{name} in {place} is not a setting: write {name.upper()}, in capitals")
        elif name.startswith(PREFIXES):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`smith config show` lists them all"
            yield Problem(text=f"{name} in {place} is not a setting: {hint}")


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.search(name)) or (name.endswith("_PORT") and "://" in value)


def _read_env_file(path: Path, problems: list[Problem]) -> dict[str, str]:
    """Read `NAME=value` lines; nothing is expanded, so a secret may hold any `$`. A missing file is an empty one.

    A value in single quotes is taken as it is, one in double quotes knows \\n, \\t, \\", \\$ and \\\\, and one without
    quotes ends at ` #`.
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
        else:  # the line may hold a secret, so it is not shown
            problems.append(
                Problem(text=f"{path} line {number} is not of the form NAME=value, or its quotes do not end")
            )
    return values


def _unquote(text: str) -> str | None:
    """Return the value that is written in a `.env` file; None when its quotes do not end."""
    if text[:1] in {"'", '"'}:
        quote = text[0]
        body = r"[^']*" if quote == "'" else r'(?:[^"\\]|\\.)*'
        if not (quoted := re.fullmatch(rf"{quote}({body}){quote}\s*(?:#.*)?", text)):
            return None
        if quote == "'":
            return quoted[1]
        return re.sub(r"\\.", lambda found: _DOUBLE_QUOTED_ESCAPES.get(found[0], found[0]), quoted[1])
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()
