"""The corpus that `make fuzz` has kept is parsed again: no parser raises what it must not raise."""

from __future__ import annotations

import pytest
from fuzzing.corpus_files import FOLDER, read_corpus
from fuzzing.parsers import PARSERS


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_of_outside_text_survives_its_corpus(parser: str) -> None:
    inputs = read_corpus(parser)
    assert inputs
    for data in inputs:
        PARSERS[parser](data)


def test_every_corpus_has_a_parser() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(PARSERS)
