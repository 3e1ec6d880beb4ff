"""The extra variable `vm` of `smith play`, read from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from executor.cli.play_values import read_members, secrets_in


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


def test_a_member_is_a_secret_by_its_option_or_by_its_name_at_any_depth() -> None:
    members = {
        "cores": 2,
        "name": "web-1",
        "key": "by option",
        "properties": {
            "apiToken": "by name",
            "list": [{"dbPassword": "in a list"}],
            "secrets": ["a", "b"],
            "note": "n",
        },
    }
    assert secrets_in(members, {"key": {"no_log": True}}) == ["by option", "by name", "in a list", "a", "b"]


@pytest.mark.parametrize("key", ["properties.apiToken", "properties.db.password", "secrets.first", "apiKey"])
def test_a_secret_is_refused_as_an_argument_even_without_a_description_of_its_member(key: str) -> None:
    with pytest.raises(typer.BadParameter, match="is a secret") as caught:
        read_members(None, [f"{key}=opensesame"], {})
    assert "opensesame" not in str(caught.value)
    assert read_members(None, [f"{key}=vault://entry"], {})


def test_a_described_member_is_a_secret_only_if_its_description_says_so() -> None:
    options = {"token_count": {"type": "int"}, "key": {"type": "str", "no_log": True}}
    assert read_members(None, ["token_count=3"], options) == {"token_count": 3}
    with pytest.raises(typer.BadParameter, match="is a secret"):
        read_members(None, ["key=x"], options)
