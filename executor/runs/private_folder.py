"""Makes and removes the private folder of a run, which holds its extra vars, credentials and temporary files.

The folder is on tmpfs and only the agent's user can read it, so its files may contain secrets. The command-line
arguments and the environment variables of a run contain no secrets.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from executor.errors import ErrorCode, JobError, SettingsError
from executor.log import get_logger
from executor.processes import process_tree
from executor.settings.settings import Settings

log = get_logger(__name__)

#: Environment variable with the path of the run's credentials file. The inventory's group_vars read that file, and
#: `processes_in` recognises a run's processes by the variable.
CREDENTIALS_VARIABLE = "SMITH_CREDENTIALS_FILE"
#: Environment variable with the run's ident, for operators who list processes.
IDENT_VARIABLE = "SMITH_RUN_IDENT"
#: The members of the credentials that are secret.
SECRET_CREDENTIALS = ("api_token_secret", "api_password")

_IDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}\Z")
#: Length of the text that Python's multiprocessing appends to TMPDIR to make the path of a Unix socket. ansible-core
#: 2.21 opens such a socket in each run.
_SOCKET_BYTES = len("/pymp-12345678/listener-12345678")
#: Maximum length of a Unix socket's path (unix(7)).
_MAX_SOCKET_BYTES = 107


@contextlib.contextmanager
def private_folder(run_dir: Path, ident: str) -> Iterator[Path]:
    """Make the private folder of one run. Remove it with its content at the end of the block."""
    folder = run_dir / checked_ident(ident)
    make_private(run_dir)
    folder.mkdir(mode=0o700)
    try:
        make_subfolders(folder)
        _shorten_tmp(folder)
        yield folder
    finally:
        remove(folder)


def make_private(folder: Path) -> None:
    """Make the folder, if it is missing, and restrict access to the agent's user.

    Raises SettingsError when the folder belongs to another user. All users may have write access to its parent, as they
    have to /dev/shm, so another user may have made a folder of this name.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise SettingsError(
            f"SMITH_RUN_DIR {folder} belongs to another user: set a folder that only the agent's user can read"
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def make_subfolders(folder: Path) -> None:
    """Make the subfolders of a run's private folder."""
    for name in ("home", "tmp", "runner"):
        (folder / name).mkdir(mode=0o700)


def remove(folder: Path) -> None:
    """Remove a private folder. The files with secrets are removed first."""
    for name in ("vm.yml", "credentials.yml"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if (link := _link_to_tmp(folder)) and link.is_symlink():
            link.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.error("private_folder_not_removed", folder=str(folder))


def tmp_of(folder: Path) -> Path:
    """Return the TMPDIR of a run: the short link to the subfolder `tmp` if the link exists, else `tmp` itself.

    The link is in a folder to which all users have write access. A link that another user has made is not used.
    """
    tmp, link = folder / "tmp", _link_to_tmp(folder)
    with contextlib.suppress(OSError):
        if link and link.lstat().st_uid == os.geteuid() and link.readlink() == tmp:
            return link
    return tmp


def _shorten_tmp(folder: Path) -> None:
    """Make a link with a short path to the temporary folder. If this fails, `tmp_of` returns the long path."""
    with contextlib.suppress(OSError):
        if link := _link_to_tmp(folder):
            link.symlink_to(folder / "tmp")


def _link_to_tmp(folder: Path) -> Path | None:
    """Return the path of a short link to a run's temporary folder.

    Return None when the path of the temporary folder is short enough for a socket in it.
    """
    tmp = os.fsencode(folder / "tmp")
    if len(tmp) + _SOCKET_BYTES <= _MAX_SOCKET_BYTES:
        return None
    return Path(tempfile.gettempdir(), f"smith-{hashlib.sha256(tmp).hexdigest()[:16]}")


def processes_in(folder: Path) -> set[int]:
    """Return the ids of all processes of runs whose private folder is `folder` or is inside `folder`."""
    return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{folder}/")


def checked_ident(ident: str) -> str:
    """Return the ident if it is safe as a folder's name. Raises ValueError."""
    if not _IDENT.match(ident):
        raise ValueError(f"not a run ident: {ident!r}")
    return ident


# --- files ------------------------------------------------------------------------------------------------------------


def module_credentials(settings: Settings) -> dict[str, Any]:
    """Return the login for the modules of community.proxmox. Its keys are the names of the modules' parameters."""
    credentials: dict[str, Any] = {
        "api_host": settings.proxmox_host,
        "api_port": settings.proxmox_port,
        "api_user": settings.proxmox_user,
        "validate_certs": settings.proxmox_validate_certs,
    }
    if settings.proxmox_token_id:
        secret = settings.proxmox_token_secret.get_secret_value()
        return credentials | {"api_token_id": settings.proxmox_token_id, "api_token_secret": secret}
    return credentials | {"api_password": settings.proxmox_password.get_secret_value()}


def write_credentials(file: Path, credentials: dict[str, Any]) -> None:
    """Write the modules' login to a file that only the agent's user can read."""
    _write_yaml(file, credentials, yaml.SafeDumper)


def write_extra_vars(file: Path, vm: dict[str, Any]) -> None:
    """Write the extra var `vm` for ansible-playbook, marked so that Ansible evaluates no string in it as a template.

    Raises JobError INVALID_REQUEST when a string is not valid Unicode.
    """
    try:
        _write_yaml(file, {"vm": _Untrusted(vm)}, _DataDumper)
    except UnicodeEncodeError as error:
        raise JobError(ErrorCode.INVALID_REQUEST, "a value is not valid Unicode text") from error


def write_text(file: Path, text: str) -> None:
    """Write a new file that only the agent's user can read."""
    data = text.encode("utf-8")
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(data)


def _write_yaml(file: Path, value: Any, dumper: type[yaml.SafeDumper]) -> None:
    write_text(file, yaml.dump(value, Dumper=dumper, allow_unicode=True, width=1_000_000))


class _Untrusted(dict[str, Any]):
    """A dict in which Ansible must not evaluate any string as a template."""


class _DataDumper(yaml.SafeDumper):
    """Writes an `_Untrusted` dict as YAML with the tag !unsafe, which Ansible applies to all values in it.

    The strings in the dict do not get a tag of their own. For a string with the tag !unsafe, ansible-core ignores the
    quotes and guesses the type: a password "012" becomes 10, and a name "yes" becomes true (tried with 2.19).
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # This raises an error for an unpaired surrogate. PyYAML would write it as an escape sequence that Ansible rejects.
    text.encode("utf-8")
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


_DataDumper.add_representer(_Untrusted, lambda dumper, data: dumper.represent_mapping("!unsafe", data))
_DataDumper.add_representer(str, _represent_text)
_DataDumper.add_multi_representer(str, _represent_text)
