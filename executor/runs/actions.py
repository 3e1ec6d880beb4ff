"""Step 5 of 7, the actions: ours and a provider's, and whether a provider's is safe to run.

An action is a playbook `<action>.yml`, with an optional JSON Schema `<action>.schema.json` for the service's
properties. A provider's folder comes first. Its playbooks run with our credentials, so only root and our user may have
write access; an unsafe action is refused, and ours of the same name does not replace it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.errors import ErrorCode, JobError
from executor.log import get_logger

log = get_logger(__name__)

ACTION_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,49}\Z")
SCHEMA_SUFFIX = ".schema.json"
#: A folder with more entries is not one of actions, but for example a home folder.
MAX_ENTRIES = 5_000


@dataclass(frozen=True, kw_only=True)
class Action:
    """A playbook that may be run as the action of its name."""

    name: str
    playbook: Path
    schema: Path | None  #: JSON Schema of a provider's action, for the service's properties
    is_ours: bool


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One row of `smith actions list`."""

    name: str
    playbook: Path
    has_schema: bool
    is_ours: bool
    replaces_ours: bool
    problem: str  #: why it is refused; '' if it may be run


def ansible_home() -> Path:
    """Return the folder of our playbooks: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    bundled = package / "ansible"
    return bundled if bundled.is_dir() else package.parent


def find(name: str, folders: Sequence[Path]) -> Action:
    """Return the action of that name from the first folder that has it. The last folder is ours.

    Raises JobError UNSUPPORTED_ACTION when no folder has it, or when a provider's is not safe to run.
    """
    if ACTION_PATTERN.match(name):
        for folder in folders:
            playbook = folder / f"{name}.yml"
            if not os.path.lexists(playbook):
                continue
            is_ours = folder == folders[-1]
            if reason := _refusal(folder, name, is_ours=is_ours):
                log.warning("action_refused", action=name, reason=reason)
                raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {name} is refused: {reason}")
            return Action(name=name, playbook=playbook, schema=_schema_of(playbook, is_ours), is_ours=is_ours)
    raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"no playbook for the action {name[:60]!r}")


def listing(folders: Sequence[Path]) -> list[Listed]:
    """Return all actions by name, including those that are refused."""
    found: dict[str, Listed] = {}
    for folder in reversed(folders):
        is_ours = folder == folders[-1]
        for playbook in sorted(folder.glob("*.yml")):
            found[playbook.stem] = Listed(
                name=playbook.stem,
                playbook=playbook,
                has_schema=_schema_of(playbook, is_ours) is not None,
                is_ours=is_ours,
                replaces_ours=playbook.stem in found,
                problem=_refusal(folder, playbook.stem, is_ours=is_ours),
            )
    return [found[name] for name in sorted(found)]


def _schema_of(playbook: Path, is_ours: bool) -> Path | None:
    schema = playbook.with_name(f"{playbook.stem}{SCHEMA_SUFFIX}")
    return schema if not is_ours and os.path.lexists(schema) else None


# ---------------------------------------------------------------------------------------------------------------
# Is it safe to run? Everything in a provider's folder gets our credentials.


def _refusal(folder: Path, name: str, *, is_ours: bool) -> str:
    """Return why the action is refused; '' if it may be run."""
    if not ACTION_PATTERN.match(name):
        return "its name is not a valid action name"
    if is_ours:
        return "" if (folder / f"{name}.yml").is_file() else "it is not a file"
    try:
        return _folder_problem(folder) or next(_entry_problems(folder, name), "")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except RuntimeError:  # a loop of links, before Python 3.13
        return "it contains a loop of links"


def _folder_problem(folder: Path) -> str:
    """Return who else may change the folder, or replace it by another; '' if no user can."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    real = folder.resolve()
    if reason := _unsafe_access(real.stat(), real):
        return f"{real} {reason}"
    for parent in real.parents:
        # In a sticky folder, such as /tmp, only the owner of an entry may replace it.
        if not parent.stat().st_mode & stat.S_ISVTX and (reason := _unsafe_access(parent.stat(), parent)):
            return f"{parent}, a parent folder, {reason}"
    return ""


def _entry_problems(folder: Path, name: str) -> Iterator[str]:
    """Check the action's files and all that it may use (roles, plugins, included tasks), not those of other actions."""
    root, seen = folder.resolve(), 0
    for path in _walk(folder):
        seen += 1
        if seen > MAX_ENTRIES:
            yield f"{folder} has more than {MAX_ENTRIES} entries"
            return
        if _is_another_actions(path, folder, name):
            continue
        real = path.resolve()
        if not real.is_relative_to(root):
            yield f"{path.relative_to(folder)} is a link out of the folder"
        elif not real.exists():
            yield f"{path.relative_to(folder)} is a broken link"
        elif reason := _unsafe_access(real.stat(), real):
            yield f"{path.relative_to(folder)} {reason}"
    if not (folder / f"{name}.yml").is_file():
        yield f"{name}.yml is not a file"


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")  # Ansible does not read it
        yield from (Path(root, entry) for entry in (*folders, *files))


def _is_another_actions(path: Path, folder: Path, name: str) -> bool:
    if path.parent != folder or not path.name.endswith((".yml", SCHEMA_SUFFIX)):
        return False
    return path.name not in (f"{name}.yml", f"{name}{SCHEMA_SUFFIX}")


def _unsafe_access(facts: os.stat_result, path: Path) -> str:
    """Return which user other than root and ours has write access; '' if none has."""
    if facts.st_uid not in (0, os.geteuid()):
        return f"is owned by user {facts.st_uid}, not by root or the agent's user"
    if facts.st_mode & 0o022 and not _is_read_only(path):
        who = "all users" if facts.st_mode & stat.S_IWOTH else "its group"
        return f"is writable by {who} (mode {stat.S_IMODE(facts.st_mode):04o})"
    return ""


def _is_read_only(path: Path) -> bool:
    """True on a read-only mount, such as a Kubernetes ConfigMap: its modes grant no write access."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
