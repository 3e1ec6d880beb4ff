#!/bin/sh
# Everything that a security officer can have checked here: security.sh BIN. Ends with 0 without a network, too, but then
# says what was left out. FULL=1 also runs the tests that need minutes (canaries and payloads through the whole system).
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

# Tools that only this needs, in an environment of their own: what they depend on would move the pins of ours.
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
has_tool() {
  [ -x "$tools/bin/python" ] || "$bin/python" -m venv "$tools"
  "$tools/bin/python" -m pip --quiet --disable-pip-version-check install "$1" >/dev/null 2>&1
}

# Known vulnerabilities: the tool and its database are both out there.
audit() {
  if ! has_tool pip-audit; then
    skip "known vulnerabilities" "pip-audit cannot be installed here"
    return
  fi
  output=$("$tools/bin/pip-audit" --progress-spinner off --disable-pip --no-deps -r deploy/image/requirements.txt 2>&1)
  code=$?
  unknown=$(printf '%s\n' "$output" | grep -c 'could not be audited')
  if [ $code -eq 0 ] && [ "$unknown" -gt 0 ]; then
    skip "known vulnerabilities" "what pip-audit can reach knows nothing of $unknown distributions"
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

# What a build installs, as CycloneDX; `make release` ships the same.
parts_list() {
  if ! has_tool cyclonedx-bom; then
    skip "parts list (SBOM)" "cyclonedx-bom cannot be installed here"
    return
  fi
  run "parts list (SBOM)" deploy/parts_list.sh "$tools/bin" "$tools/parts.cdx.json"
}

run "secrets in the repository" "$bin/python" deploy/scan_secrets.py
run "licences" "$bin/python" deploy/licences.py
run "lint, ruff's security rules among them" "$bin/ruff" check .
run "SECURITY.md names tests that exist" "$bin/python" -m pytest -q -p no:cacheprovider tests/unit/test_security_docs.py
tests="tests/security/test_process.py tests/security/test_host_header.py tests/security/test_supply_chain.py
  tests/security/test_http_api.py tests/unit/test_redaction.py tests/integration/test_vault.py"
[ -z "${FULL:-}" ] || tests="$tests tests/security"
# shellcheck disable=SC2086  # a list of files
run "security tests" "$bin/python" -m pytest -n 2 --dist loadgroup -q -p no:cacheprovider $tests
[ -n "${FULL:-}" ] || skip "canaries, payloads, privileges, rotation through the whole system" "minutes; FULL=1 runs them"
audit
parts_list
[ -z "$skipped" ] || echo "left out:$skipped"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
