#!/bin/sh
# What the tests of the ledger are worth: changes its modules line by line, in a copy, and lists what no test noticed.
# mutation.sh PYTHON [MUTANT...]; mutants are mutmut's names, wildcards allowed. About an hour for all.
set -eu
python=$1
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
cd "$copy"
# An environment of its own: mutmut's needs would move pins of ours.
deploy/setup.sh "$python" .venv
.venv/bin/python -m pip --disable-pip-version-check --quiet install 'mutmut>=3.8,<3.9'
status=0
.venv/bin/mutmut run "$@" >mutmut.log 2>&1 || status=$?
tr '\r' '\n' <mutmut.log | tail -n 12
echo "Those that lived, or that no test reached:"
.venv/bin/mutmut results | grep -v ': killed$' || true
.venv/bin/mutmut results --all true | awk -F': ' 'NF > 1 {
    all++
    if ($NF == "killed" || $NF == "timeout") killed++
  }
  END { printf "%d of %d mutants killed (%.0f %%)\n", killed, all, all ? 100 * killed / all : 0 }'
exit $status
