#!/bin/sh
# Fuzzes the parsers of outside text with atheris, for SECONDS each: fuzz.sh PYTHON SECONDS [PARSER...]. Keeps the inputs
# that reach new code in tests/fuzzing/corpus. Ends with an error if a parser did not survive an input.
set -eu
python=$1
seconds=$2
shift 2
# Its own virtual environment: atheris is not among our pinned versions.
venv=.cache/fuzzing/venv
if ! [ -f "$venv/.complete" ]; then
  deploy/setup.sh "$python" "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install 'atheris>=3.0,<4'
  touch "$venv/.complete"
fi
[ $# -gt 0 ] || set -- $(PYTHONPATH=tests:.collections "$venv/bin/python" -c 'from fuzzing.parsers import PARSERS; print(*PARSERS)')
failed=""
for parser in "$@"; do
  echo "== $parser"
  log=.cache/fuzzing/$parser.log
  PYTHONPATH=tests:.collections "$venv/bin/python" -m fuzzing "$parser" "$seconds" >"$log" 2>&1 || failed="$failed $parser"
  grep -E '^stat::(number_of_executed_units|peak_rss_mb|slowest_unit_time_sec)' "$log" || tail -n 25 "$log"
done
[ -z "$failed" ] || { echo "failed:$failed (see .cache/fuzzing)"; exit 1; }
