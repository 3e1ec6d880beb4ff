"""Fuzzes one parser with atheris: python -m fuzzing PARSER SECONDS. Adds the inputs that reach new code to the corpus.

Run by deploy/fuzz.sh, in a virtual environment that has atheris. An input has at most 100 kB. Fuzzing ends with an
error at the first input for which the parser raises an unexpected error or takes more than a second of CPU time. This
input is written to `.cache/fuzzing/PARSER/`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import atheris
from fuzzing.corpus_files import read_corpus, write_corpus

atheris.enabled_hooks.add("str")
with atheris.instrument_imports(include=["executor", "ansible_collections.agent_smith"]):
    from fuzzing.parsers import PARSERS

MAX_INPUT_BYTES = 100_000
MAX_CPU_S = 1.0
MAX_MEMORY_MIB = 1024


def fuzz(parser: str, seconds: int) -> int:
    """Fuzz in a child process, then store the fewest inputs that reach the same code. Return the exit code."""
    work_folder = Path(".cache/fuzzing") / parser
    found_folder, merged_folder = work_folder / "found", work_folder / "merged"
    for folder in (found_folder, merged_folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
    for number, data in enumerate(read_corpus(parser)):
        (found_folder / f"kept-{number}").write_bytes(data)
    limits = [f"-max_len={MAX_INPUT_BYTES}", f"-rss_limit_mb={MAX_MEMORY_MIB}", "-timeout=60"]
    outcome = _run(
        parser,
        *limits,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={work_folder}/",
        "-print_final_stats=1",
        found_folder,
    )
    if outcome == 0:
        outcome = _run(parser, *limits, "-merge=1", merged_folder, found_folder)
        inputs = [file.read_bytes() for file in merged_folder.iterdir()]
        if not inputs:
            return 1  # the merge has failed
        write_corpus(parser, inputs)
    return outcome


def _run(parser: str, *arguments: object) -> int:
    """Run libFuzzer. It starts itself again by executing its `argv[0]`, so `argv[0]` is the path of a shell script."""
    script = Path(".cache/fuzzing") / parser / "fuzz"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuzzing --one {parser} "$0" "$@"\n', "ascii")
    script.chmod(0o700)
    return subprocess.run([str(script), *map(str, arguments)], check=False).returncode


def _parse_within_cpu_limit(parser: str, data: bytes) -> None:
    """Call the parser. Raises TimeoutError if it takes too long."""
    started = time.process_time()
    PARSERS[parser](data)
    spent_s = time.process_time() - started
    if spent_s > MAX_CPU_S:
        raise TimeoutError(f"{spent_s:.1f} s of CPU time for {len(data)} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        name = sys.argv[2]
        atheris.Setup(sys.argv[3:], lambda data: _parse_within_cpu_limit(name, data))
        atheris.Fuzz()
    else:
        sys.exit(fuzz(sys.argv[1], int(sys.argv[2])))
