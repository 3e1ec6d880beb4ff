"""Gives an agent of the lab its whole configuration in FulcrumCore, as for FulcrumCore's install command."""

from __future__ import annotations

from smith_lab.system import LabSystem


def store_configuration(lab: LabSystem) -> None:
    """Store the agent's token and the lab's Proxmox in the agent's configuration."""
    proxmox = lab.proxmox.env()
    configuration = {
        "fulcrumApiUrl": lab.core.url,
        "fulcrumToken": lab.ids.agent_token,
        "apiHost": proxmox["PROXMOX_HOST"],
        "apiPort": int(proxmox["PROXMOX_PORT"]),
        "apiUser": lab.proxmox.user,
        "apiTokenId": lab.proxmox.token_id,
        "apiTokenSecret": proxmox["PROXMOX_TOKEN_SECRET"],
        "caBundle": lab.proxmox.ca_bundle.read_text(),
        "nodes": ["pve1", "pve2"],
        "images": {"debian-12": 9000},
    }
    lab.admin.call("PATCH", f"/agents/{lab.ids.agent_id}", {"configuration": configuration})


def settings_in(text: str) -> dict[str, str]:
    """Return the variables in the file that an install command writes."""
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
