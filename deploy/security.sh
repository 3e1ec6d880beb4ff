#!/bin/sh
# Security checks: security.sh BIN. Without a network some are skipped, and listed at the end. FULL=1 also runs the tests
# that take minutes (canaries and payloads through the whole system).
set -u
bin=$1
failed=""
skipped=""
run() {
  name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "ok       $name: $(printf '%s\n' "$output" | tail -n 1)"
  else
    echo "FAILED   $name"
    printf '%s\n' "$output"
    failed="$failed [$name]"
  fi
}
skip() {
  echo "SKIPPED  $1: $2"
  skipped="$skipped [$1]"
}

# Tools get their own virtual environment: their dependencies would change our pinned versions.
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
has_tool() {
  [ -x "$tools/bin/python" ] || "$bin/python" -m venv "$tools"
  "$tools/bin/python" -m pip --quiet --disable-pip-version-check install "$1" >/dev/null 2>&1
}

# Known vulnerabilities. The tool and its database need a network.
audit() {
  if ! has_tool pip-audit; then
    skip "known vulnerabilities" "pip-audit cannot be installed here"
    return
  fi
  output=$("$tools/bin/pip-audit" --progress-spinner off --disable-pip --no-deps -r deploy/image/requirements.txt 2>&1)
  code=$?
  unknown=$(printf '%s\n' "$output" | grep -c 'could not be audited')
  if [ $code -eq 0 ] && [ "$unknown" -gt 0 ]; then
    skip "known vulnerabilities" "pip-audit's database lacks $unknown distributions"
  elif [ $code -eq 0 ]; then
    echo "ok       known vulnerabilities: none"
  elif printf '%s\n' "$output" | grep -qE 'GHSA-|PYSEC-|CVE-'; then
    echo "FAILED   known vulnerabilities"
    printf '%s\n' "$output"
    failed="$failed [known vulnerabilities]"
  else
    skip "known vulnerabilities" "pip-audit reached no database: $(echo "$output" | tail -n 1)"
  fi
}

# The SBOM of the image, as `make release` writes it.
write_sbom() {
  if ! has_tool cyclonedx-bom; then
    skip "SBOM" "cyclonedx-bom cannot be installed here"
    return
  fi
  run "SBOM" deploy/parts_list.sh "$tools/bin" "$tools/parts.cdx.json"
}

run "secrets in the repository" "$bin/python" deploy/scan_secrets.py
run "licences" "$bin/python" deploy/licences.py
run "ruff, with its security rules" "$bin/ruff" check .
run "SECURITY.md names tests that exist" "$bin/python" -m pytest -q -p no:cacheprovider tests/unit/docs/test_security_docs.py
tests="tests/security/test_process.py tests/security/test_host_header.py tests/security/test_supply_chain.py
  tests/security/test_http_api.py tests/unit/test_redaction.py tests/integration/fulcrum/test_vault.py"
[ -z "${FULL:-}" ] || tests="$tests tests/security"
# shellcheck disable=SC2086  # a list of files
run "security tests" "$bin/python" -m pytest -n 2 --dist loadgroup -q -p no:cacheprovider $tests
[ -n "${FULL:-}" ] || skip "canaries, payloads, privileges, rotation through the whole system" "they take minutes; FULL=1 runs them"
audit
write_sbom
[ -z "$skipped" ] || echo "skipped:$skipped"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
