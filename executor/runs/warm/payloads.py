"""Shares the payloads of community.proxmox's modules between warm runs, so that each run need not make them again.

A warm run is a fork of a server process that has already imported Ansible. A payload is a zip file of a module and the
files that the module imports. Ansible makes a module's payload in each run (0.2 s of CPU) and keeps the payload in the
run's temporary folder for later Ansible tasks. At its end, a warm run saves its payloads in a folder, the store, if
they contain only installed files. At its start, a warm run links the saved payloads into its temporary folder. A
payload of which an installed file has changed since is not linked.
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
MODULES = "ansible_collections.community.proxmox.plugins.modules."
#: Files of a payload that Ansible generates. They differ from the installed files of the same names.
GENERATED = ("ansible/__init__.py", "ansible/module_utils/__init__.py")
#: Name of the folder, in Ansible's local temporary folder, in which Ansible keeps payloads. The name of a payload's
#: file is `<module>-<compression>-<extensions>`.
CACHE = "ansiballz_cache"
PAYLOAD_SUFFIX = "-ZIP_DEFLATED-none"
#: Suffix of the file beside a saved payload that contains the payload's hash and the stamps of its installed files.
SOURCES_SUFFIX = ".sources"

#: The inode, size and modification time of a file. At least one of them differs after a change of the file.
FileStamp = list[int]


def store_in(server_folder: str) -> Path:
    """Return the store: the folder with the payloads and the byte code that warm runs share."""
    return Path(server_folder, "payloads")


def find_sources(zip_data: bytes | str) -> list[Path] | None:
    """Return the installed files of which a payload consists; None if the payload contains any other file."""
    sources = []
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(zip_data))) as payload:
        for name in payload.namelist():
            content = payload.read(name)
            if not content.strip() or name in GENERATED:
                continue
            source = _installed(name)
            if source is None or source.read_bytes() != content:
                return None
            sources.append(source)
    return sources


def is_of_known_sources(store: Path, module: str, zip_data: bytes | str) -> bool:
    """True if an earlier run saved exactly this payload, and no installed file of the payload has changed since."""
    try:
        known = json.loads(Path(store, f"{module}{PAYLOAD_SUFFIX}{SOURCES_SUFFIX}").read_text(encoding="utf-8"))
        return bool(known["sha256"] == _digest(zip_data) and _are_unchanged(known["stamps"]))
    except (OSError, ValueError):
        return False


def link_saved(store: Path, local_tmp: Path) -> None:
    """Link the saved payloads into a run's temporary folder, if their installed files have not changed."""
    cache_folder = local_tmp / CACHE
    cache_folder.mkdir(mode=0o700)
    for sources in store.glob(f"*{SOURCES_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if _are_unchanged(json.loads(sources.read_text(encoding="utf-8"))["stamps"]):
                os.link(sources.with_suffix(""), cache_folder / sources.stem)


def save(store: Path, local_tmp: Path) -> None:
    """Save the payloads that this run has made.

    A file with a second link is a payload from the store and is skipped.
    """
    for payload in (local_tmp / CACHE).glob(f"{MODULES}*{PAYLOAD_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if payload.stat().st_nlink == 1:
                _save(store, payload)


def _save(store: Path, payload: Path) -> None:
    """Save a payload, and then the file with the stamps of its installed files.

    A payload without that file is ignored.
    """
    zip_data = pickle.loads(payload.read_bytes()).zip_data  # noqa: S301  this process has written the file
    sources = find_sources(zip_data)
    if sources is None:
        return
    stamps = {str(source): stamp_of(source) for source in sources}
    known = json.dumps({"sha256": _digest(zip_data), "stamps": stamps})
    target = store / payload.name
    listed, partial = Path(f"{target}{SOURCES_SUFFIX}"), Path(f"{target}.{os.getpid()}")
    listed.unlink(missing_ok=True)
    for content, final in ((payload.read_bytes(), target), (known.encode(), listed)):
        partial.write_bytes(content)
        partial.rename(final)


def _digest(zip_data: bytes | str) -> str:
    return hashlib.sha256(zip_data.encode() if isinstance(zip_data, str) else zip_data).hexdigest()


def stamp_of(file: Path | str) -> FileStamp:
    """Return the inode, size and modification time of a file, by which a change of the file is detected."""
    status = os.stat(file)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _are_unchanged(stamps: dict[str, FileStamp]) -> bool:
    return all(stamp_of(file) == stamp for file, stamp in stamps.items())


def _installed(name: str) -> Path | None:
    """Return the installed file with this name in a payload, such as `ansible/module_utils/basic.py`."""
    return next((path for root in _roots() if (path := root / name).is_file()), None)


@cache
def _roots() -> Iterable[Path]:
    """Return the folders of the import path that contain Ansible or collections."""
    roots = [Path(entry) for entry in sys.path if entry]
    return [root for root in roots if (root / "ansible_collections").is_dir() or (root / "ansible").is_dir()]
