"""Reads and writes the files of `smith init`: the settings, the secrets, the CA, and answers that are not settings.

The CA verifies Proxmox's certificate. An answer that is not a setting is, for example, the agent's name. Each file is
replaced in one step, so that an interrupted run leaves no incomplete file. A run is here an execution of `smith init`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from executor.errors import SettingsError
from executor.redaction import redactor
from executor.settings.settings import FIELDS
from executor.settings.sources import gather_values, read_secret_file

#: A value that needs no quotes in the settings file. Only such values are written, because the file is read by podman,
#: docker, systemd and shells, and each of them treats quotes in another way.
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9._,:/=@+*\[\]-]*")


class SetupFolder:
    """The folder of one agent's settings and secrets."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.settings_file = self.path / "agent-smith.env"
        self.ca_file = self.path / "proxmox-ca.pem"
        self.secrets_folder = self.path / "secrets"
        self.fulcrum_token_file = SecretFile(self.secrets_folder / "fulcrum_api_token")
        self.proxmox_secret_file = SecretFile(self.secrets_folder / "proxmox_token_secret")
        self._answers_file = self.path / "init.json"

    def create_folders(self) -> None:
        """Create this folder and the secrets folder in this folder. Only the owner can open the secrets folder."""
        make_folder(self.path)
        self.secrets_folder.mkdir(mode=0o700, exist_ok=True)

    def read_settings(self) -> dict[str, str]:
        """Return the settings that an earlier run, or an operator, has written. Raises SettingsError."""
        # The keys of FIELDS are the names of all settings.
        gathered_settings = gather_values(names=FIELDS, secret_names=(), environ={}, env_file=self.settings_file)
        # Only one problem has a `name` (of a setting): SMITH_SECRETS_DIR names a folder that does not exist. This
        # problem is ignored, because the folder may be created later.
        if problems := [problem.text for problem in gathered_settings.problems if not problem.name]:
            raise SettingsError("\n".join(problems))
        return gathered_settings.values

    def write_settings(self, values: Mapping[str, str]) -> bool:
        """Set these settings, and keep every other line of the file; return whether the file was changed.

        If a value is empty, the setting's line is removed. A line that has the value already is not changed. Raises
        SettingsError for a new value that would need quotes.
        """
        changed_values = self.find_changed_settings(values)
        if changed_values:
            old_text = self.settings_file.read_text("utf-8") if self.settings_file.exists() else ""
            write_file(self.settings_file, _with_changed_lines(old_text, changed_values), mode=0o600)
        return bool(changed_values)

    def find_changed_settings(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the settings in `values` that have a different value in the file.

        A setting that is not in the file counts as empty. Raises SettingsError for a new value that would need quotes.
        """
        stored_values = self.read_settings()
        changed_values = {name: value for name, value in values.items() if value != stored_values.get(name, "")}
        for name, value in changed_values.items():
            if not _PLAIN_VALUE.fullmatch(value):
                raise SettingsError(
                    f"the value of {name} has a character that would need quotes in {self.settings_file}: "
                    "use only letters (A-Z, a-z), digits and . _ , : / = @ + * [ ] -"
                )
        return changed_values

    def read_answers(self) -> dict[str, str]:
        """Return the answers of an earlier run that are not settings, such as the agent's name."""
        try:
            answers = json.loads(self._answers_file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in answers.items()} if isinstance(answers, dict) else {}

    def write_answers(self, answers: Mapping[str, str]) -> None:
        """Write the answers, which a later run uses as defaults."""
        if self.read_answers() != answers:
            write_file(self._answers_file, json.dumps(answers, indent=2) + "\n", mode=0o600)


class SecretFile:
    """The file with the secret of one token. A second file, the record, exists while the token is being created.

    By the record, a later run recognizes the token that an interrupted run has created. For FulcrumCore, the record
    contains the ids of the agent's earlier tokens: a token that is not among them was created by the interrupted run.
    For Proxmox, the record contains the comment of the new token.

    FulcrumCore and Proxmox show a secret only once, in their answer to the request that creates the token. So
    `write_record` writes the record before this request, and `store_secret` removes the record after it has written the
    secret. If `read_record` returns a record, an earlier run of `smith init` was interrupted. The next run then deletes
    the token that the interrupted run created, and creates a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record_file = path.with_name(f"{path.name}.pending")

    def read(self) -> str:
        """Return the secret, or '' if there is no file. Raises SettingsError if the file cannot be used.

        The redactor masks the secret in all output from now on.
        """
        if not self.path.exists():
            return ""
        secret = read_secret_file(self.path)
        redactor.add(secret)
        return secret

    def read_record(self) -> dict[str, Any] | None:
        """Return the record of an interrupted run, or None if no run was interrupted."""
        try:
            record = json.loads(self._record_file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write the record. If this run is interrupted, a later run recognizes the token of this run by the record."""
        write_file(self._record_file, json.dumps(record), mode=0o600)

    def store_secret(self, secret: str) -> None:
        """Write the secret, then remove the record."""
        redactor.add(secret)
        write_file(self.path, f"{secret}\n", mode=0o600)
        self._record_file.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create the folder and the missing folders above it. All users can enter each new folder, whatever the umask is.

    Otherwise the system user that runs the agent could not read the CA, which is in the folder of the settings.
    """
    missing_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing_folders):
        path.mkdir()
        path.chmod(0o755)


def write_file(path: Path, text: str, *, mode: int) -> None:
    """Write a file in one step, and flush it to the disk. If root replaces a file, the owner stays the same."""
    temporary_file = path.with_name(f".{path.name}.new")
    temporary_file.unlink(missing_ok=True)
    descriptor = os.open(temporary_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        if path.exists() and os.geteuid() == 0:
            old_status = path.stat()
            os.fchown(descriptor, old_status.st_uid, old_status.st_gid)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary_file.replace(path)


def _with_changed_lines(text: str, values: Mapping[str, str]) -> str:
    """Return the text of the settings file with these values.

    The line of a setting is replaced, or removed if the value is empty. A setting that has no line is added at the end.
    """
    lines = text.splitlines()
    for name, value in values.items():
        line_numbers = [number for number, line in enumerate(lines) if re.match(rf"(export\s+)?{name}\s*=", line)]
        for number in reversed(line_numbers[1:] if value else line_numbers):
            del lines[number]
        if value and line_numbers:
            lines[line_numbers[0]] = f"{name}={value}"
        elif value:
            lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n" if lines else ""
