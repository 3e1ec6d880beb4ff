"""A release without the image, and its offline bundle installed in a network namespace that has no route.

`make release-test` runs these tests, and `make test` does not: they take more than a minute of CPU. The dependencies
are downloaded when the release is built, which is outside of the namespace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from smith_lab.lab_test.open_lab import stand_in_settings
from smith_lab.proxmox.stand_in import running_stand_in
from support.ci_pipelines import SHELLS, shell_steps

PROJECT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
#: The user namespace lets a user who is not root create the network namespace.
NO_NETWORK = ("unshare", "--map-root-user", "--net")
#: The pipeline of deploy/ci whose steps run with the bundle. All pipelines have the same steps.
PIPELINE = "Jenkinsfile"
#: Exits with 0 if an address outside of this machine has no route.
NO_ROUTE = """
import errno, socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    assert error.errno == errno.ENETUNREACH, error
"""

pytestmark = pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")


def run_command(*command: str | Path, folder: Path, **variables: str) -> str:
    """Run a command with the environment of a new shell; return its standard output."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | variables
    done = subprocess.run(command, env=environment, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def measure_block(what: str, figures: list[str]) -> Iterator[None]:
    """Add the CPU time and the duration of the block to the figures."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures.append(f"{what}: {cpu_s:.0f} s of CPU, {time.monotonic() - start:.0f} s")


@pytest.fixture(scope="module")
def figures() -> list[str]:
    """The measurements of this module's tests, one text for each."""
    return []


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, figures: list[str]) -> Path:
    """Build a release without the image; return its folder."""
    folder = tmp_path_factory.mktemp("release") / "dist"
    release = (PROJECT / "deploy" / "release.sh", Path(sys.executable).parent)
    with measure_block("building a release without the image", figures):
        run_command(*release, folder=PROJECT, DRY_RUN="1", IMAGE="0", DIST=str(folder))
    return folder


@pytest.fixture(scope="module")
def install_folder(dist: Path, tmp_path_factory: pytest.TempPathFactory, figures: list[str]) -> Path:
    """Run the commands of docs/install.md in the namespace, in a copy of the release; return the folder."""
    folder = tmp_path_factory.mktemp("machine") / "home"
    shutil.copytree(dist, folder)
    (archive,) = folder.glob("*-offline-*.tar")
    figures.append(f"size of the bundle without the image: {archive.stat().st_size / 1e6:.0f} MB")
    match = re.search(r"```sh\n# install:offline\n(.*?)```", (PROJECT / "docs" / "install.md").read_text(), re.DOTALL)
    assert match
    commands = match[1].replace("python3.11-x86_64", archive.stem.split("-offline-")[1])
    commands = commands.replace("/opt/agent-smith", str(folder / "agent-smith"))
    with measure_block("installing the bundle", figures):
        output = run_command(*NO_NETWORK, "bash", "-euc", commands, folder=folder, PYTHON=sys.executable)
    assert f"agent-smith         {VERSION}\n" in output
    assert "not found" not in output
    return folder


@pytest.fixture(scope="module")
def bundle(install_folder: Path) -> Path:
    """Return the folder of the unpacked bundle."""
    (archive,) = install_folder.glob("*-offline-*.tar")
    return install_folder / archive.stem


@pytest.fixture(scope="module")
def venv(install_folder: Path) -> Path:
    """Return the virtual environment that install.sh has created."""
    return install_folder / "agent-smith"


def test_the_namespace_has_no_route(tmp_path: Path) -> None:
    run_command(*NO_NETWORK, sys.executable, "-c", NO_ROUTE, folder=tmp_path)


def test_a_release_has_every_part_and_its_checksum(dist: Path) -> None:
    python, machine = f"python{sys.version_info.major}.{sys.version_info.minor}", os.uname().machine
    offline = f"agent-smith-{VERSION}-offline-{python}-{machine}"
    parts = {
        *(f"agent_smith-{VERSION}-py3-none-any.whl", f"agent_smith-{VERSION}.tar.gz"),
        *(f"agent_smith_lab-{VERSION}-py3-none-any.whl", f"agent_smith_lab-{VERSION}.tar.gz"),
        *(f"agent_smith-proxmox-{VERSION}.tar.gz", f"agent-smith-{VERSION}.cdx.json"),
        *(f"{offline}.tar", f"{offline}.cdx.json"),
    }
    assert {file.name for file in dist.iterdir()} == parts | {"SHA256SUMS"}
    checked = run_command("sha256sum", "--check", "SHA256SUMS", folder=dist)
    assert {line.removesuffix(": OK") for line in checked.splitlines()} == parts


def test_the_sbom_of_the_bundle_names_every_wheel_and_both_collections(bundle: Path) -> None:
    sbom = json.loads((bundle / "sbom.cdx.json").read_text())
    files = [*bundle.glob("*/*.whl"), *bundle.glob("collections/*")]
    vendored = {entry["file"] for entry in json.loads((PROJECT / "deploy" / "vendored.json").read_text())}
    wheels = {str(file.relative_to(bundle)) for file in files}
    assert {part["bom-ref"] for part in sbom["components"]} == wheels | vendored
    assert {"agent-smith", "agent-smith-lab", "agent_smith.proxmox", "community.proxmox", "ansible-core"} <= {
        part["name"] for part in sbom["components"]
    }
    assert [part["name"] for part in sbom["components"] if not part["licenses"]] == []


