"""Search FILE, or all files that git tracks, for secrets: scan_secrets.py [FILE...].

The script prints the file, the line and the kind of each secret, but not the secret. It ignores secrets in lines with
the text `not-a-secret`, such as the made-up secrets of tests. The exit code is 1 if the script finds a secret.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: A secret in a line with this text is not reported.
IGNORED_LINE_MARK = "not-a-secret"
#: How many bytes at the start of a file are searched.
MAX_SEARCHED_BYTES = 2_000_000
#: A regular expression for each kind of secret.
PATTERNS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*(?:\\n)?\s*[A-Za-z0-9+/]{40}",
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{20,}\b",
    "PyPI token": r"\bpypi-[A-Za-z0-9_-]{50,}\b",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}",
    "Proxmox token": r"PVEAPIToken=[^\s!]+![^\s=]+=[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "password in a URL": r"\b[a-z][a-z0-9+]*://[^\s/:@'\"{}<>$]+:(?!(?:password|secret|pass|pw|x+|\*+|\w*word)@)"
    r"[^\s/@'\"{}<>$]{8,}@(?!(?:[\w.-]*\.)?(?:example|test|invalid|localhost)\b|127\.)[\w-]+\.[\w.-]+",
}
_COMPILED_PATTERNS = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}


def tracked_files() -> list[Path]:
    """Return every file that git tracks."""
    output = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout.decode()  # noqa: S607
    return [Path(name) for name in output.split("\0") if name]


def find_secrets(file: Path) -> Iterator[str]:
    """Yield `file:line: kind` for each text that looks like a secret."""
    try:
        data = file.read_bytes()[:MAX_SEARCHED_BYTES]
    except (FileNotFoundError, IsADirectoryError):
        return
    text = data.decode("utf-8", "replace")
    lines = text.splitlines()
    for kind, pattern in _COMPILED_PATTERNS.items():
        for match in pattern.finditer(text):
            first_line = text.count("\n", 0, match.start()) + 1
            last_line = text.count("\n", 0, match.end()) + 1
            if not any(IGNORED_LINE_MARK in line for line in lines[first_line - 1 : last_line]):
                yield f"{file}:{first_line}: {kind}"


def main(arguments: list[str]) -> int:
    """Print where secrets were found; return the exit code."""
    files = [Path(name) for name in arguments] or tracked_files()
    findings = [line for file in files for line in find_secrets(file)]
    print("\n".join(findings) or f"{len(files)} files: no secrets")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
