"""Step 5 of a job's processing (ARCHITECTURE.md): finds the playbook of an action and refuses an unsafe playbook.

The playbook of an action is the file `<action>.yml`. "Our" actions are the actions that Agent Smith contains. The
provider is the organisation that operates the agent. The provider may have a folder with more actions
(SMITH_ACTIONS_PATH), which is searched before the folder of our actions. Beside a playbook, the provider's folder may
contain a JSON Schema `<action>.schema.json` for the service's properties. The provider's playbooks run with the agent's
credentials for Proxmox, so only root and the user of the agent process may have write access to the folder. An unsafe
action of the provider is refused, even if we have an action of the same name.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.errors import JobError
from executor.log import get_logger
from executor.shared.error_codes import ErrorCode

log = get_logger(__name__)

#: Matches the name of an action: a lower-case letter, then up to 49 lower-case letters, digits, `_` and `-`.
ACTION_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,49}\Z")
#: The folder of our collection in an installed package, relative to the package. Ansible finds the collection only if
#: the path of the folder ends with the last three parts.
INSTALLED_COLLECTION = ("ansible", "ansible_collections", "agent_smith", "proxmox")
SCHEMA_SUFFIX = ".schema.json"
#: Maximum number of files and folders in a provider's folder. A larger folder is refused, because SMITH_ACTIONS_PATH
#: probably names a wrong folder, such as a home folder.
MAX_FOLDER_ENTRIES = 5_000
#: Maximum length of an unknown action's name in an error message.
MAX_QUOTED_NAME_LENGTH = 60


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
    replaces_ours: bool  #: True for a provider's action that has the same name as one of our actions
    problem: str  #: why the action is refused; '' if it may be run


def collection_folder() -> Path:
    """Return the folder of our Ansible collection: it contains `playbooks`, `roles`, `plugins` and `ansible.cfg`.

    For an installed package, it is a subfolder of the package. In a checkout, it is the root of the repository.
    """
    package_folder = Path(__file__).resolve().parents[1]
    installed_folder = package_folder.joinpath(*INSTALLED_COLLECTION)
    return installed_folder if installed_folder.is_dir() else package_folder.parent


def find_safe_action(name: str, folders: Sequence[Path]) -> Action:
    """Return the action `name` from the first folder that contains the action's playbook. The last folder is ours.

    Raises JobError UNSUPPORTED_ACTION when no folder has the playbook, or when a provider's playbook is unsafe.
    """
    if ACTION_PATTERN.match(name):
        for folder in folders:
            playbook = folder / f"{name}.yml"
            if not os.path.lexists(playbook):
                continue
            is_ours = folder == folders[-1]
            if reason := _why_refused(folder, name, is_ours=is_ours):
                log.warning("action_refused", action=name, reason=reason)
                raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"the action {name} is refused: {reason}")
            return Action(name=name, playbook=playbook, schema=_find_schema(playbook, is_ours=is_ours), is_ours=is_ours)
    raise JobError(ErrorCode.UNSUPPORTED_ACTION, f"no playbook for the action {name[:MAX_QUOTED_NAME_LENGTH]!r}")


def list_all_actions(folders: Sequence[Path]) -> list[ListedAction]:
    """Return all actions, sorted by name, including the actions that `find_safe_action` refuses."""
    actions: dict[str, ListedAction] = {}
    for folder in reversed(folders):
        is_ours = folder == folders[-1]
        for playbook in sorted(folder.glob("*.yml")):
            actions[playbook.stem] = ListedAction(
                name=playbook.stem,
                playbook=playbook,
                has_schema=_find_schema(playbook, is_ours=is_ours) is not None,
                is_ours=is_ours,
                replaces_ours=playbook.stem in actions,
                problem=_why_refused(folder, playbook.stem, is_ours=is_ours),
            )
    return [actions[name] for name in sorted(actions)]


def _find_schema(playbook: Path, *, is_ours: bool) -> Path | None:
    """Return the schema beside a provider's playbook; None if there is none. Our actions have no schema."""
    schema = playbook.with_name(f"{playbook.stem}{SCHEMA_SUFFIX}")
    return schema if not is_ours and os.path.lexists(schema) else None