def test_everything_that_is_agpl_is_in_the_folder_of_the_lab(bundle: Path) -> None:
    sbom = json.loads((bundle / "sbom.cdx.json").read_text())
    agpl = {part["bom-ref"] for part in sbom["components"] if "AGPL" in json.dumps(part["licenses"])}
    assert len(agpl) == 2
    assert [name for name in agpl if not name.startswith("lab/")] == []


def test_the_source_archive_in_the_bundle_has_the_files_that_the_installation_needs_next(bundle: Path) -> None:
    with tarfile.open(bundle / "source" / f"agent_smith-{VERSION}.tar.gz") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"deploy/systemd/agent-smith.service", "deploy/pveum-role.sh", "docs/install.md"} <= names


def test_the_installed_executor_has_every_action_without_network(venv: Path, tmp_path: Path) -> None:
    actions = json.loads(run_command(*NO_NETWORK, venv / "bin" / "smith", "actions", "list", "--json", folder=tmp_path))
    assert {"create", "delete"} <= {action["name"] for action in actions}
    assert all(Path(action["playbook"]).is_relative_to(venv) for action in actions)
    versions = json.loads(run_command(*NO_NETWORK, venv / "bin" / "smith", "version", "--json", folder=tmp_path))
    assert versions["agent_smith"] == VERSION
    assert None not in versions.values()


def test_ansible_doc_finds_both_installed_collections_without_network(venv: Path, tmp_path: Path) -> None:
    names = ("agent_smith.proxmox.vm_power", "community.proxmox.proxmox_kvm")
    documentation = json.loads(
        run_command(*NO_NETWORK, venv / "bin" / "ansible-doc", "--json", *names, folder=tmp_path)
    )
    assert {name: bool(documentation[name]["doc"]["short_description"]) for name in names} == dict.fromkeys(names, True)


def test_a_second_run_of_install_sh_adds_the_lab(
    venv: Path, bundle: Path, tmp_path: Path, figures: list[str], figure: Callable[[str], None]
) -> None:
    (packages,) = venv.glob("lib/python*/site-packages")
    assert not [folder.name for folder in packages.iterdir() if folder.name in ("smith_lab", "fakepve")]
    with measure_block("installing it again, with the lab", figures):
        install = (bundle / "install.sh", venv, "--with-lab")
        assert VERSION in run_command(*NO_NETWORK, *install, folder=tmp_path, PYTHON=sys.executable)
    assert "simulator" in run_command(*NO_NETWORK, venv / "bin" / "smith", "demo", "--help", folder=tmp_path).lower()
    run_command(*NO_NETWORK, venv / "bin" / "python", "-c", "import fakepve, smith_lab.demo", folder=tmp_path)
    for text in figures:
        figure(text)


@pytest.fixture(scope="module")
def pipeline(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the step `Install` of a pipeline in the example repository, without network; return the repository."""
    repository = tmp_path_factory.mktemp("pipeline") / "repository"
    shutil.copytree(PROJECT / "docs" / "examples" / "lab", repository, ignore=shutil.ignore_patterns("__pycache__"))
    (archive,) = dist.glob("*-offline-*.tar")
    install, *_further = shell_steps(PIPELINE)["test"]
    variables = {
        "AGENT_SMITH_BUNDLE_URL": archive.as_uri(),
        "AGENT_SMITH_BUNDLE_SHA256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    run_command(*NO_NETWORK, *SHELLS[PIPELINE], install, folder=repository, PYTHON=sys.executable, **variables)
    return repository


def test_a_pipeline_tests_the_example_repository_with_the_bundle(pipeline: Path) -> None:
    _install, test = shell_steps(PIPELINE)["test"]
    output = run_command(*SHELLS[PIPELINE], test, folder=pipeline)
    assert output.startswith("lab: a stand-in for Proxmox\n")
    (suite,) = ET.parse(pipeline / "report.xml").getroot().iter("testsuite")  # noqa: S314 (pytest wrote it)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "4",
        "0",
        "0",
        "0",
    )


def test_a_pipeline_sweeps_the_lab_with_the_bundle(pipeline: Path) -> None:
    _install, sweep = shell_steps(PIPELINE)["sweep"]
    with running_stand_in(folder=pipeline / "pve") as lab:
        output = run_command(*SHELLS[PIPELINE], sweep, folder=pipeline, **stand_in_settings(lab).variables())
    assert "no guest or backup has one of the lab's VMIDs" in output


def test_the_bundle_has_the_lab_tests_of_this_project(pipeline: Path) -> None:
    output = run_command(pipeline / ".smith" / "bin" / "smith", "lab-test", "-k", "second_start", folder=pipeline)
    assert "1 passed" in output
