"""Step 5 of a job's processing (ARCHITECTURE.md): finds the playbook of an action and refuses an unsafe playbook.

The playbook of an action is the file `<action>.yml`. "Our" actions are the actions that Agent Smith contains. The
provider that operates the agent may have a folder with more actions (SMITH_ACTIONS_PATH). Beside a playbook, the
provider's folder may contain a JSON Schema `<action>.schema.json` for the service's properties. The provider's folder
is searched before ours. The provider's playbooks run with the agent's credentials for Proxmox, so only root and the
agent's user may have write access to the folder. An unsafe action of the provider is refused, even if we have an action
of the same name.
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
#: A provider's folder with more entries is refused, because SMITH_ACTIONS_PATH probably names a wrong folder, such as a
#: home folder.
MAX_ENTRIES = 5_000


@dataclass(frozen=True, kw_only=True)
class Action:
    """An action whose playbook is safe to run."""

    name: str
    playbook: Path
    schema: Path | None  #: the JSON Schema for the service's properties; only a provider's action may have one
    is_ours: bool  #: True if Agent Smith contains the action, False if it is from the provider's folder


@dataclass(frozen=True, kw_only=True)
class ListedAction:
    """One row of `smith actions list`: an action, whether or not it may be run."""

    name: str
    playbook: Path
    has_schema: bool
    is_ours: bool
    replaces_ours: bool  #: True for a provider's action with the name of an action of ours
    problem: str  #: why the action is refused; '' if it may be run


def ansible_home() -> Path:
    """Return the folder that contains our `playbooks` and `roles`.

    It is the folder `ansible` in an installed package, or the root of a checkout.
    """
    package = Path(__file__).resolve().parents[1]
    bundled = package / "ansible"
    return bundled if bundled.is_dir() else package.parent


def find(name: str, folders: Sequence[Path]) -> Action:
    """Return the action `name` from the first folder that has its playbook. The last folder is ours.

    Raises JobError UNSUPPORTED_ACTION when no folder has the playbook, or when the playbook is a provider's and unsafe.
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


def list_all(folders: Sequence[Path]) -> list[ListedAction]:
    """Return all actions, sorted by name, including the actions that `find` refuses."""
    actions: dict[str, ListedAction] = {}
    for folder in reversed(folders):
        is_ours = folder == folders[-1]
        for playbook in sorted(folder.glob("*.yml")):
            actions[playbook.stem] = ListedAction(
                name=playbook.stem,
                playbook=playbook,
                has_schema=_schema_of(playbook, is_ours) is not None,
                is_ours=is_ours,
                replaces_ours=playbook.stem in actions,
                problem=_refusal(folder, playbook.stem, is_ours=is_ours),
            )
    return [actions[name] for name in sorted(actions)]


def _schema_of(playbook: Path, is_ours: bool) -> Path | None:
    schema = playbook.with_name(f"{playbook.stem}{SCHEMA_SUFFIX}")
    return schema if not is_ours and os.path.lexists(schema) else None


# ---------------------------------------------------------------------------------------------------------------
# These functions decide whether an action is safe to run. Each file in a provider's folder may use our credentials.


def _refusal(folder: Path, name: str, *, is_ours: bool) -> str:
    """Return the reason to refuse the action; '' if it may be run."""
    if not ACTION_PATTERN.match(name):
        return "its name is not a valid action name"
    if is_ours:
        return "" if (folder / f"{name}.yml").is_file() else "it is not a file"
    try:
        return _folder_problem(folder) or next(_entry_problems(folder, name), "")
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except RuntimeError:  # how Python before 3.13 reports a loop of links
        return "it contains a loop of links"


def _folder_problem(folder: Path) -> str:
    """Return a text that states which other user can change or replace the folder; '' if no other user can."""
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
    """Check all entries of the folder that the action may use: its files, roles, plugins and included task files.

    The playbooks and schemas of other actions are not checked.
    """
    root = folder.resolve()
    for number, path in enumerate(_entries(folder), start=1):
        if number > MAX_ENTRIES:
            yield f"{folder} has more than {MAX_ENTRIES} entries"
            return
        if _belongs_to_another_action(path, folder, name):
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


def _entries(folder: Path) -> Iterator[Path]:
    """Return all files and folders below the folder."""
    for root, folders, files in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")  # os.walk then skips this folder, which Ansible does not read
        yield from (Path(root, entry) for entry in (*folders, *files))


def _belongs_to_another_action(path: Path, folder: Path, name: str) -> bool:
    """True for the playbook and the schema of an action with another name."""
    if path.parent != folder or not path.name.endswith((".yml", SCHEMA_SUFFIX)):
        return False
    return path.name not in (f"{name}.yml", f"{name}{SCHEMA_SUFFIX}")


def _unsafe_access(status: os.stat_result, path: Path) -> str:
    """Return a text that states which user, except root and the agent's user, has write access; '' if none has."""
    if status.st_uid not in (0, os.geteuid()):
        return f"is owned by user {status.st_uid}, not by root or the agent's user"
    if status.st_mode & 0o022 and not _is_read_only(path):
        writers = "all users" if status.st_mode & stat.S_IWOTH else "its group"
        return f"is writable by {writers} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _is_read_only(path: Path) -> bool:
    """True when the path is on a read-only mount, such as a Kubernetes ConfigMap.

    There no user can write to the file, even if its mode allows writing.
    """
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
