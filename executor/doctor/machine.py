"""Checks this machine: disk space, run folder, ansible-core, community.proxmox and certificate of the HTTP server.

The run folder (SMITH_RUN_DIR) contains a private folder for each run that has not ended.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from executor.agent.disk_space import BYTES_PER_MIB, MIN_FREE_MIB, free_bytes
from executor.database.engine import file_system_of
from executor.doctor import certificates
from executor.doctor.certificates import MIN_DAYS_LEFT
from executor.doctor.checks import CLOCK_REMEDY, Area, CheckResult, ResultFactory, command_line
from executor.doctor.folders import mount_point, nearest_existing_folder
from executor.runs.run_folder import MEMORY_FILE_SYSTEMS, why_run_folder_unusable
from executor.settings.settings import Settings
from executor.version import collection_search_path, community_proxmox_version, package_version

_RESULT_FACTORY = ResultFactory(Area.MACHINE)
#: The maximum length of the run folder's path. ansible-core 2.21 opens a socket below this folder. Linux limits the
#: path of a socket to 107 characters. Up to 67 of these characters follow the path of the run folder.
MAX_RUN_DIR_CHARS = 40
#: The remedy: a run folder in memory with a short path.
RUN_DIR_REMEDY = "SMITH_RUN_DIR=/dev/shm/agent-smith"
#: The size to which the remedy enlarges a full file system in memory. Many runs fit into this size.
ENLARGED_TMPFS_MIB = 256
#: The oldest version of ansible-core that pyproject.toml allows. A test compares this constant with the file.
MIN_ANSIBLE_CORE = (2, 19)
#: The versions of community.proxmox that requirements.yml allows: the oldest version, and the first version that is too
#: new. A test compares this constant with the file.
COMMUNITY_PROXMOX_VERSION_RANGE = ((1, 4), (3, 0))


def check_machine(settings: Settings) -> Iterator[CheckResult]:
    """Check the disk space, the run folder, ansible-core, community.proxmox and the HTTP server's certificate."""
    yield from _check_disk_space(settings)
    yield from _check_run_folder(settings)
    yield from _check_ansible()
    yield from _check_community_proxmox()
    if settings.smith_http_tls_certificate is not None:
        # Without SMITH_HTTP_TLS_KEY, the certificate's file also contains the private key.
        key = settings.smith_http_tls_key or settings.smith_http_tls_certificate
        yield _check_http_server_certificate(settings.smith_http_tls_certificate, key)


def _check_disk_space(settings: Settings) -> Iterator[CheckResult]:
    for folder_kind, folder in (("data", settings.smith_data_dir), ("run", settings.smith_run_dir)):
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        text = f"{folder}: {free_mib} MiB free"
        if free_mib < MIN_FREE_MIB[folder_kind]:
            text = f"{text}, but at least {MIN_FREE_MIB[folder_kind]} MiB are needed"
            yield _RESULT_FACTORY.fail(f"{folder_kind} folder", text, *_disk_space_remedies(folder_kind, folder))
        else:
            yield _RESULT_FACTORY.ok(f"{folder_kind} folder", text)


def _disk_space_remedies(folder_kind: str, folder: Path) -> list[str]:
    """Return the remedies for a full file system. A file system in memory can be enlarged."""
    mounted_at = mount_point(nearest_existing_folder(folder))
    usage_command = command_line("du", "-x", mounted_at)
    delete_remedy = (
        f"free space there ({usage_command} | sort -n), or use another disk: SMITH_{folder_kind.upper()}_DIR=<folder>"
    )
    if file_system_of(nearest_existing_folder(folder)) in MEMORY_FILE_SYSTEMS:
        return [command_line("mount", "-o", f"remount,size={ENLARGED_TMPFS_MIB}m", mounted_at), delete_remedy]
    return [delete_remedy]


