"""The archive of the collection agent_smith.proxmox holds what galaxy.yml names, and nothing that is not in git."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import shutil
import sys
import tarfile
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
PLUGINS = PROJECT / "plugins"
SHARED = PLUGINS / "plugin_utils" / "shared"
#: Written by `ansible-galaxy collection build`.
GENERATED = {"MANIFEST.json", "FILES.json"}
#: The tracked files of the collection. `*` also matches a slash.
PATTERNS = (
    *("README.md", "LICENSE", "CHANGELOG.md", "meta/runtime.yml", "plugins/*.py", "playbooks/*.yml"),
    *("roles/*.yml", "roles/*/README.md", "inventory/*.yml", "tests/config.yml", "tests/sanity/ignore-*.txt"),
)
#: Files that a developer's checkout contains and git ignores or does not know.
UNTRACKED = (
    *(".env", ".venv/x", "plugins/__pycache__/x.pyc", "roles/.mypy_cache/x.json", ".pytest_cache/README.md"),
    *("playbooks/secret.txt", "plugins/action/notes.txt", "playbooks/.venv/x", "tests/output/x.json"),
)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_collection = _load(PROJECT / "deploy" / "build_collection.py")


def _files_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as members:
        return {member.name for member in members if not member.isdir()}


def _imports(file: Path) -> set[str]:
    """Return the names of the modules that the file imports; relative ones start with a dot."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_the_collection_has_the_version_of_the_executor() -> None:
    galaxy = yaml.safe_load((PROJECT / "galaxy.yml").read_text())
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert galaxy["version"] == project["version"]


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_archive_holds_the_tracked_files_that_galaxy_yml_names_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    build_collection.copy_tracked_files(source)
    for name in UNTRACKED:
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("PROXMOX_TOKEN_SECRET=11111111-2222-3333-4444-555555555555\n")
    tracked = {name for name in build_collection.tracked_files() if not (PROJECT / name).is_symlink()}
    named = {name for name in tracked if any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)}
    assert {"playbooks/start.yml", "plugins/action/vm_power.py", "roles/vm_power/README.md"} <= named
    assert _files_in(build_collection.build(source, tmp_path)) == named | GENERATED


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_archive_holds_nothing_of_the_executor_its_tests_and_its_tools(tmp_path: Path) -> None:
    build_collection.copy_tracked_files(tmp_path / "checkout")
    files = _files_in(build_collection.build(tmp_path / "checkout", tmp_path))
    folders = {Path(name).parts[0] for name in files if len(Path(name).parts) > 1}
    assert folders == {"inventory", "meta", "playbooks", "plugins", "roles", "tests"}
    assert not [name for name in files if name.startswith("tests/") and "sanity" not in name and "config" not in name]


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_same_files_give_the_same_archive_of_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    build_collection.copy_tracked_files(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second", symlinks=True, copy_function=shutil.copyfile)
    archives = []
    for name in ("first", "second"):
        (tmp_path / f"{name}-archive").mkdir()
        archives.append(build_collection.build(tmp_path / name, tmp_path / f"{name}-archive").read_bytes())
    assert archives[0] == archives[1]


def test_the_link_makes_the_checkout_a_collection() -> None:
    link = PROJECT / ".collections" / "ansible_collections" / "agent_smith" / "proxmox"
    assert link.readlink() == Path("../../..")
    assert link.resolve() == PROJECT


@pytest.mark.parametrize("file", sorted(PLUGINS.rglob("*.py")), ids=lambda file: str(file.relative_to(PLUGINS)))
def test_a_plugin_does_not_import_the_executor_or_the_lab(file: Path) -> None:
    assert not [name for name in _imports(file) if name.split(".")[0] in ("executor", "smith_lab")]


def test_what_the_executor_shares_with_the_plugins_imports_only_the_standard_library() -> None:
    """Except the module with the limits of HTTP: it also imports the HTTP libraries whose client it limits."""
    files = sorted(SHARED.glob("*.py"))
    assert len(files) > 3
    for file in files:
        outside = {name for name in _imports(file) if name.split(".")[0] not in sys.stdlib_module_names}
        siblings = {f".{sibling.stem}" for sibling in files}
        clients = {"requests", "requests.adapters", "urllib3"} if file.stem == "bounded_http" else set()
        assert outside <= siblings | clients, file.name
