"""Makes and removes the private folder of a run, which contains the run's extra vars, credentials and temporary files.

The folder is on tmpfs, and only the agent's user can read it. So its files may contain secrets. The command-line
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

from executor.errors import JobError
from executor.log import get_logger
from executor.processes import process_tree
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

log = get_logger(__name__)

#: Environment variable with the path of the run's credentials file. The inventory's group_vars read the file.
#: `find_processes_of_runs` recognises the processes of a run by this variable.
CREDENTIALS_VARIABLE = "SMITH_CREDENTIALS_FILE"
#: Environment variable with the run's ident, for operators who list processes.
IDENT_VARIABLE = "SMITH_RUN_IDENT"
#: The names of the credentials that are secrets.
SECRET_CREDENTIALS = ("api_token_secret", "api_password")

#: Name of a file in each private folder. The agent that makes the folder writes the file. At its start, an agent
#: removes the private folders of earlier agent processes, and it recognises them by this file.
CREATED_BY_AGENT_FILE = ".agent-smith"
#: Matches a run's ident: up to 128 letters, digits, dashes and underscores, of which the first is a letter or digit.
_IDENT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
#: Length of the text that Python's multiprocessing appends to TMPDIR for the path of a Unix socket. ansible-core 2.21
#: opens such a socket in each run.
_SOCKET_SUFFIX_BYTES = len("/pymp-12345678/listener-12345678")
#: Maximum length of the path of a Unix socket, without the NUL byte at its end (unix(7)).
_MAX_SOCKET_PATH_BYTES = 107


@contextlib.contextmanager
def private_folder(run_dir: Path, ident: str) -> Iterator[Path]:
    """Make the private folder of one run. Remove the folder and its content at the end of the block.

    `run_dir` is the folder that contains the private folders of all runs.
    """
    folder = run_dir / validate_ident(ident)
    folder.mkdir(mode=0o700)
    try:
        write_text(folder / CREATED_BY_AGENT_FILE, "")
        make_subfolders(folder)
        _make_short_link(folder)
        yield folder
    finally:
        remove_private_folder(folder)


def is_private_folder_of_run(folder: Path) -> bool:
    """True if `folder` is the private folder of a run, made by an agent. A link to such a folder does not count."""
    if not is_valid_ident(folder.name) or not is_folder_of_this_user(folder):
        return False
    try:
        return stat.S_ISREG((folder / CREATED_BY_AGENT_FILE).lstat().st_mode)
    except OSError:
        return False


def is_folder_of_this_user(path: Path) -> bool:
    """True if `path` is a folder that belongs to the user of this process, and not a link to a folder."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def make_subfolders(folder: Path) -> None:
    """Make the subfolders of a run's private folder.

    The run has HOME in `home` and TMPDIR in `tmp`. ansible-runner writes its own files to `runner`.
    """
    for name in ("home", "tmp", "runner"):
        (folder / name).mkdir(mode=0o700)


def remove_private_folder(folder: Path) -> None:
    """Remove a private folder and the link that `_make_short_link` has made. Remove the files with secrets first."""
    for name in ("vm.yml", "credentials.yml"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if (link := _short_link_path(folder)) and link.is_symlink():
            link.unlink()
    with contextlib.suppress(OSError):
        for subfolder in [path for path in folder.iterdir() if is_folder_of_this_user(path)]:
            shutil.rmtree(subfolder, ignore_errors=True)
    # The folder itself is removed last, with CREATED_BY_AGENT_FILE. If the agent crashes before this line, the next
    # agent recognizes the folder by this file and removes the folder.
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.error("private_folder_not_removed", folder=str(folder))


def tmpdir_of_run(folder: Path) -> Path:
    """Return the TMPDIR of a run: the short link to the subfolder `tmp` if the link exists, else the path of `tmp`.

    The link is in a folder to which all users have write access. So a link that another user has made is not used.
    """
    tmp, link = folder / "tmp", _short_link_path(folder)
    with contextlib.suppress(OSError):
        if link and link.lstat().st_uid == os.geteuid() and link.readlink() == tmp:
            return link
    return tmp


def _make_short_link(folder: Path) -> None:
    """Make a link with a short path to a run's temporary folder, if the folder's path is too long for a socket.

    If this fails, `tmpdir_of_run` returns the long path.
    """
    with contextlib.suppress(OSError):
        if link := _short_link_path(folder):
            link.symlink_to(folder / "tmp")


def _short_link_path(folder: Path) -> Path | None:
    """Return the path of the short link to a run's temporary folder; None if the run needs no link.

    A run needs no link if the path of its temporary folder is short enough for a socket in it.
    """
    tmp_path = os.fsencode(folder / "tmp")
    if len(tmp_path) + _SOCKET_SUFFIX_BYTES <= _MAX_SOCKET_PATH_BYTES:
        return None
    path_hash = hashlib.sha256(tmp_path).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"smith-{path_hash}")