def _check_run_folder(settings: Settings) -> Iterator[CheckResult]:
    """Warn if the run folder cannot be used, if its path is too long, or if it is not in memory."""
    folder = settings.smith_run_dir
    if reason := why_run_folder_unusable(folder):
        text = (
            f"{folder} cannot be used: {reason}. The agent uses a folder such as {folder}-2 instead "
            f"if {folder.parent} is on a file system in memory, and otherwise the agent does not start"
        )
        yield _RESULT_FACTORY.warn("run folder", text, RUN_DIR_REMEDY)
    if len(str(folder)) > MAX_RUN_DIR_CHARS:
        reason = f"longer than {MAX_RUN_DIR_CHARS} characters, so ansible-core 2.21 cannot run playbooks there"
        yield _RESULT_FACTORY.warn("run folder", f"{folder} is {reason}", RUN_DIR_REMEDY)
    file_system = file_system_of(nearest_existing_folder(folder))
    if file_system not in MEMORY_FILE_SYSTEMS:
        text = f"{folder} is on {file_system or 'a disk'}, so the secrets of a run are on a disk until the run ends"
        yield _RESULT_FACTORY.warn("run folder", text, RUN_DIR_REMEDY)


def _check_ansible() -> Iterator[CheckResult]:
    installed_version = package_version("ansible-core")
    # The command is usually in the folder of the Python interpreter, which need not be in PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    executable = shutil.which("ansible-playbook", path=path)
    install_command = f"pip install 'ansible-core>={_version_text(MIN_ANSIBLE_CORE)}'"
    if installed_version is None or executable is None:
        yield _RESULT_FACTORY.fail("ansible-core", "not installed", install_command)
    elif _major_and_minor(installed_version) < MIN_ANSIBLE_CORE:
        yield _RESULT_FACTORY.fail("ansible-core", f"{installed_version} is too old", install_command)
    else:
        yield _RESULT_FACTORY.ok("ansible-core", installed_version)


def _check_community_proxmox() -> Iterator[CheckResult]:
    installed_version = community_proxmox_version()
    oldest_version, first_too_new_version = COMMUNITY_PROXMOX_VERSION_RANGE
    version_range = f">={_version_text(oldest_version)},<{_version_text(first_too_new_version)}"
    # Ansible searches the folders of its search path in order, and uses the first copy of the collection. So the
    # command installs into the first folder. If ANSIBLE_COLLECTIONS_PATH is not set, the first folder is this
    # Python's `site-packages`.
    interpreter_folder, folder = Path(sys.executable).parent, collection_search_path()[0]
    command_words = (interpreter_folder / "ansible-galaxy", "collection", "install", "--force", "-p", folder)
    install_command = command_line(*command_words, f"community.proxmox:{version_range}")
    if installed_version is None:
        yield _RESULT_FACTORY.fail("community.proxmox", "not installed", install_command)
    elif not oldest_version <= _major_and_minor(installed_version) < first_too_new_version:
        text = f"{installed_version} is not in the range {version_range}"
        yield _RESULT_FACTORY.fail("community.proxmox", text, install_command)
    else:
        yield _RESULT_FACTORY.ok("community.proxmox", installed_version)


def _check_http_server_certificate(certificate: Path, key: Path) -> CheckResult:
    name, remedy = "HTTP server's certificate", f"renew {certificate}; the agent uses the new file within a minute"
    try:
        parsed_certificate = certificates.read_certificate_file(certificate, key)
    except (OSError, ValueError, KeyError) as error:
        return _RESULT_FACTORY.fail(name, f"{certificate} with the key {key} cannot be used: {error}")
    if parsed_certificate.days_left < 0:
        return _RESULT_FACTORY.fail(
            name, f"{certificate} expired on {parsed_certificate.valid_until:%Y-%m-%d %H:%M}Z", remedy
        )
    if parsed_certificate.valid_from > datetime.now(UTC):
        return _RESULT_FACTORY.fail(
            name,
            f"{certificate} is valid only from {parsed_certificate.valid_from:%Y-%m-%d %H:%M}Z",
            remedy,
            CLOCK_REMEDY,
        )
    text = f"{certificate}: {certificates.describe_validity(parsed_certificate)}"
    if parsed_certificate.days_left < MIN_DAYS_LEFT:
        return _RESULT_FACTORY.warn(name, text, remedy)
    return _RESULT_FACTORY.ok(name, text)


def _version_text(numbers: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in numbers)


def _major_and_minor(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, for comparisons. All characters except digits are dropped."""
    parts = version.split(".")[:2]
    digits = ["".join(char for char in part if char.isdecimal()) for part in parts]
    return tuple(int(text or 0) for text in digits)