# ---------------------------------------------------------------------------------------------------------------
# The functions below decide whether an action is safe to run.


def _why_refused(folder: Path, name: str, *, is_ours: bool) -> str:
    """Return why the action is refused; '' if it may be run."""
    if not ACTION_PATTERN.match(name):
        return "its name is not a valid action name"
    if is_ours:
        return "" if (folder / f"{name}.yml").is_file() else f"{name}.yml is not a file"
    try:
        return _why_folder_unsafe(folder) or next(_why_content_unsafe(folder, name), "")
    except OSError as error:
        return f"its folder cannot be read: {error.strerror}"
    except RuntimeError:  # Python before 3.13 raises this error for a loop of links
        return "its folder contains a loop of links"


def _why_folder_unsafe(folder: Path) -> str:
    """Return why users other than root and the agent's user can change or replace the folder; '' if they cannot."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    real_folder = folder.resolve()
    if reason := _why_writable_by_others(real_folder.stat(), real_folder):
        return f"{real_folder} {reason}"
    for parent in real_folder.parents:
        parent_status = parent.stat()
        # In a sticky folder, such as /tmp, only the owner of an entry or of the folder may replace the entry.
        is_protected_by_sticky_bit = parent_status.st_mode & stat.S_ISVTX and parent_status.st_uid in (0, os.geteuid())
        if not is_protected_by_sticky_bit and (reason := _why_writable_by_others(parent_status, parent)):
            return f"{parent}, a parent folder, {reason}"
    return ""


def _why_content_unsafe(folder: Path, name: str) -> Iterator[str]:
    """Yield each reason why the files and subfolders that the action may use are unsafe.

    These are the action's playbook and schema, and all roles, plugins and included task files. The playbooks and
    schemas of other actions are not checked.
    """
    real_folder = folder.resolve()
    for number, path in enumerate(_list_entries(folder), start=1):
        if number > MAX_FOLDER_ENTRIES:
            yield f"{folder} has more than {MAX_FOLDER_ENTRIES} entries"
            return
        if _belongs_to_another_action(path, folder, name):
            continue
        real_path = path.resolve()
        if not real_path.is_relative_to(real_folder):
            yield f"{path.relative_to(folder)} is a link out of the folder"
        elif not real_path.exists():
            yield f"{path.relative_to(folder)} is a broken link"
        elif reason := _why_writable_by_others(real_path.stat(), real_path):
            yield f"{path.relative_to(folder)} {reason}"
    if not (folder / f"{name}.yml").is_file():
        yield f"{name}.yml is not a file"


def _list_entries(folder: Path) -> Iterator[Path]:
    """Return all files and folders below the folder. Skip folders named `.git`, which Ansible does not read."""
    for parent, subfolders, files in os.walk(folder):
        if ".git" in subfolders:
            subfolders.remove(".git")  # os.walk then skips this folder
        yield from (Path(parent, name) for name in (*subfolders, *files))


def _belongs_to_another_action(path: Path, folder: Path, name: str) -> bool:
    """True for the playbook and the schema of an action with another name."""
    if path.parent != folder or not path.name.endswith((".yml", SCHEMA_SUFFIX)):
        return False
    return path.name not in (f"{name}.yml", f"{name}{SCHEMA_SUFFIX}")


def _why_writable_by_others(file_status: os.stat_result, path: Path) -> str:
    """Return why users other than root and the agent's user may have write access; '' if they have none."""
    if file_status.st_uid not in (0, os.geteuid()):
        return f"is owned by user {file_status.st_uid}, not by root or the agent's user"
    is_writable_by_others = file_status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if is_writable_by_others and not _is_read_only(path):
        writers = "all users" if file_status.st_mode & stat.S_IWOTH else "its group"
        return f"is writable by {writers} (mode {stat.S_IMODE(file_status.st_mode):04o})"
    return ""


def _is_read_only(path: Path) -> bool:
    """True when the path is on a read-only mount, such as a Kubernetes ConfigMap.

    No user can write to a file on such a mount, even if the file's mode allows writing.
    """
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
