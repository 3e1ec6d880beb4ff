"""Parses again the corpus that `make fuzz` has stored: no parser raises an unexpected error."""

from __future__ import annotations

import pytest
from fuzzing.corpus_files import FOLDER, read_corpus
from fuzzing.parsers import PARSERS
from fuzzing.seeds import SEEDS


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_raises_no_unexpected_error_for_its_corpus(parser: str) -> None:
    for data in read_corpus(parser):
        PARSERS[parser](data)


def test_every_parser_has_seeds_and_a_corpus() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(SEEDS) == set(PARSERS)
