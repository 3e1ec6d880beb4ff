"""The corpus that `make fuzz` has kept is parsed again: no parser raises what it must not raise."""

from __future__ import annotations

import pytest
from fuzzing.corpus_files import FOLDER, read_corpus
from fuzzing.parsers import PARSERS
from fuzzing.seeds import SEEDS


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_of_outside_text_survives_its_corpus(parser: str) -> None:
    for data in read_corpus(parser):
        PARSERS[parser](data)


def test_every_parser_has_seeds_and_a_corpus() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(SEEDS) == set(PARSERS)
