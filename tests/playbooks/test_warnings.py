"""What a module of community.proxmox warns of is shown as a warning of the action."""

from __future__ import annotations

from pathlib import Path

import pytest
from play_bench import Bench

#: The Ansible action plugin of a provider's custom action. The module warns, because there is no VM with this VMID.
ACTION_PLUGIN = """
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.vm_action import VmAction

class ActionModule(VmAction):
    def execute(self):
        facts = self.identify()
        self.change_with_module("proxmox_backup", mode="include", vmids=[199], storage="backups", node=facts["node"])
        self.refuse_if(str(self.vm.get("description") or ""))
        return self.build_result_document(facts)
"""
PLAYBOOK = """
- name: Back up a VM that does not exist
  hosts: proxmox
  gather_facts: false
  tasks:
    - name: Back it up
      back_up_missing:
        vm: "{{ vm }}"
"""


@pytest.mark.parametrize("refusal", ["", "VM_STATE: refused after the change"])
def test_the_warning_of_a_module_is_shown(bench: Bench, tmp_path: Path, refusal: str) -> None:
    """Also if the action fails afterwards."""
    (tmp_path / "action_plugins").mkdir()
    (tmp_path / "action_plugins" / "back_up_missing.py").write_text(ACTION_PLUGIN)
    (tmp_path / "warned.yml").write_text(PLAYBOOK)
    done = bench.play("warned", {**bench.add_vm(), "description": refusal}, folder=tmp_path)
    assert done.message == refusal, done.output
    assert "[WARNING]: VMIDs 199 not found." in done.output
