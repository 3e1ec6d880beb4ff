"""Payloads that warm runs share: only those that consist of installed files."""

from __future__ import annotations

import base64
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from executor.runs.warm import payloads

MODULE = f"{payloads.MODULE_PREFIX}proxmox_kvm"
PLACE = MODULE.replace(".", "/") + ".py"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a module where Python finds it first."""
    file = tmp_path / "site" / PLACE
    file.parent.mkdir(parents=True)
    file.write_text("print('as installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    payloads._import_folders.cache_clear()
    yield file
    payloads._import_folders.cache_clear()


def packed(content: str) -> str:
    """Return a payload with this module, as Ansible makes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(PLACE, content)
    return base64.b64encode(data.getvalue()).decode()


def left(folder: Path, zip_data: str) -> Path:
    """Save this payload as a run does; return the store."""
    store, local_tmp = folder / "store", folder / "tmp"
    for made in (store, local_tmp / payloads.PAYLOAD_CACHE):
        made.mkdir(parents=True)
    pack = local_tmp / payloads.PAYLOAD_CACHE / f"{MODULE}{payloads.PAYLOAD_SUFFIX}"
    pack.write_bytes(pickle.dumps(SimpleNamespace(zip_data=zip_data)))
    payloads.save(store, local_tmp)
    return store


def taken(folder: Path, store: Path) -> list[str]:
    """Return the payloads that a new run finds."""
    local_tmp = folder / "next"
    local_tmp.mkdir()
    payloads.link_saved(store, local_tmp)
    return sorted(file.name for file in (local_tmp / payloads.PAYLOAD_CACHE).iterdir())


def test_a_payload_of_installed_files_is_used_by_the_next_run(tmp_path: Path, installed: Path) -> None:
    pack = packed(installed.read_text())
    store = left(tmp_path, pack)

    assert payloads.is_saved_and_current(store, MODULE, pack)
    assert payloads.is_saved_and_current(store, MODULE, pack.encode())
    assert taken(tmp_path, store) == [f"{MODULE}{payloads.PAYLOAD_SUFFIX}"]


def test_another_payload_of_the_same_name_is_not_known(tmp_path: Path, installed: Path) -> None:
    store = left(tmp_path, packed(installed.read_text()))

    assert not payloads.is_saved_and_current(store, MODULE, packed("print('somebody else')\n"))
    assert not payloads.is_saved_and_current(store, f"{payloads.MODULE_PREFIX}proxmox", packed(installed.read_text()))


def test_a_payload_is_unknown_after_its_source_has_changed(tmp_path: Path, installed: Path) -> None:
    pack = packed(installed.read_text())
    store = left(tmp_path, pack)
    installed.write_text("print('an upgrade')\n")

    assert not payloads.is_saved_and_current(store, MODULE, pack)
    assert payloads.find_installed_files(pack) is None
    assert taken(tmp_path, store) == []


@pytest.mark.usefixtures("installed")
def test_a_payload_with_other_files_is_not_saved(tmp_path: Path) -> None:
    store = left(tmp_path, packed("print('more')\n"))

    assert os.listdir(store) == []


def test_an_invalid_list_of_sources_is_ignored(tmp_path: Path, installed: Path) -> None:
    pack = packed(installed.read_text())
    store = left(tmp_path, pack)
    for broken in ("", "["):
        (store / f"{MODULE}{payloads.PAYLOAD_SUFFIX}{payloads.SOURCES_SUFFIX}").write_text(broken)
        assert not payloads.is_saved_and_current(store, MODULE, pack)
