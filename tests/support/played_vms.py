"""VMs with a marker on the stand-in, and `smith` on a pseudo-terminal, for tests of commands that run playbooks."""

from __future__ import annotations

import itertools
import os
import pty
import select
import subprocess
import uuid
from pathlib import Path
from typing import Any

import yaml
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from support.cli_world import GIVE_UP_S, Cli

from executor.database import mappings

NUMBERS = itertools.count(30_000)
#: An action that waits for a file before it ends.
WAITING_ACTION = """---
- hosts: proxmox
  gather_facts: false
  tasks:
    - name: Verify the VM's identity
      agent_smith.proxmox.vm_identity:
        vm: "{{ vm }}"
    - name: Report that the playbook is running
      ansible.builtin.file: {path: "{{ vm.properties.folder }}/running", state: touch, mode: "0600"}
    - name: Wait
      ansible.builtin.wait_for: {path: "{{ vm.properties.folder }}/end", timeout: 100}
"""


def new_vm(**more: Any) -> dict[str, Any]:
    """Return the variables of a VM that does not exist yet."""
    service_id = str(uuid.uuid4())
    identity = {"service_id": service_id, "vmid": next(NUMBERS), "name": f"web-{service_id[:8]}"}
    return {**identity, "template": "debian-12", "cores": 1, "memory_mib": 512, "disk_gib": 8, **more}


def made(pve: ProxmoxStandIn, **more: Any) -> dict[str, Any]:
    """Add a VM with a marker to the stand-in, without a mapping; return its identity."""
    vm = {name: value for name, value in new_vm().items() if name in ("service_id", "vmid", "name")}
    config = {"description": f"smith-uid={vm['service_id']}", "tags": "smith", "cores": 1, "memory": "512"}
    config |= {"scsi0": f"local-lvm:vm-{vm['vmid']}-disk-0,size=8G", "net0": "virtio=BC:24:11:00:11:22,bridge=vmbr0"}
    pve.control("add", vmid=vm["vmid"], name=vm["name"], config=config, **more)
    return vm


def mapped(smith: Cli, vm: dict[str, Any], node: str | None = None) -> dict[str, Any]:
    """Write a mapping for the VM; return the VM."""
    with smith.database_session() as session:
        identity = {name: vm[name] for name in ("service_id", "vmid", "name")}
        mapping = mappings.reserve(session, cluster="default", **identity)
        assert mapping is not None
        mapping.node = node
    return vm


def vars_file(folder: Path, vm: dict[str, Any]) -> str:
    file = folder / "vars.yml"
    file.write_text(yaml.safe_dump({"vm": vm}))
    return str(file)


def on_a_terminal(smith: Cli, arguments: list[str], answers: dict[str, str]) -> tuple[str, int]:
    """Run the command on a pseudo-terminal and answer each of its prompts; return all that it showed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        smith.command(*arguments),
        env=smith.environment(TERM="dumb"),
        cwd=smith.folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    output, unanswered = "", dict(answers)
    try:
        while select.select([master], [], [], GIVE_UP_S)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            output += data.decode(errors="replace")
            last = output.splitlines()[-1] if output else ""
            prompt = next((name for name in unanswered if last.startswith(name) and last.rstrip().endswith(":")), None)
            if prompt and f"{prompt}:" in last.replace(" [", ":"):
                os.write(master, f"{unanswered.pop(prompt)}\n".encode())
        return output, process.wait(GIVE_UP_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
