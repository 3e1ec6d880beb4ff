"""SSH keys: `is_public_key` agrees with `ssh-keygen -l`, which Proxmox runs."""

from __future__ import annotations

import base64
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.shared.ssh_keys import is_public_key

KEYGEN = shutil.which("ssh-keygen")
KINDS = ("ed25519", "rsa -b 1024", "ecdsa -b 256", "ecdsa -b 384", "ecdsa -b 521")


@pytest.fixture(scope="module", params=KINDS)
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new public key, without its comment."""
    if KEYGEN is None:
        pytest.skip("ssh-keygen is not installed")
    file = tmp_path_factory.mktemp("keys") / "key"
    arguments = ["-q", "-t", *request.param.split(), "-N", "", "-C", "", "-f", str(file)]
    subprocess.run([KEYGEN, *arguments], check=True)
    return file.with_suffix(".pub").read_text().strip()


def variants(key: str) -> Iterator[str]:
    """Yield lines with the key, with parts of it, and with altered data."""
    key_type, data = key.split()
    yield from (key, f"  {key} a comment", f"{key_type}\t{data}", f"restrict {key}", f'command="a b" {key}', f"# {key}")
    yield from (data, key_type, f"{key}x", key[:-1], f"ssh-rsa {data}", f"ssh-ed25519 {data}", f"{key_type},{data}")
    raw, rng = base64.b64decode(data), random.Random(4711)  # noqa: S311 - the same cases in every run
    altered = [raw[: rng.randrange(len(raw))] for _ in range(6)] + [raw + b"abc", raw + b"\0\0\0\1a"]
    for _ in range(6):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        altered.append(bytes(changed))
    yield from (f"{key_type} {base64.b64encode(each).decode()}" for each in altered)


def test_a_line_is_a_key_if_ssh_keygen_accepts_it(key: str, tmp_path: Path) -> None:
    file = tmp_path / "line"
    for line in variants(key):
        file.write_text(line)
        completed = subprocess.run([str(KEYGEN), "-l", "-f", str(file)], capture_output=True, check=False)
        assert is_public_key(line) is (completed.returncode == 0), line


@pytest.mark.parametrize(
    "line", ["", "#", "me@host", "ssh-dss AAAAB3NzaC1kc3MAAACBAP", "ssh-ed25519 AAAA", "ssh-rsa A"]
)
def test_text_without_a_complete_key_is_no_key(line: str) -> None:
    assert not is_public_key(line)
