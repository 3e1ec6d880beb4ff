"""Build the archive of the collection agent_smith.proxmox in FOLDER: build_collection.py FOLDER.

galaxy.yml names the files of the collection by patterns, such as `playbooks/*.yml`. The archive is built from a copy of
the files that git tracks, so it contains no file that matches a pattern but is not in git. If SOURCE_DATE_EPOCH is set,
the same files give the same archive. The script prints the path of the archive.
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
    """Return the paths, relative to the project, of the existing files and symbolic links that git tracks."""
    output = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout  # noqa: S607
    return [name for name in output.split("\0") if name and os.path.lexists(PROJECT / name)]


def copy_tracked_files(target: Path) -> None:
    """Copy the tracked files into the folder `target`. Symbolic links stay links."""
    for name in tracked_files():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, copy, follow_symlinks=False)


def build(source: Path, target: Path) -> Path:
    """Write the archive of the collection in the folder `source` to the folder `target`; return the archive's path."""
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    command = [galaxy, "collection", "build", "--force", "--output-path", target, source]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    archive = next(target.glob("agent_smith-proxmox-*.tar.gz"))
    if time_s := os.environ.get("SOURCE_DATE_EPOCH"):
        set_member_times(archive, int(time_s))
    return archive


def set_member_times(archive: Path, time_s: int) -> None:
    """Set the time of each file in the archive to `time_s`, in seconds since 1970."""
    copy = archive.with_suffix(".new")
    with (
        tarfile.open(archive) as source,
        copy.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=time_s) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as target,
    ):
        for member in source:
            member.mtime = time_s
            member.pax_headers = {}  # the headers contain the old time, with fractions of a second
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    copy.replace(archive)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: build_collection.py FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        copy_tracked_files(Path(folder))
        print(build(Path(folder), Path(sys.argv[1]).resolve()))
