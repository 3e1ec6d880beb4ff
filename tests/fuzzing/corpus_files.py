"""The corpus of each parser: the inputs with which fuzzing reached different code, one per line, in base64."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from fuzzing.seeds import SEEDS

FOLDER = Path(__file__).parent / "corpus"
#: The limits of a stored corpus. Longer inputs reach the same code as short ones.
MAX_STORED_BYTES = 1024
MAX_STORED_INPUTS = 120


def read_corpus(parser: str) -> list[bytes]:
    """Return the inputs of a parser: its seeds, and those that fuzzing has stored."""
    stored = [base64.b64decode(line) for line in (FOLDER / f"{parser}.txt").read_text("ascii").splitlines()]
    return [*SEEDS[parser], *stored]


def write_corpus(parser: str, inputs: Iterable[bytes]) -> None:
    """Write the shortest inputs of a parser, each once, sorted."""
    stored = sorted({data for data in inputs if len(data) <= MAX_STORED_BYTES}, key=lambda data: (len(data), data))
    lines = [base64.b64encode(data).decode("ascii") for data in stored[:MAX_STORED_INPUTS]]
    (FOLDER / f"{parser}.txt").write_text("".join(f"{line}\n" for line in lines), "ascii")
