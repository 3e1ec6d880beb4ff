"""Shares the payloads of community.proxmox's modules between warm runs, so that each run need not make them again.

A warm run is a fork of a server process that has already imported Ansible. A payload is a zip file of a module and the
files that the module imports. Ansible makes a module's payload in each run (0.2 s of CPU time) and keeps the payload in
the run's temporary folder for later Ansible tasks. At its end, a warm run saves its payloads in a folder, the store. It
saves only payloads that consist of installed files. At its start, a warm run links the saved payloads into its
temporary folder, except payloads of which an installed file has changed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

#: The beginning of the names of the modules that may run in the module server. These modules only send requests to an
#: API and start no process.
MODULE_PREFIX = "ansible_collections.community.proxmox.plugins.modules."
#: Files of a payload that Ansible generates. Their contents differ from the installed files of the same names.
GENERATED_FILES = ("ansible/__init__.py", "ansible/module_utils/__init__.py")
#: Name of the folder in which Ansible keeps payloads. It is in Ansible's local temporary folder.
PAYLOAD_CACHE = "ansiballz_cache"
#: The end of the name of a payload's file, which is `<module>-<compression>-<extensions>`.
PAYLOAD_SUFFIX = "-ZIP_DEFLATED-none"
#: Beside each saved payload is a file with this suffix. It contains the payload's hash and the stamps of the payload's
#: sources. These are the installed files of which the payload consists.
SOURCES_SUFFIX = ".sources"

#: The inode, size and modification time of a file. At least one of them differs after a change of the file.
FileStamp = list[int]


def store_folder(server_folder: str) -> Path:
    """Return the store: the folder with the payloads and the byte code that warm runs share."""
    return Path(server_folder, "payloads")


def find_installed_files(zip_data: bytes | str) -> list[Path] | None:
    """Return the installed files of which a payload consists; None if the payload contains any other file.

    Empty files and GENERATED_FILES are skipped.
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


def is_saved_and_current(store: Path, module: str, zip_data: bytes | str) -> bool:
    """True if an earlier run saved exactly this payload, and no installed file of the payload has changed since."""
    try:
        sources_file = Path(store, f"{module}{PAYLOAD_SUFFIX}{SOURCES_SUFFIX}")
        saved = json.loads(sources_file.read_text(encoding="utf-8"))
        return bool(saved["sha256"] == _digest(zip_data) and _are_unchanged(saved["stamps"]))
    except (OSError, ValueError):
        return False


def link_saved(store: Path, local_tmp: Path) -> None:
    """Link the saved payloads into a run's temporary folder, if their installed files have not changed."""
    cache_folder = local_tmp / PAYLOAD_CACHE
    cache_folder.mkdir(mode=0o700)
    for sources_file in store.glob(f"*{SOURCES_SUFFIX}"):
        payload = sources_file.with_suffix("")
        with contextlib.suppress(OSError, ValueError):
            saved = json.loads(sources_file.read_text(encoding="utf-8"))
            if _are_unchanged(saved["stamps"]):
                os.link(payload, cache_folder / payload.name)


def save(store: Path, local_tmp: Path) -> None:
    """Save the payloads that this run has made. Skip the payloads that `link_saved` has linked."""
    for payload in (local_tmp / PAYLOAD_CACHE).glob(f"{MODULE_PREFIX}*{PAYLOAD_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            is_linked = payload.stat().st_nlink > 1
            if not is_linked:
                _save_payload(store, payload)


def _save_payload(store: Path, payload: Path) -> None:
    """Save a payload, if it consists of installed files. Then save the file with the stamps of these files.

    A saved payload without a file of stamps is not used.
    """
    zip_data = pickle.loads(payload.read_bytes()).zip_data  # noqa: S301  this process has written the file
    installed_files = find_installed_files(zip_data)
    if installed_files is None:
        return
    stamps = {str(file): stamp_of(file) for file in installed_files}
    sources = json.dumps({"sha256": _digest(zip_data), "stamps": stamps})
    saved_payload = store / payload.name
    sources_file = Path(f"{saved_payload}{SOURCES_SUFFIX}")
    partial_file = Path(f"{saved_payload}.{os.getpid()}")  # both files are written under this name, then renamed
    sources_file.unlink(missing_ok=True)
    for content, target in ((payload.read_bytes(), saved_payload), (sources.encode(), sources_file)):
        partial_file.write_bytes(content)
        partial_file.rename(target)


def _digest(zip_data: bytes | str) -> str:
    data = zip_data.encode() if isinstance(zip_data, str) else zip_data
    return hashlib.sha256(data).hexdigest()


def stamp_of(file: Path | str) -> FileStamp:
    """Return the inode, size and modification time of a file."""
    status = os.stat(file)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _are_unchanged(stamps: dict[str, FileStamp]) -> bool:
    return all(stamp_of(file) == stamp for file, stamp in stamps.items())


def _find_installed_file(name: str) -> Path | None:
    """Return the installed file with this name in a payload, such as `ansible/module_utils/basic.py`."""
    candidates = (folder / name for folder in _import_folders())
    return next((file for file in candidates if file.is_file()), None)


@cache
def _import_folders() -> Iterable[Path]:
    """Return the folders of the import path that contain Ansible or collections."""
    folders = [Path(entry) for entry in sys.path if entry]
    return [folder for folder in folders if (folder / "ansible_collections").is_dir() or (folder / "ansible").is_dir()]
