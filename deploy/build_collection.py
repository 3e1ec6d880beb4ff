"""Build the archive of the collection agent_smith.proxmox from the tracked files: build_collection.py FOLDER.

galaxy.yml names which files belong to the collection, such as `playbooks/*.yml`. The archive is built in a copy of
the tracked files, so that it gets no file with such a name that is not in git. With SOURCE_DATE_EPOCH set, the same
files give the same archive. Prints the path of the archive.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def tracked_files() -> list[str]:
    """Return the paths of the tracked files that exist, relative to the project. A symbolic link is one file."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout  # noqa: S607
    return [name for name in listed.split("\0") if name and os.path.lexists(PROJECT / name)]


def copy_tracked_files(target: Path) -> None:
    """Copy the tracked files into the folder `target`. Symbolic links stay links."""
    for name in tracked_files():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, copy, follow_symlinks=False)


def build(source: Path, target: Path) -> Path:
    """Build the collection in the folder `source` and return the archive's path in the folder `target`."""
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    command = [galaxy, "collection", "build", "--force", "--output-path", target, source]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    archive = next(target.glob("agent_smith-proxmox-*.tar.gz"))
    if time := os.environ.get("SOURCE_DATE_EPOCH"):
        set_time(archive, int(time))
    return archive


def set_time(archive: Path, time: int) -> None:
    """Write the archive again, with this time for each file in place of the time of the build."""
    copy = archive.with_suffix(".new")
    with (
        tarfile.open(archive) as source,
        copy.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=time) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as target,
    ):
        for member in source:
            member.mtime = time
            member.pax_headers = {}  # they repeat the time, with fractions of a second
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    copy.replace(archive)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: build_collection.py FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        copy_tracked_files(Path(folder))
        print(build(Path(folder), Path(sys.argv[1]).resolve()))
