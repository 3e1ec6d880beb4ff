"""Shares the payloads of community.proxmox's modules between warm runs, so that each is made only once.

A warm run is forked by a server that has already imported Ansible. A payload is a zip file of a module and the files
that it imports. Ansible makes a module's payload in each run (0.2 s of CPU) and keeps it in the run's temporary folder
for later Ansible tasks. At its end a warm run saves its payloads in a folder, the store, if they contain only installed
files. At its start a warm run links the saved payloads whose files have not changed since.
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

#: Prefix of the modules that may run in the module server: they only call an API and start no process.
MODULES = "ansible_collections.community.proxmox.plugins.modules."
#: Files that Ansible generates for each payload, so that they differ from the installed files.
GENERATED = ("ansible/__init__.py", "ansible/module_utils/__init__.py")
#: Folder in which Ansible keeps payloads, in its local temporary folder. A file is called
#: `<module>-<compression>-<extensions>`.
CACHE = "ansiballz_cache"
PAYLOAD_SUFFIX = "-ZIP_DEFLATED-none"
SOURCES_SUFFIX = ".sources"

FileStamp = list[int]  # inode, size, time of the last change


def store_in(server_folder: str) -> Path:
    """Return the store: the folder with the payloads and the byte code that warm runs share."""
    return Path(server_folder, "payloads")


def find_sources(zip_data: bytes | str) -> list[Path] | None:
    """Return the installed files that a payload consists of; None if it contains any other file."""
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
    """True if an earlier run saved exactly this payload and none of its files has changed since."""
    try:
        known = json.loads(Path(store, f"{module}{PAYLOAD_SUFFIX}{SOURCES_SUFFIX}").read_text(encoding="utf-8"))
        return bool(known["sha256"] == _digest(zip_data) and _are_unchanged(known["stamps"]))
    except (OSError, ValueError):
        return False


def link_saved(store: Path, local_tmp: Path) -> None:
    """Link the saved payloads whose files have not changed into a run's temporary folder."""
    cache_folder = local_tmp / CACHE
    cache_folder.mkdir(mode=0o700)
    for sources in store.glob(f"*{SOURCES_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if _are_unchanged(json.loads(sources.read_text(encoding="utf-8"))["stamps"]):
                os.link(sources.with_suffix(""), cache_folder / sources.stem)


def save(store: Path, local_tmp: Path) -> None:
    """Save the payloads that this run has made. A payload that was linked from the store has a second link."""
    for payload in (local_tmp / CACHE).glob(f"{MODULES}*{PAYLOAD_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if payload.stat().st_nlink == 1:
                _save(store, payload)


def _save(store: Path, payload: Path) -> None:
    """Save a payload, and after it the list of its sources. A payload without the list is ignored."""
    zip_data = pickle.loads(payload.read_bytes()).zip_data  # noqa: S301  written by this process
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
    """Return numbers that differ after each change of a file."""
    status = os.stat(file)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _are_unchanged(stamps: dict[str, FileStamp]) -> bool:
    return all(stamp_of(file) == stamp for file, stamp in stamps.items())


def _installed(name: str) -> Path | None:
    return next((path for root in _roots() if (path := root / name).is_file()), None)


@cache
def _roots() -> Iterable[Path]:
    """Return the folders of the import path that contain Ansible or collections."""
    roots = [Path(entry) for entry in sys.path if entry]
    return [root for root in roots if (root / "ansible_collections").is_dir() or (root / "ansible").is_dir()]
