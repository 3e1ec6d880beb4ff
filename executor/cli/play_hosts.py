"""Finds the VMs that an Ansible pattern selects in this project's dynamic inventory, for `smith play --hosts`.

The dynamic inventory is inventory/smith.proxmox.yml. This file configures an Ansible plugin, which reads the VMs from
Proxmox and returns each VM as a host.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from executor.cli.ansible_playbook import ansible_program_path, build_environment, temporary_private_folder
from executor.cli.arguments import CommandFailed, UnusableArgument
from executor.proxies import format_host_for_url
from executor.runs.actions import collection_folder
from executor.settings.settings import Settings

#: The inventory plugin of community.proxmox. It reads only files whose names end with `proxmox.yml`.
INVENTORY_PLUGIN = "community.proxmox.proxmox"
INVENTORY_FILE = "smith.proxmox.yml"
#: The maximum time for reading the inventory.
INVENTORY_TIMEOUT_S = 600.0
#: The maximum length of Ansible's error text in our error message, in characters.
MAX_ERROR_LENGTH = 300


def find_vmids(settings: Settings, pattern: str) -> list[int]:
    """Return the VMIDs of the VMs of inventory/smith.proxmox.yml that the pattern selects, in ascending order.

    Raises CommandFailed if the inventory cannot be read, and UnusableArgument if no VM matches.
    """
    with temporary_private_folder() as folder:
        _write_inventory(folder / INVENTORY_FILE, settings)
        command = [ansible_program_path("ansible-inventory"), "-i", INVENTORY_FILE, "--list", f"--limit={pattern}"]
        environment = build_environment(folder, settings) | {
            "ANSIBLE_INVENTORY_ENABLED": INVENTORY_PLUGIN,
            "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
        }
        try:
            finished_process = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=INVENTORY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"the inventory was not read within {INVENTORY_TIMEOUT_S:.0f} s") from None
    if finished_process.returncode != 0:
        text = " ".join(finished_process.stderr.split())[-MAX_ERROR_LENGTH:]
        raise CommandFailed(f"the inventory cannot be read: {text}")
    variables_by_host = json.loads(finished_process.stdout)["_meta"]["hostvars"]
    vmids = sorted({int(variables["proxmox_vmid"]) for variables in variables_by_host.values()})
    if not vmids:
        raise UnusableArgument(
            f"no VM matches the pattern {pattern}: `ansible-inventory -i inventory/smith.proxmox.yml --graph` shows "
            "the hosts and groups (docs/custom-actions.md)"
        )
    return vmids


def _write_inventory(file: Path, settings: Settings) -> None:
    """Write this project's inventory, with the Proxmox login added, to `file`.

    Only the operating system user of this process can read the file.
    """
    inventory = yaml.safe_load((collection_folder() / "inventory" / INVENTORY_FILE).read_text(encoding="utf-8"))
    inventory |= {
        "url": f"https://{format_host_for_url(settings.proxmox_host)}:{settings.proxmox_port}",
        "user": settings.proxmox_user,
        "validate_certs": settings.proxmox_validate_certs,
    }
    if settings.proxmox_token_id:
        inventory["token_id"] = settings.proxmox_token_id
        inventory["token_secret"] = settings.proxmox_token_secret.get_secret_value()
    else:
        inventory["password"] = settings.proxmox_password.get_secret_value()
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(inventory), encoding="utf-8")
