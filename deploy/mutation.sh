#!/bin/sh
# Mutation tests of the job queue, the mappings and the reporter: mutation.sh PYTHON [MUTANT...]. Changes their lines one
# by one, in a copy of the checkout, and lists the mutants that no test detects. MUTANT: a name of mutmut, wildcards
# allowed. All mutants take about an hour.
set -eu
python=$1
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --no-dereference --parents -t "$copy"
cd "$copy"
# Its own virtual environment: mutmut's dependencies would change our pinned versions.
deploy/setup.sh "$python" .venv
.venv/bin/python -m pip --disable-pip-version-check --quiet install 'mutmut>=3.8,<3.9'
status=0
.venv/bin/mutmut run "$@" >mutmut.log 2>&1 || status=$?
tr '\r' '\n' <mutmut.log | tail -n 12
echo "Mutants that survived, or that no test reached:"
.venv/bin/mutmut results | grep -v ': killed$' || true
.venv/bin/mutmut results --all true | awk -F': ' 'NF > 1 {
    all++
    if ($NF == "killed" || $NF == "timeout") killed++
  }
  END { printf "%d of %d mutants killed (%.0f %%)\n", killed, all, all ? 100 * killed / all : 0 }'
exit $status
