"""The image's configuration and files."""

from __future__ import annotations

import os
import stat
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Site, container_of, image_facts, mounted_image, needs_podman, prepare_site, save_image
from support.databases import postgres_binaries, postgres_cluster

PROJECT = Path(__file__).resolve().parents[2]
#: The maximum size of the image, as docs/install.md states it.
MAX_BYTES = 200_000_000
CHUNK = 1 << 20


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Mount the image's file system; return its root folder."""
    with mounted_image() as path:
        yield path


@pytest.fixture(scope="module")
def packages(root: Path) -> Path:
    """Return the folder of the Python packages in the mounted image."""
    return next(root.glob("opt/venv/lib/python3*/site-packages"))


def test_the_image_runs_as_an_unprivileged_user() -> None:
    assert image_facts()["Config"]["User"] == "10001:10001"


def test_the_image_sets_command_stop_signal_volume_and_health_check() -> None:
    config = image_facts()["Config"]
    assert config["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert config["Cmd"] == ["smith", "run"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/data"]
    health = image_facts()["Healthcheck"]
    assert health["Test"] == ["CMD", "python3", "-P", "-m", "executor.cli.health", "--live"]
    assert health["Interval"] > health["Timeout"] > 0


def test_the_image_has_labels() -> None:
    labels = image_facts()["Config"]["Labels"]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0 AND GPL-3.0-or-later"
    assert labels["org.opencontainers.image.revision"]


def test_the_image_is_not_larger_than_documented() -> None:
    assert image_facts()["Size"] < MAX_BYTES


def test_the_image_contains_no_installer(root: Path, packages: Path) -> None:
    names = {path.name for path in packages.iterdir()} | {path.name for path in (root / "opt/venv/bin").iterdir()}
    assert not {name for name in names if name.split("-")[0].rstrip("3") in ("pip", "setuptools", "wheel", "hatchling")}
    assert not list(root.glob("usr/lib/python3*/ensurepip/_bundled/*.whl"))
    assert not (root / "usr/share/python-wheels").exists()
    assert not (root / "build").exists()


def test_only_root_can_change_the_program(root: Path) -> None:
    entries = [root / "opt/venv", *(root / "opt/venv").rglob("*")]
    changeable = [
        path for path in entries if not path.is_symlink() and (path.stat().st_uid or path.stat().st_mode & 0o022)
    ]
    assert not changeable
    assert not [
        path for path in entries if not path.is_symlink() and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    ]


def test_the_image_contains_the_licences_of_its_parts(root: Path, packages: Path) -> None:
    assert list(packages.glob("agent_smith-*.dist-info/licenses/LICENSE"))
    assert list(packages.glob("ansible_core-*.dist-info/licenses/*"))
    assert (packages / "ansible_collections/community/proxmox/COPYING").is_file()
    assert (root / "usr/share/doc/python3.13-minimal/copyright").is_file()


def test_all_files_of_a_layer_have_the_time_of_the_commit(root: Path) -> None:
    """So two builds of the same sources give the same image."""
    for layer in ((root / "opt/venv").rglob("*"), (root / "data", root / "etc/passwd")):
        assert len({int(path.lstat().st_mtime) for path in layer}) == 1
    assert not list((root / "var/log").iterdir())
    assert not (root / "var/cache/ldconfig/aux-cache").exists()


def test_every_module_that_is_imported_at_the_start_is_compiled(tmp_path: Path) -> None:
    with container_of(_prepare_settings_and_secrets(tmp_path)) as container:
        done = container.run_to_completion("python3", "-v", "-c", "import executor.composition, executor.cli.app")
    output = done.stdout + done.stderr
    assert "executor.composition" in output, output[-2000:]
    assert not [line for line in output.splitlines() if line.startswith("# code object from") and ".pyc" not in line]
    assert "bytecode is stale" not in output


def test_ansible_finds_the_collection(tmp_path: Path) -> None:
    with container_of(_prepare_settings_and_secrets(tmp_path)) as container:
        done = container.run_to_completion("ansible-doc", "-j", "community.proxmox.proxmox_kvm")
    assert "short_description" in done.stdout, (
        done.stderr
    )  # ansible-doc ends with 0 even if it does not find the module


def test_the_only_openssl_is_debians(root: Path, tmp_path: Path) -> None:
    """Debian's security updates then cover TLS, PostgreSQL and Ansible's vault. Wheels would contain other copies."""
    copies = [path for path in root.rglob("libcrypto*") if not path.is_symlink()]
    assert [str(path.relative_to(root).parent) for path in copies] == ["usr/lib/x86_64-linux-gnu"]
    commands = (
        "python3 -c 'import psycopg; assert psycopg.pq.__impl__ == \"python\"'",
        "echo a-password >/tmp/password",
        "ansible-vault encrypt_string --vault-password-file /tmp/password a-text",
    )
    with container_of(_prepare_settings_and_secrets(tmp_path)) as container:
        done = container.run_to_completion("sh", "-c", " && ".join(commands))
    assert "$ANSIBLE_VAULT" in done.stdout, done.stderr


@needs_podman
def test_the_image_can_use_postgresql(tmp_path: Path) -> None:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine")
    address = "postgresql+psycopg://smith@/smith?host=/postgresql"
    with postgres_cluster(binaries) as cluster, container_of(_prepare_settings_and_secrets(tmp_path)) as container:
        cluster.execute("CREATE DATABASE smith")
        cluster.folder.chmod(0o755)
        options = (f"--volume={cluster.folder}:/postgresql", f"--env=SMITH_DATABASE_URL={address}")
        for verb, output in (("upgrade", "the schema was created"), ("check", "no errors and is up to date")):
            done = container.run_to_completion("smith", "db", verb, options=options)
            assert output in done.stdout, done.stderr


def test_the_environment_contains_no_settings_of_the_build() -> None:
    names = {entry.partition("=")[0] for entry in image_facts()["Config"]["Env"]}
    assert not {name for name in names if name.startswith(("PIP_", "FULCRUM_", "PROXMOX_")) or "TOKEN" in name}


def test_no_secret_of_the_build_is_in_any_layer(tmp_path: Path) -> None:
    """A file that a later layer removes is still in the image, so the test reads every layer and the history."""
    canary = os.environ["IMAGE_CANARY"].encode()
    assert len(canary) > 16
    archive = tmp_path / "image.tar"
    save_image(archive)
    read = 0
    with tarfile.open(archive) as layers:
        for member in layers:
            if member.isfile() and (file := layers.extractfile(member)):
                tail = b""
                while chunk := file.read(CHUNK):
                    read += len(chunk)
                    assert canary not in tail + chunk, f"a secret of the build is in {member.name}"
                    tail = chunk[-len(canary) :]
    assert read > MAX_BYTES / 2, (
        "fewer bytes were read than the image has: its layers are compressed, or files were skipped"
    )


def _prepare_settings_and_secrets(folder: Path) -> Site:
    """Prepare what a container needs to start. The commands of these tests do not use the secrets."""
    return prepare_site(folder, {"FULCRUM_API_TOKEN": "unused-token", "PROXMOX_TOKEN_SECRET": "unused-secret"})
