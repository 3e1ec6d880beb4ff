"""Build the bundle for machines without network in the folder of a release: build_bundle.py DIST [--without-image].

DIST contains wheels, source archive, collection and image. The bundle adds the distributions that they need, for the
Python that runs this script, from the package index and at the versions of constraints.txt. The same input
files give the same bundle, byte for byte.
Prints the paths of the bundle and of its SBOM.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import bundle_sbom
import install_collection
import versions

PROJECT = Path(__file__).resolve().parent.parent
#: Copied into the bundle's top folder.
PROGRAMS = ("deploy/offline/install.sh", "deploy/offline/README.md", "deploy/install_collection.py")
#: A zip archive cannot have an earlier time.
EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def bundle_name(version: str) -> str:
    """Return the name of the bundle and of its top folder, such as agent-smith-1.0.0-offline-python3.11-x86_64."""
    return f"agent-smith-{version}-offline-python{PYTHON_VERSION}-{platform.machine()}"


def download(*requirements: str, target: Path, options: tuple[str, ...] = ()) -> None:
    """Download the wheels of the requirements and of what they need. No wheel is built from a source archive."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    fixed = ["--only-binary=:all:", "--constraint", str(PROJECT / "constraints.txt"), "--dest", str(target)]
    subprocess.run([*pip, "download", *fixed, *options, *requirements], check=True)


def collect_wheels(dist: Path, version: str, bundle: Path) -> None:
    """Fill the folders `wheels` (the executor and what it needs) and `lab` (what only the lab needs)."""
    executor = f"{dist / f'agent_smith-{version}-py3-none-any.whl'}[postgres]"
    lab = dist / f"agent_smith_lab-{version}-py3-none-any.whl"
    download(executor, target=bundle / "wheels")
    # Also naming the executor keeps pip from searching the package index for it.
    download(executor, str(lab), target=bundle / "lab", options=("--find-links", str(bundle / "wheels")))
    for wheel in (bundle / "wheels").iterdir():
        (bundle / "lab" / wheel.name).unlink(missing_ok=True)


def collect_collections(dist: Path, version: str, bundle: Path) -> None:
    """Fill the folder `collections`: the archive of our collection, and community.proxmox from the `ansible` wheel."""
    shutil.copy(dist / f"agent_smith-proxmox-{version}.tar.gz", bundle / "collections")
    with tempfile.TemporaryDirectory() as folder:
        download("ansible", target=Path(folder), options=("--no-deps",))
        (wheel,) = Path(folder).glob("ansible-*.whl")
        extract_collection(wheel, bundle / "collections")


def extract_collection(wheel: Path, target: Path) -> None:
    """Copy community.proxmox from the wheel into a zip archive with the same paths, for install_collection.py."""
    prefix = install_collection.PREFIX
    with zipfile.ZipFile(wheel) as source:
        manifest = json.loads(source.read(prefix + "MANIFEST.json"))
        archive = target / f"community-proxmox-{manifest['collection_info']['version']}.zip"
        with zipfile.ZipFile(archive, "w") as copy:
            for name in sorted(source.namelist()):
                if name.startswith(prefix) and not name.endswith("/"):
                    copy.writestr(zipfile.ZipInfo(name, EARLIEST_ZIP_TIME), source.read(name), zipfile.ZIP_DEFLATED)


def add_release_files(dist: Path, version: str, bundle: Path, *, with_image: bool) -> None:
    """Copy the source archive, the image archive and the programs; write bundle.conf."""
    shutil.copy(dist / f"agent_smith-{version}.tar.gz", bundle / "source")
    if with_image:
        (bundle / "image").mkdir()
        shutil.copy(dist / f"agent-smith-{version}-image.tar.gz", bundle / "image")
    for name in PROGRAMS:
        shutil.copy(PROJECT / name, bundle)
    (bundle / "bundle.conf").write_text(f"version={version}\npython={PYTHON_VERSION}\nmachine={platform.machine()}\n")


def write_checksums(bundle: Path) -> None:
    """Write SHA256SUMS, in the format of sha256sum, for every other file of the bundle."""
    files = sorted(file for file in bundle.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(bundle)}\n" for file in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def pack(bundle: Path, archive: Path) -> None:
    """Write the folder into a tar file: sorted, owned by root, with one time. Wheels and image are compressed."""
    time = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

    def normalize(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = time
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(archive, "w") as target:
        target.add(bundle, bundle.name, filter=normalize)


def build(dist: Path, *, with_image: bool) -> tuple[Path, Path]:
    """Build the bundle in the folder `dist`; return its path and that of its SBOM."""
    version = versions.read_versions(PROJECT)["pyproject.toml"]
    name = bundle_name(version)
    sbom = dist / f"{name}.cdx.json"
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / name
        for part in ("wheels", "lab", "collections", "source"):
            (bundle / part).mkdir(parents=True)
        add_release_files(dist, version, bundle, with_image=with_image)
        collect_wheels(dist, version, bundle)
        collect_collections(dist, version, bundle)
        sbom.write_text(json.dumps(bundle_sbom.describe(bundle, version), indent=1) + "\n")
        shutil.copy(sbom, bundle / "sbom.cdx.json")
        write_checksums(bundle)
        pack(bundle, dist / f"{name}.tar")
    return dist / f"{name}.tar", sbom


def main() -> None:
    """Read the arguments, build the bundle and print the paths."""
    parser = argparse.ArgumentParser(description="Build the bundle for machines without network.")
    parser.add_argument("dist", type=Path, help="folder of the release")
    parser.add_argument("--without-image", action="store_true", help="leave the image archive out")
    arguments = parser.parse_args()
    for path in build(arguments.dist.resolve(), with_image=not arguments.without_image):
        print(path)


if __name__ == "__main__":
    main()
