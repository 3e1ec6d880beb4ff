"""Each vendored file is identical to the file of the named version, and has a licence."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "deploy"))  # the scripts there are no package

import vendored  # noqa: E402  (see above)


def test_each_vendored_file_is_unchanged_and_has_its_licence() -> None:
    for entry in vendored.read_entries():
        assert (ROOT / entry["licence_file"]).is_file()
        assert len(base64.b64decode(entry["package_integrity"].removeprefix("sha512-"))) == 64
    assert [part["purl"] for part in vendored.sbom_components()] == ["pkg:npm/htmx.org@2.0.11"]


def test_each_script_of_another_project_is_listed() -> None:
    files = {entry["file"] for entry in vendored.read_entries()}
    minified = (ROOT / "executor/web/static").glob("*.min.*")
    assert {str(file.relative_to(ROOT)) for file in minified} == files


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = vendored.read_entries()[0] | {"sha256": "0" * 64}
    (tmp_path / "vendored.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(vendored, "LIST_FILE", tmp_path / "vendored.json")
    with pytest.raises(ValueError, match="is not the file of htmx"):
        vendored.sbom_components()


def test_the_sbom_of_an_image_has_the_vendored_files(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    file.write_text('{"components": []}')
    vendored.main(file)
    assert [part["name"] for part in json.loads(file.read_text())["components"]] == ["htmx.org"]
