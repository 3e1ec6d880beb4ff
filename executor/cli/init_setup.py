"""Plans and makes the changes of one run of `smith init`, and then runs the checks of `smith doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from executor.cli.doctor import show_check_results
from executor.cli.init_core import FulcrumAnswers, FulcrumSetup
from executor.cli.init_files import SetupFolder, make_folder, write_file
from executor.cli.init_proxmox import ProxmoxAdminConnection
from executor.cli.init_questions import show_indented_lines
from executor.cli.init_settings import InitSettings
from executor.cli.init_units import Unit, UnitKind, make_unit, require_paths_usable_in_unit
from executor.cli.output import show_text
from executor.cli.tables import show_heading
from executor.doctor.checks import Area, exit_code
from executor.doctor.run import run_checks
from executor.errors import SettingsError


class Setup:
    """Plans, shows and makes the changes of one run of `smith init`.

    A unit consists of the files that start the agent: a systemd unit, a podman quadlet or a compose file.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (most of the parameters are the operator's answers)
        self,
        setup_folder: SetupFolder,
        settings: InitSettings,
        proxmox_connection: ProxmoxAdminConnection,
        fulcrum_answers: FulcrumAnswers,
        unit_kind: UnitKind,
        unit_folder: Path | None,
        replaces_tokens: bool,
    ) -> None:
        """Read the existing objects in Proxmox and FulcrumCore, and plan the creation of the missing objects.

        If `unit_folder` is None, the unit is written to the usual folder for this kind of unit. If `replaces_tokens` is
        True, an existing token whose secret is not stored is replaced, even if another installation may use the token.
        """
        self._setup_folder = setup_folder
        self._settings = settings
        self._unit_kind = unit_kind
        self._proxmox_ca_pem = proxmox_connection.ca_pem
        # The answers are stored. The next run of `smith init` uses them as defaults.
        self._answers = {
            "agent": fulcrum_answers.agent_name,
            "provider": fulcrum_answers.provider_name_or_id,
            "unit": str(unit_kind),
        }
        if unit_folder is not None:
            self._answers["unit_folder"] = str(unit_folder)
        require_paths_usable_in_unit(unit_kind, setup_folder.path)
        self._unit: Unit = make_unit(
            unit_kind, setup_folder.path, unit_folder, has_ca_file=bool(proxmox_connection.ca_pem)
        )
        _require_writable([setup_folder.path, *(path.parent for path in self._unit.files)])
        self._will_change_settings = bool(setup_folder.find_changed_settings(self._settings_for_agent()))
        validated_settings = settings.validated()
        self._proxmox_plan = proxmox_connection.make_plan(
            validated_settings, setup_folder.proxmox_secret_file, replaces_token=replaces_tokens
        )
        self._fulcrum_setup = FulcrumSetup(
            validated_settings, fulcrum_answers, setup_folder.fulcrum_token_file, replaces_token=replaces_tokens
        )

    def show_plan(self) -> bool:
        """Show every planned change. Return whether a change is planned."""
        texts_by_heading = {
            "Proxmox": [change.text for change in self._proxmox_plan.changes],
            "FulcrumCore": self._fulcrum_setup.describe_planned_changes(),
            "Files": [f"write {path}" for path in self._files_to_write()],
        }
        for heading, texts in texts_by_heading.items():
            if texts:
                show_heading(heading)
                show_indented_lines(texts)
        if differences := self._fulcrum_setup.describe_different_objects():
            show_heading("Objects in FulcrumCore that differ from what this command would create, and are not changed")
            show_indented_lines(differences)
        return any(texts_by_heading.values())

    def make_changes(self) -> None:
        """Make the changes.

        The settings are written before Proxmox and FulcrumCore are changed. So the next run uses the settings, even if
        this run is interrupted.
        """
        self._setup_folder.create_folders()
        if self._proxmox_ca_pem:
            self._write_if_different(self._setup_folder.ca_file, self._proxmox_ca_pem, mode=0o644)
        self._setup_folder.write_settings(self._settings_for_agent())
        self._setup_folder.write_answers(self._answers)
        show_indented_lines(f"done: {text}" for text in self._proxmox_plan.make_changes())
        show_indented_lines(f"done: {text}" for text in self._fulcrum_setup.make_changes())
        for path, text in self._unit.files.items():
            if path.exists() and path.read_text("utf-8") != text:
                show_text(f"{path} exists with other content, and was not changed")
            else:
                make_folder(path.parent)
                self._write_if_different(path, text, mode=0o644)

    def check_and_show_start_command(self) -> int:
        """Run the checks of `smith doctor`, show the command that starts the agent, and return the exit code."""
        show_heading("smith doctor")
        # The checks use the settings of `smith init`, not the settings in this process's environment. In the values for
        # the doctor, paths are paths of this machine. In the values for the agent, they may be paths in a container.
        inherited_variables = {
            name: value for name, value in os.environ.items() if name not in self._settings.all_setting_names
        }
        environ = inherited_variables | self._settings.values_for_doctor(
            self._setup_folder, self._unit_kind, has_ca_file=bool(self._proxmox_ca_pem)
        )
        results = list(run_checks(env_file=None, environ=environ))  # None: no file with settings is read
        # The checks of this machine and its database say nothing about an agent in a container, which has another file
        # system and another database.
        if self._unit_kind.is_container:
            results = [result for result in results if result.area not in (Area.DATABASE, Area.MACHINE)]
        show_check_results(results)
        show_heading("Start the agent with this command")
        show_text(self._unit.start_command)
        return exit_code(results)

    def _settings_for_agent(self) -> dict[str, str]:
        return self._settings.values_for_agent(
            self._setup_folder, self._unit_kind, has_ca_file=bool(self._proxmox_ca_pem)
        )

    def _files_to_write(self) -> list[Path]:
        paths = [self._setup_folder.ca_file] if self._proxmox_ca_pem else []
        paths = [path for path in paths if not _has_text(path, self._proxmox_ca_pem)]
        if self._will_change_settings:
            paths.append(self._setup_folder.settings_file)
        return paths + [path for path in self._unit.files if not path.exists()]

    @staticmethod
    def _write_if_different(path: Path, text: str, *, mode: int) -> None:
        if not _has_text(path, text):
            write_file(path, text, mode=mode)


def _require_writable(folders: Iterable[Path]) -> None:
    """Raise SettingsError if this process cannot create files in one of the folders. Called before any change.

    For a folder that does not exist, its nearest existing parent is checked.
    """
    for folder in folders:
        existing_folder = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing_folder, os.W_OK | os.X_OK):
            remedy = "run `smith init` as root, or choose other folders with --folder and --unit-folder"
            raise SettingsError(f"{folder} cannot be written by uid {os.geteuid()}: {remedy}")


def _has_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text
