"""Makes the payloads of the Ansible modules that our action plugins call: once for all warm runs, before the fork.

A warm run is a fork of a server process that has already imported Ansible. A payload is a zip file of a module and the
files that the module imports. By default, Ansible makes a module's payload in each run (0.2 s of CPU time) and keeps it
in the run's temporary folder. Instead, the server makes the payloads at its start (0.7 s of CPU time), and each run
links them into its temporary folder.

The module `patches` lists the functions, classes and settings of Ansible that are used or replaced here. `get_value`
returns the function, class or setting, and `set_value` replaces it in this process.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from executor.runs.warm import patches
from executor.runs.warm.module_script import PROXMOX_MODULE_PREFIX

#: The modules of community.proxmox that our action plugins call. The server imports them from the installed
#: collection. A module that this collection lacks is skipped.
CALLED_PROXMOX_MODULES = ("proxmox", "proxmox_disk", "proxmox_kvm", "proxmox_snap")
#: Files of a payload that Ansible generates. Their contents differ from the installed files of the same names.
GENERATED_FILES = ("ansible/__init__.py", "ansible/module_utils/__init__.py")
#: Name of the folder in which Ansible keeps payloads. It is in Ansible's local temporary folder.
PAYLOAD_CACHE_FOLDER = "ansiballz_cache"

#: The inode, size and modification time of a file. At least one of them differs after a change of the file.
FileState = list[int]


class Payloads:
    """The payloads that a server has made. Except for GENERATED_FILES, they contain only copies of installed files."""

    def __init__(self, local_tmp: Path) -> None:
        """Make the payloads of CALLED_PROXMOX_MODULES in Ansible's temporary folder `local_tmp`.

        A module that the server has not imported is skipped.
        """
        self._payload_files: list[Path] = []
        self._payload_digests: dict[str, str] = {}  #: maps the full name of each module to the digest of its payload
        self.installed_files: set[Path] = set()  #: the files whose copies the payloads contain
        with _parsing_each_file_once():
            for name in CALLED_PROXMOX_MODULES:
                with contextlib.suppress(Exception):  # a run that calls this module reports the error
                    self._make_payload(name, local_tmp)

    def link_into(self, local_tmp: Path) -> None:
        """Link the payloads into a run's temporary folder, in which Ansible then finds them."""
        folder = local_tmp / PAYLOAD_CACHE_FOLDER
        folder.mkdir(mode=0o700)
        for file in self._payload_files:
            os.link(file, folder / file.name)

    def contains_only_installed_files(self, module: str, zip_data: bytes | str) -> bool:
        """True if a payload contains only copies of installed files, as the server's payloads do.

        If so, a warm run may call the module in its own process, instead of in a new Python process. `zip_data` is the
        payload in base64.
        """
        return self._payload_digests.get(module) == _digest(zip_data) or bool(find_installed_files(zip_data))

    def _make_payload(self, name: str, local_tmp: Path) -> None:
        module = PROXMOX_MODULE_PREFIX + name
        if module not in sys.modules:
            return
        patches.MODIFY_MODULE.get_value()(
            module_name=f"community.proxmox.{name}",
            module_path=sys.modules[module].__file__,
            module_args={},
            templar=patches.TEMPLAR.get_value()(loader=patches.DATA_LOADER.get_value()()),
            task_vars={"ansible_python_interpreter": sys.executable},
            module_compression="ZIP_DEFLATED",
        )
        # Ansible ends the file's name with `none` if the module runs without coverage and without a debugger.
        for file in (local_tmp / PAYLOAD_CACHE_FOLDER).glob(f"{module}-*-none"):
            zip_data = pickle.loads(file.read_bytes()).zip_data  # noqa: S301  this process has written the file
            if installed_files := find_installed_files(zip_data):
                self._payload_files.append(file)
                self._payload_digests[module] = _digest(zip_data)
                self.installed_files.update(installed_files)


@contextlib.contextmanager
def _parsing_each_file_once() -> Iterator[None]:
    """Make Ansible parse each file only once, even if several modules import it. This halves the CPU time."""
    original_function = patches.COMPILE_MODULE_AST.get_value()
    patches.COMPILE_MODULE_AST.set_value(cache(original_function))
    try:
        yield
    finally:
        patches.COMPILE_MODULE_AST.set_value(original_function)


def find_installed_files(zip_data: bytes | str) -> list[Path] | None:
    """Return the installed files whose copies a payload contains; None if a file in the payload is not installed.

    `zip_data` is the payload in base64. Empty files and GENERATED_FILES are skipped.
    """
    installed_files = []
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(zip_data))) as payload:
        for name in payload.namelist():
            content = payload.read(name)
            if not content.strip() or name in GENERATED_FILES:
                continue
            installed_file = _find_installed_file(name)
            if installed_file is None or installed_file.read_bytes() != content:
                return None
            installed_files.append(installed_file)
    return installed_files


def read_file_state(file: Path | str) -> FileState:
    """Return the inode, size and modification time of a file."""
    status = os.stat(file)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _digest(zip_data: bytes | str) -> str:
    data = zip_data.encode() if isinstance(zip_data, str) else zip_data
    return hashlib.sha256(data).hexdigest()


def _find_installed_file(name: str) -> Path | None:
    """Return the installed file with this name in a payload, such as `ansible/module_utils/basic.py`."""
    candidates = (folder / name for folder in _import_folders())
    return next((file for file in candidates if file.is_file()), None)


@cache
def _import_folders() -> Iterable[Path]:
    """Return the folders of COLLECTIONS_PATHS and `sys.path` that contain collections or the package `ansible`."""
    folders = [Path(entry) for entry in (*patches.COLLECTIONS_PATHS.get_value(), *sys.path) if entry]
    return [folder for folder in folders if (folder / "ansible_collections").is_dir() or (folder / "ansible").is_dir()]
