#!/bin/sh
# Runs every static check: check.sh BIN. Prints all failures, then exits with 1.
set -u
bin=$1
failed=""
run() {
  name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "ok      $name"
  else
    echo "FAILED  $name"
    echo "$output"
    failed="$failed $name"
  fi
}
PATH=$(cd "$bin" && pwd):$PATH
export PATH
run "ruff format" ruff format --check .
run "ruff" ruff check .
run "mypy" mypy
run "import-linter" lint-imports
run "deptry" deptry .
run "deptry of the lab" env -C lab deptry .
run "yamllint" yamllint --strict .
run "ansible-lint" ansible-lint --offline --profile production --strict
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
