"""Plans and makes the changes of one run of `smith init`, and checks the result as `smith doctor` does."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from executor.cli.doctor import show_checks
from executor.cli.init_core import CoreAnswers, CoreSetup
from executor.cli.init_files import SetupFolder, make_folder, write_file
from executor.cli.init_proxmox import ProxmoxSetup
from executor.cli.init_questions import show_lines
from executor.cli.init_settings import InitSettings
from executor.cli.init_units import Unit, UnitKind, make_unit, require_startable
from executor.cli.output import show_text
from executor.cli.tables import show_heading
from executor.doctor.checks import Area, exit_code
from executor.doctor.run import run_checks
from executor.errors import SettingsError


class Setup:
    """Plans, shows and makes the changes of one run of `smith init`."""

    def __init__(  # noqa: PLR0913, PLR0917 (most of the parameters are the operator's answers)
        self,
        files: SetupFolder,
        settings: InitSettings,
        proxmox: ProxmoxSetup,
        core: CoreAnswers,
        kind: UnitKind,
        unit_folder: Path | None,
        replaces_tokens: bool,
    ) -> None:
        """Read what exists in Proxmox and FulcrumCore, and plan the changes that create what is missing."""
        self._files, self._settings, self._kind, self._ca_pem = files, settings, kind, proxmox.ca_pem
        self._answers = {"agent": core.agent, "provider": core.provider, "unit": str(kind)}
        if unit_folder is not None:
            self._answers["unit_folder"] = str(unit_folder)
        require_startable(kind, files.path)
        self._unit: Unit = make_unit(kind, files.path, unit_folder, has_ca=bool(proxmox.ca_pem))
        _require_writable([files.path, *(path.parent for path in self._unit.files)])
        self._changes_settings = bool(files.changed_settings(self._final_settings()))
        planned = settings.validated()
        self._proxmox = proxmox.changes(planned, files.proxmox_secret, replaces_token=replaces_tokens)
        self._core = CoreSetup(planned, core, files.fulcrum_token, replaces_token=replaces_tokens)

    def show_plan(self) -> bool:
        """Show every planned change. Return whether there is at least one."""
        parts = {
            "Proxmox": [change.text for change in self._proxmox.changes],
            "FulcrumCore": self._core.planned(),
            "Files": [f"write {path}" for path in self._files_to_write()],
        }
        for heading, texts in parts.items():
            if texts:
                show_heading(heading)
                show_lines(texts)
        if differences := self._core.differences():
            show_heading("Objects with other content in FulcrumCore, which are not changed")
            show_lines(differences)
        return any(parts.values())

    def run(self) -> None:
        """Make the changes. The settings are written first: a run after an interruption uses them as defaults."""
        self._files.make()
        if self._ca_pem:
            self._write(self._files.ca_file, self._ca_pem, mode=0o644)
        self._files.write_settings(self._final_settings())
        self._files.write_answers(self._answers)
        show_lines(f"done: {text}" for text in self._proxmox.run())
        show_lines(f"done: {text}" for text in self._core.run())
        for path, text in self._unit.files.items():
            if path.exists() and path.read_text("utf-8") != text:
                show_text(f"{path} has other content and was not changed")
            else:
                make_folder(path.parent)
                self._write(path, text, mode=0o644)

    def check(self) -> int:
        """Run the checks of `smith doctor`, show the command that starts the agent, and return the exit code."""
        show_heading("smith doctor")
        inherited = {name: value for name, value in os.environ.items() if name not in self._settings.names}
        environ = inherited | self._settings.on_this_machine(self._files, self._kind, has_ca=bool(self._ca_pem))
        checks = list(run_checks(env_file=None, environ=environ))
        # Checks of this machine say nothing about an agent in a container, which has its own file system and database.
        if self._kind.is_container:
            checks = [check for check in checks if check.area not in (Area.DATABASE, Area.MACHINE)]
        show_checks(checks)
        show_heading("Start the agent by")
        show_text(self._unit.start_command)
        return exit_code(checks)

    def _final_settings(self) -> dict[str, str]:
        return self._settings.of_agent(self._files, self._kind, has_ca=bool(self._ca_pem))

    def _files_to_write(self) -> list[Path]:
        paths = [self._files.ca_file] if self._ca_pem else []
        paths = [path for path in paths if not _has_content(path, self._ca_pem)]
        if self._changes_settings:
            paths.append(self._files.settings_file)
        return paths + [path for path in self._unit.files if not path.exists()]

    @staticmethod
    def _write(path: Path, text: str, *, mode: int) -> None:
        if not _has_content(path, text):
            write_file(path, text, mode=mode)


def _require_writable(folders: Iterable[Path]) -> None:
    """Raise SettingsError if this process may not create files in a folder. Called before anything is changed."""
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            remedy = "run it as root, or choose other folders by --folder and --unit-folder"
            raise SettingsError(f"{folder} cannot be written by uid {os.geteuid()}: {remedy}")


def _has_content(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text
