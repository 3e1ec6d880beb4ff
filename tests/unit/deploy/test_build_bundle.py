"""What the offline bundle contains, and when its install.sh refuses to install it.

tests/release builds and installs a real bundle.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "deploy"))

import build_bundle  # noqa: E402  (a script of deploy/, not a package)
import bundle_sbom  # noqa: E402  (see above)

VERSION = "9.8.7"
COLLECTION = "ansible_collections/community/proxmox"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle without wheels: install.sh must refuse before it needs one."""
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    shutil.copy(PROJECT / "deploy" / "offline" / "install.sh", folder)
    (folder / "wheels" / "a-1-py3-none-any.whl").write_text("a wheel")
    write_configuration(folder)
    return folder


def write_configuration(bundle: Path, machine: str = platform.machine()) -> None:
    """Write bundle.conf for this Python, and the checksums."""
    (bundle / "bundle.conf").write_text(f"version={VERSION}\npython={build_bundle.PYTHON_VERSION}\nmachine={machine}\n")
    build_bundle.write_checksums(bundle)


def install(bundle: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run install.sh of the bundle with this interpreter."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": python}
    command = [str(bundle / "install.sh"), *arguments]
    return subprocess.run(command, env=environment, cwd=bundle.parent, check=False, capture_output=True, text=True)


def write_archive(file: Path, contents: dict[str, str]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    return file


# --- install.sh -------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_named_and_nothing_is_installed(bundle: Path) -> None:
    (bundle / "wheels" / "a-1-py3-none-any.whl").write_text("another wheel")
    done = install(bundle, "target")
    assert done.returncode == 1
    assert "the bundle is damaged; nothing was installed" in done.stderr
    assert "wheels/a-1-py3-none-any.whl: FAILED" in done.stderr
    assert not (bundle.parent / "target").exists()


def test_a_missing_file_is_named_and_nothing_is_installed(bundle: Path) -> None:
    (bundle / "wheels" / "a-1-py3-none-any.whl").unlink()
    done = install(bundle, "target")
    assert (done.returncode, "wheels/a-1-py3-none-any.whl" in done.stderr) == (1, True)
    assert not (bundle.parent / "target").exists()


def test_a_python_that_is_too_old_is_refused_with_its_version(bundle: Path) -> None:
    old = bundle.parent / "python-of-2020"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    done = install(bundle, "target", python=str(old))
    assert done.returncode == 1
    assert f"this bundle needs Python {build_bundle.PYTHON_VERSION}, and {old} is Python 3.9." in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (bundle.parent / "target").exists()


def test_a_machine_without_python_is_refused(bundle: Path) -> None:
    done = install(bundle, "target", python="/nowhere/python3")
    assert (done.returncode, "/nowhere/python3 is Python (not found)" in done.stderr) == (1, True)


def test_a_bundle_for_another_kind_of_machine_is_refused(bundle: Path) -> None:
    write_configuration(bundle, machine="s390x")
    done = install(bundle, "target")
    assert (done.returncode, "this bundle is for s390x" in done.stderr) == (1, True)


def test_a_target_folder_that_has_files_of_its_own_is_refused(bundle: Path) -> None:
    target = bundle.parent / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    done = install(bundle, "target")
    assert done.returncode == 1
    assert f"{target} is neither empty nor a virtual environment" in done.stderr
    assert [file.name for file in target.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("arguments", [(), ("--with-lab",), ("one", "two"), ("target", "--lab")])
def test_wrong_arguments_print_the_usage(bundle: Path, arguments: tuple[str, ...]) -> None:
    done = install(bundle, *arguments)
    assert (done.returncode, done.stderr) == (2, "usage: install.sh TARGET_FOLDER [--with-lab]\n")


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_only_community_proxmox_is_taken_from_the_ansible_wheel(tmp_path: Path) -> None:
    manifest = json.dumps({"collection_info": {"version": "2.0.0"}})
    wheel = write_archive(
        tmp_path / "ansible-1-py3-none-any.whl",
        {
            f"{COLLECTION}/MANIFEST.json": manifest,
            f"{COLLECTION}/COPYING": "terms",
            "ansible_collections/other/x/README.md": "",
        },
    )
    build_bundle.repack_collection(wheel, tmp_path)
    with zipfile.ZipFile(tmp_path / "community-proxmox-2.0.0.zip") as archive:
        assert archive.namelist() == [f"{COLLECTION}/COPYING", f"{COLLECTION}/MANIFEST.json"]


@pytest.mark.parametrize("with_image", [True, False])
def test_the_image_archive_is_in_the_bundle_only_with_the_option_for_it(tmp_path: Path, with_image: bool) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "source").mkdir(parents=True)
    (tmp_path / f"agent_smith-{VERSION}.tar.gz").touch()
    image = tmp_path / f"agent-smith-{VERSION}-image.tar.gz"
    image.touch()
    build_bundle.add_release_files(tmp_path, VERSION, bundle, with_image=with_image)
    assert [file.name for file in bundle.glob("image/*")] == [image.name] * with_image
    assert {"install.sh", "README.md", "install_collection.py", "bundle.conf"} <= {
        file.name for file in bundle.iterdir()
    }


def test_the_same_files_give_the_same_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build_bundle.pack_bundle(bundle, tmp_path / "first.tar")
    for file in bundle.rglob("*"):
        file.touch()
    build_bundle.pack_bundle(bundle, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()
    with tarfile.open(tmp_path / "first.tar") as archive:
        assert archive.getmember("bundle/install.sh").mode == 0o755
        assert {(member.uname, member.mtime) for member in archive} == {("root", 1700000000)}


@pytest.mark.parametrize(
    ("metadata", "licences"),
    [
        ("License-Expression: MIT\nLicense: no", [{"expression": "MIT"}]),
        ("Classifier: License :: OSI Approved :: BSD License", [{"license": {"name": "BSD License"}}]),
        ("License: Apache-2.0", [{"license": {"name": "Apache-2.0"}}]),
        ("Summary: none", []),
    ],
)
def test_the_sbom_has_the_licence_that_a_wheel_states(tmp_path: Path, metadata: str, licences: list[object]) -> None:
    text = f"Metadata-Version: 2.4\nName: My_Tool\nVersion: 1.2\n{metadata}\n"
    wheel = write_archive(tmp_path / "my_tool-1.2-py3-none-any.whl", {"my_tool-1.2.dist-info/METADATA": text})
    component = bundle_sbom.describe_wheel(wheel)
    assert (component["purl"], component["licenses"]) == ("pkg:pypi/my-tool@1.2", licences)
    assert len(component["hashes"][0]["content"]) == 64
