"""Step 5 of 7, what there is to choose from: our own actions and a provider's, and whether theirs may be run.

An action is a playbook `<action>.yml`, with an optional JSON Schema `<action>.schema.json` for the service's
properties. A provider's folder comes first. What is in it runs with our credentials, so nobody but root and we may be
able to write there; an action that is not safe is refused, never replaced by ours in silence.
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
#: More entries than this are no folder of actions, but somebody's home.
MAX_ENTRIES = 5_000


@dataclass(frozen=True, kw_only=True)
class Action:
    """A playbook that may be run for its name."""

    name: str
    playbook: Path
    schema: Path | None  #: a provider's own, for the service's properties
    is_ours: bool


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One action as a list shows it."""

    name: str
    playbook: Path
    has_schema: bool
    is_ours: bool
    replaces_ours: bool
    problem: str  #: why it is refused; '' when it may be run


def ansible_home() -> Path:
    """Return the folder of our playbooks: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    bundled = package / "ansible"
    return bundled if bundled.is_dir() else package.parent


def find(name: str, folders: Sequence[Path]) -> Action:
    """Return the action of that name: of the first folder that has one; the last folder is our own.

    Raises JobError UNSUPPORTED_ACTION when there is none, or when it is a provider's that is not safe to run.
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
    """Return every action that there is, by name, those that are refused included."""
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
# May it be run? What a provider's folder holds gets our credentials.


def _refusal(folder: Path, name: str, *, is_ours: bool) -> str:
    """Say why an action is not run; '' when it is."""
    if not ACTION_PATTERN.match(name):
        return "its name is not one of an action"
    if is_ours:
        return "" if (folder / f"{name}.yml").is_file() else "it is not a file"
    try:
        return _folder_problem(folder) or next(_entry_problems(folder, name), "")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except RuntimeError:  # how Python before 3.13 says it
        return "it holds a link that leads to itself"


def _folder_problem(folder: Path) -> str:
    """Say who else may change the folder, or put another one into its place."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    place = folder.resolve()
    if reason := _writer_of(place.stat(), place):
        return f"{place} {reason}"
    for parent in place.parents:
        # In a sticky folder, such as /tmp, only the owner of an entry may replace it.
        if not parent.stat().st_mode & stat.S_ISVTX and (reason := _writer_of(parent.stat(), parent)):
            return f"{parent}, which holds it, {reason}"
    return ""


def _entry_problems(folder: Path, name: str) -> Iterator[str]:
    """Look at the action's own files, and at all that is not another action's: roles, plugins, included tasks."""
    place, seen = folder.resolve(), 0
    for path in _walk(folder):
        seen += 1
        if seen > MAX_ENTRIES:
            yield f"{folder} holds more than {MAX_ENTRIES} entries"
            return
        if _is_another_actions(path, folder, name):
            continue
        real = path.resolve()
        if not real.is_relative_to(place):
            yield f"{path.relative_to(folder)} leads out of the folder"
        elif not real.exists():
            yield f"{path.relative_to(folder)} leads nowhere"
        elif reason := _writer_of(real.stat(), real):
            yield f"{path.relative_to(folder)} {reason}"
    if not (folder / f"{name}.yml").is_file():
        yield f"{name}.yml is not a file"


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")  # Ansible reads nothing there
        yield from (Path(root, entry) for entry in (*folders, *files))


def _is_another_actions(path: Path, folder: Path, name: str) -> bool:
    if path.parent != folder or not path.name.endswith((".yml", SCHEMA_SUFFIX)):
        return False
    return path.name not in (f"{name}.yml", f"{name}{SCHEMA_SUFFIX}")


def _writer_of(facts: os.stat_result, path: Path) -> str:
    """Say who, other than root and we, may write here; '' when nobody may."""
    if facts.st_uid not in (0, os.geteuid()):
        return f"belongs to user {facts.st_uid}, neither to root nor to us"
    if facts.st_mode & 0o022 and not _is_read_only(path):
        who = "everybody" if facts.st_mode & stat.S_IWOTH else "its group"
        return f"may be written by {who} (mode {stat.S_IMODE(facts.st_mode):04o})"
    return ""


def _is_read_only(path: Path) -> bool:
    """A mount that is read-only, such as a Kubernetes ConfigMap: its modes say nothing."""
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
