"""The extra variable `vm` of `smith play`, read from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from executor.cli.play_values import read_members


def test_a_file_that_cannot_be_read_is_not_reported_as_invalid_yaml(tmp_path: Path) -> None:
    file = tmp_path / "vars.yml"
    file.mkdir()
    with pytest.raises(typer.BadParameter) as caught:
        read_members(file, [], {})
    assert str(caught.value) == f"{file} cannot be read: Is a directory"


def test_invalid_yaml_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "vars.yml"
    file.write_text("vm:\n  name: [\n")
    with pytest.raises(typer.BadParameter) as caught:
        read_members(file, [], {})
    assert str(caught.value) == f"{file} is not valid YAML, at line 3"
