"""Build the offline bundle of a release, for machines without network: build_bundle.py DIST [--without-image].

DIST is the folder of the release: its wheels, source archive, collection and image. The bundle contains these files and
the Python distributions that the wheels need. pip downloads these distributions in the versions of constraints.txt, for
the Python that runs this script. The same input files give the same bundle, byte for byte. The script prints the paths
of the bundle and of its SBOM.
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
#: The files of the repository that the bundle's top folder contains.
TOP_FILES = ("deploy/offline/install.sh", "deploy/offline/README.md", "deploy/install_collection.py")
#: The earliest time that a zip archive can store.
EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def bundle_name(version: str) -> str:
    """Return the name of the bundle and of its top folder, such as agent-smith-1.0.0-offline-python3.11-x86_64."""
    return f"agent-smith-{version}-offline-python{PYTHON_VERSION}-{platform.machine()}"


def download_wheels(*requirements: str, target: Path, pip_options: tuple[str, ...] = ()) -> None:
    """Download the wheels of the requirements and of their dependencies into the folder `target`.

    `pip_options` are added to the command line of pip. pip builds no wheel from a source archive.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    common_options = ["--only-binary=:all:", "--constraint", str(PROJECT / "constraints.txt"), "--dest", str(target)]
    subprocess.run([*pip, "download", *common_options, *pip_options, *requirements], check=True)


def collect_wheels(dist: Path, version: str, bundle: Path) -> None:
    """Fill the bundle's folders `wheels` (executor and dependencies) and `lab` (wheels that only the lab needs)."""
    executor = f"{dist / f'agent_smith-{version}-py3-none-any.whl'}[postgres]"
    lab = dist / f"agent_smith_lab-{version}-py3-none-any.whl"
    download_wheels(executor, target=bundle / "wheels")
    # The lab needs the executor. --find-links names the folder in which pip finds the executor's wheel.
    download_wheels(executor, str(lab), target=bundle / "lab", pip_options=("--find-links", str(bundle / "wheels")))
    for wheel in (bundle / "wheels").iterdir():
        (bundle / "lab" / wheel.name).unlink(missing_ok=True)


def collect_collections(dist: Path, version: str, bundle: Path) -> None:
    """Fill the bundle's folder `collections`: our collection, and community.proxmox from the wheel `ansible`."""
    shutil.copy(dist / f"agent_smith-proxmox-{version}.tar.gz", bundle / "collections")
    with tempfile.TemporaryDirectory() as folder:
        download_wheels("ansible", target=Path(folder), pip_options=("--no-deps",))
        (wheel,) = Path(folder).glob("ansible-*.whl")
        repack_collection(wheel, bundle / "collections")


def repack_collection(wheel: Path, target: Path) -> None:
    """Write the files of community.proxmox in the wheel to a new zip archive in the folder `target`.

    The files keep their paths, so install_collection.py can read the archive as it reads the wheel.
    """
    prefix = install_collection.COLLECTION_PREFIX
    with zipfile.ZipFile(wheel) as source:
        manifest = json.loads(source.read(prefix + "MANIFEST.json"))
        archive = target / f"community-proxmox-{manifest['collection_info']['version']}.zip"
        with zipfile.ZipFile(archive, "w") as new_archive:
            for name in sorted(source.namelist()):
                if name.startswith(prefix) and not name.endswith("/"):
                    new_archive.writestr(
                        zipfile.ZipInfo(name, EARLIEST_ZIP_TIME), source.read(name), zipfile.ZIP_DEFLATED
                    )


def add_release_files(dist: Path, version: str, bundle: Path, *, with_image: bool) -> None:
    """Copy the source archive, the image archive and TOP_FILES into the bundle, and write bundle.conf."""
    shutil.copy(dist / f"agent_smith-{version}.tar.gz", bundle / "source")
    if with_image:
        (bundle / "image").mkdir()
        shutil.copy(dist / f"agent-smith-{version}-image.tar.gz", bundle / "image")
    for name in TOP_FILES:
        shutil.copy(PROJECT / name, bundle)
    (bundle / "bundle.conf").write_text(f"version={version}\npython={PYTHON_VERSION}\nmachine={platform.machine()}\n")


def write_checksums(bundle: Path) -> None:
    """Write the checksums of all files of the bundle to SHA256SUMS, in the format of sha256sum."""
    files = sorted(file for file in bundle.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(bundle)}\n" for file in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def pack_bundle(bundle: Path, archive: Path) -> None:
    """Write the folder `bundle` to the tar file `archive`.

    All members are owned by root and have the same time, so the same files give the same tar file. The tar file is not
    compressed, because wheels and image are already compressed.
    """
    member_time_s = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

    def normalize_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = member_time_s
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(archive, "w") as target:
        target.add(bundle, bundle.name, filter=normalize_member)


def build(dist: Path, *, with_image: bool) -> tuple[Path, Path]:
    """Build the bundle in the folder `dist`; return the paths of the bundle and of its SBOM."""
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
        sbom.write_text(json.dumps(bundle_sbom.describe_bundle(bundle, version), indent=1) + "\n")
        shutil.copy(sbom, bundle / "sbom.cdx.json")
        write_checksums(bundle)
        pack_bundle(bundle, dist / f"{name}.tar")
    return dist / f"{name}.tar", sbom


def main() -> None:
    """Read the arguments, build the bundle, and print its path and the path of its SBOM."""
    parser = argparse.ArgumentParser(description="Build the offline bundle of a release, for machines without network.")
    parser.add_argument("dist", type=Path, help="folder of the release; the bundle is written to it")
    parser.add_argument("--without-image", action="store_true", help="leave the image archive out")
    arguments = parser.parse_args()
    for path in build(arguments.dist.resolve(), with_image=not arguments.without_image):
        print(path)


if __name__ == "__main__":
    main()