def find_processes_of_runs(folder: Path) -> set[int]:
    """Return the ids of all processes of runs whose private folder is `folder` or is inside `folder`."""
    return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{folder}/")


def is_valid_ident(name: str) -> bool:
    """True if the name can be the ident of a run."""
    return _IDENT_PATTERN.match(name) is not None


def validate_ident(ident: str) -> str:
    """Return the ident. Raises ValueError if the ident is not safe as a folder's name."""
    if not is_valid_ident(ident):
        raise ValueError(f"not a run ident: {ident!r}")
    return ident


# --- credentials and extra vars ---------------------------------------------------------------------------------------


def ansible_credentials(settings: Settings) -> dict[str, Any]:
    """Return the login at Proxmox, as parameters of the modules of community.proxmox."""
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
    """Write `credentials`, a result of `ansible_credentials`, to a new file that only the agent's user can read."""
    _write_yaml(file, credentials, yaml.SafeDumper)


def write_extra_vars(file: Path, vm: dict[str, Any]) -> None:
    """Write the extra var `vm` for ansible-playbook to a YAML file.

    The value of `vm` has the YAML tag !unsafe, which keeps Ansible from evaluating templates in the value.

    Raises JobError INVALID_REQUEST when a string is not valid Unicode.
    """
    try:
        _write_yaml(file, {"vm": _UntrustedDict(vm)}, _UntrustedDumper)
    except UnicodeEncodeError as error:
        raise JobError(ErrorCode.INVALID_REQUEST, "a value of the job is not valid Unicode text") from error


def write_text(file: Path, text: str) -> None:
    """Write the text to a new file that only the agent's user can read."""
    data = text.encode("utf-8")
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as open_file:
        open_file.write(data)


def _write_yaml(file: Path, value: Any, dumper: type[yaml.SafeDumper]) -> None:
    write_text(file, yaml.dump(value, Dumper=dumper, allow_unicode=True, width=1_000_000))


class _UntrustedDict(dict[str, Any]):
    """A dict whose strings Ansible must not evaluate as templates."""


class _UntrustedDumper(yaml.SafeDumper):
    """Writes an `_UntrustedDict` as YAML with one tag !unsafe, which Ansible applies to all values in the dict.

    If each string had its own tag !unsafe, ansible-core would ignore the string's quotes and guess the type of the
    value. A password "012" would become 10, because YAML reads 012 as an octal number, and a name "yes" would become
    true (tried with 2.19).
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True  # write a repeated value in full each time, not as a YAML alias


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # This line raises UnicodeEncodeError for an unpaired surrogate, which PyYAML would write as an escape sequence that
    # Ansible rejects.
    text.encode("utf-8")
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


_UntrustedDumper.add_representer(_UntrustedDict, lambda dumper, data: dumper.represent_mapping("!unsafe", data))
_UntrustedDumper.add_representer(str, _represent_text)
_UntrustedDumper.add_multi_representer(str, _represent_text)
