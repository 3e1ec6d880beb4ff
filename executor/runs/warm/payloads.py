"""Payloads of Proxmox's modules, packed once: a module and what it imports, read from where it is installed.

Ansible packs a module anew in each run (0.2 s of CPU), and keeps the pack in the run's temporary folder for the tasks
that follow. A run leaves its packs here, if they hold what is installed and nothing else, and the next one finds them,
if none of those files was changed since.
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

#: Modules that speak to an API and start nothing.
MODULES = "ansible_collections.community.proxmox.plugins.modules."
#: Made for the payload: a package's own file is never the one that was installed.
SHIMS = ("ansible/__init__.py", "ansible/module_utils/__init__.py")
#: Where Ansible keeps packs, in its local temporary folder; a name is `<module>-<compression>-<extensions>`.
CACHE = "ansiballz_cache"
KNOWN_SUFFIX = "-ZIP_DEFLATED-none"
SOURCES = ".sources"

Stamp = list[int]


def store_in(run_folder: str) -> Path:
    """Where runs leave for each other what follows from installed files alone."""
    return Path(run_folder, "payloads")


def find_sources(zip_data: bytes | str) -> list[Path] | None:
    """Return the installed files that a payload is made of, None when it holds anything else."""
    found = []
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(zip_data))) as payload:
        for name in payload.namelist():
            content = payload.read(name)
            if not content.strip() or name in SHIMS:
                continue
            source = _installed(name)
            if source is None or source.read_bytes() != content:
                return None
            found.append(source)
    return found


def is_of_known_sources(store: Path, module: str, zip_data: bytes | str) -> bool:
    """Tell whether a run before has left this very pack, and nothing that it is made of was changed since."""
    try:
        known = json.loads(Path(store, f"{module}{KNOWN_SUFFIX}{SOURCES}").read_text(encoding="utf-8"))
        return bool(known["sha256"] == _digest(zip_data) and _are_unchanged(known["stamps"]))
    except (OSError, ValueError):
        return False


def take(store: Path, local_tmp: Path) -> None:
    """Give a run the packs of earlier ones that are still as installed."""
    cache_folder = local_tmp / CACHE
    cache_folder.mkdir(mode=0o700)
    for sources in store.glob(f"*{SOURCES}"):
        with contextlib.suppress(OSError, ValueError):
            if _are_unchanged(json.loads(sources.read_text(encoding="utf-8"))["stamps"]):
                os.link(sources.with_suffix(""), cache_folder / sources.stem)


def leave(store: Path, local_tmp: Path) -> None:
    """Leave a run's own packs to those that come after it."""
    for pack in (local_tmp / CACHE).glob(f"{MODULES}*{KNOWN_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            if pack.stat().st_nlink == 1:
                _leave(store, pack)


def _leave(store: Path, pack: Path) -> None:
    """The sources' list comes last and all at once: a pack without it is none."""
    zip_data = pickle.loads(pack.read_bytes()).zip_data  # noqa: S301  this very process has written it
    sources = find_sources(zip_data)
    if sources is None:
        return
    stamps = {str(source): stamp_of(source) for source in sources}
    known = json.dumps({"sha256": _digest(zip_data), "stamps": stamps})
    target = store / pack.name
    listed, partial = Path(f"{target}{SOURCES}"), Path(f"{target}.{os.getpid()}")
    listed.unlink(missing_ok=True)
    for content, final in ((pack.read_bytes(), target), (known.encode(), listed)):
        partial.write_bytes(content)
        partial.rename(final)


def _digest(zip_data: bytes | str) -> str:
    return hashlib.sha256(zip_data.encode() if isinstance(zip_data, str) else zip_data).hexdigest()


def stamp_of(file: Path | str) -> Stamp:
    """What tells whether a file is still the one that it was."""
    facts = os.stat(file)
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _are_unchanged(stamps: dict[str, Stamp]) -> bool:
    return all(stamp_of(file) == stamp for file, stamp in stamps.items())


def _installed(name: str) -> Path | None:
    return next((path for root in _roots() if (path := root / name).is_file()), None)


@cache
def _roots() -> Iterable[Path]:
    roots = [Path(entry) for entry in sys.path if entry]
    return [root for root in roots if (root / "ansible_collections").is_dir() or (root / "ansible").is_dir()]
