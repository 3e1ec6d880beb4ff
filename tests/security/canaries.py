"""Canary secrets, and a scanner that finds them in files, processes and responses, in every encoding in use.

This module shares no code with `executor.redaction`, so it finds what the redactor misses. Each canary contains a core
of letters and digits, which no escaping changes. The scanner also searches for the core, so it finds partial secrets.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil

SAMPLE_INTERVAL_S = 0.1


def make_core() -> str:
    """Return a unique string of letters and digits."""
    return f"Kn4ry{secrets.token_hex(8)}"


@dataclass(frozen=True)
class Canary:
    """One secret of one kind."""

    kind: str
    value: str = field(repr=False)
    cores: tuple[str, ...] = field(
        default=(), repr=False
    )  #: the parts that identify the secret; without any, only the value does

    def needles(self) -> set[bytes]:
        """Return every byte string that identifies the secret."""
        whole = {form.encode("utf-8", "surrogatepass") for form in _encoded_forms(self.value)}
        pieces = {inner for core in (self.value, *self.cores) for inner in _inner_base64(core.encode())}
        return {needle for needle in whole | pieces | {core.encode() for core in self.cores} if len(needle) >= 8}


@dataclass(frozen=True)
class Hit:
    """A place where a secret was found."""

    kind: str
    where: str


def _encoded_forms(value: str) -> Iterator[str]:
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(json.dumps(value))[3:-3]
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote(value)
    yield quote_plus(value)
    yield base64.b64encode(value.encode()).decode()
    yield base64.urlsafe_b64encode(value.encode()).decode()


def _inner_base64(data: bytes) -> Iterator[bytes]:
    """Yield the Base64 characters that depend on the data alone, for each of the three possible alignments."""
    for offset, skipped in ((0, 0), (1, 2), (2, 3)):
        yield base64.b64encode(bytes(offset) + data)[skipped : (offset + len(data)) * 8 // 6]


class Scanner:
    """Searches bytes and files for canaries."""

    def __init__(self, canaries: Iterable[Canary]) -> None:
        self._needles = [(needle, canary.kind) for canary in canaries for needle in canary.needles()]

    def find_in(self, data: bytes | str, where: str) -> set[Hit]:
        """Return the hits in a piece of data."""
        content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        return {Hit(kind, where) for needle, kind in self._needles if needle in content}

    def find_in_files_below(self, *folders: Path) -> set[Hit]:
        """Return the hits in the names and contents of the given files and of all files below the given folders."""
        hits: set[Hit] = set()
        for file in files_below(*folders):
            hits |= self.find_in(str(file), f"the name of {file}")
            try:
                hits |= self.find_in(file.read_bytes(), str(file))
            except (FileNotFoundError, OSError):
                continue  # deleted meanwhile, or a socket
        return hits


def files_below(*folders: Path) -> list[Path]:
    """Return every file below folders that exists now, and those of `folders` that are files."""
    files: list[Path] = []
    for folder in folders:
        files += [folder] if folder.is_file() else []
        files += [Path(place, name) for place, _folders, names in os.walk(folder) for name in names]
    return files


class ProcessWatch:
    """Scans arguments and environments of all descendants of a process until it is closed."""

    def __init__(self, root_pid: int, scanner: Scanner) -> None:
        self._root = root_pid
        self._scanner = scanner
        self._closed = threading.Event()
        self.hits: set[Hit] = set()
        self.command_lines: dict[int, str] = {}  #: by process id, the beginning of the command line
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the scans, and wait for the end of the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(SAMPLE_INTERVAL_S):
            try:
                descendants = psutil.Process(self._root).children(recursive=True)
            except psutil.Error:
                continue
            for process in descendants:
                self._scan_process(process.pid)

    def _scan_process(self, pid: int) -> None:
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if name == "cmdline":
                self.command_lines[pid] = data[:300].replace(b"\0", b" ").decode("utf-8", "replace")
            self.hits |= self._scanner.find_in(data, f"{name} of {self.command_lines.get(pid, pid)}")
