"""Contains the templates of the files that `smith actions new` writes: playbook, schema, role and tests.

Below, the provider is the organisation that runs this agent, and the provider's folder is SMITH_ACTIONS_PATH.
"""

from __future__ import annotations

from executor.runs.actions import SCHEMA_SUFFIX

#: The placeholders in the templates below: NAME_PLACEHOLDER for the name of the action, and ROLE_PLACEHOLDER for the
#: name of the action's role. The names of the role's variables begin with the name of the role.
NAME_PLACEHOLDER, ROLE_PLACEHOLDER = "ACTION-NAME", "ACTION_ROLE"

#: `smith_proxmox` is the login to Proxmox. `smith_module_environment` contains environment variables with which the
#: modules verify Proxmox's certificate.
PLAYBOOK_TEMPLATE = """\
---
# Runs for FulcrumCore's action `ACTION-NAME`. docs/custom-actions.md says what a playbook gets and must publish.
# vm describes the VM (service_id, vmid, name, node, cluster). vm.properties has the service's properties.
# The run is ended after vm.timeout_s seconds.
- name: Run ACTION-NAME on a service's VM
  hosts: proxmox
  gather_facts: false
  module_defaults:
    group/community.proxmox.proxmox: "{{ smith_proxmox }}"
  environment: "{{ smith_module_environment }}"
  tasks:
    - name: Run ACTION-NAME
      block:
        - name: Run the role of ACTION-NAME
          ansible.builtin.import_role:
            name: ACTION_ROLE
      rescue:
        - name: Fail with a message that begins with the error code
          ansible.builtin.fail:
            msg: "{{ ansible_failed_result | agent_smith.proxmox.failure }}"
"""
#: `x-smith-effect` says what the action does to a VM: `reads`, `changes` or `destroys`.
SCHEMA_TEMPLATE = """\
{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "The service properties that ACTION-NAME needs",
  "x-smith-effect": "changes",
  "type": "object",
  "required": [],
  "properties": {
  }
}
"""
ARGUMENT_SPECS_TEMPLATE = """\
---
# Ansible checks these arguments before the role begins. Add the variables that the role takes.
argument_specs:
  main:
    short_description: What ACTION-NAME does to a service's VM
    options:
      vm:
        type: dict
        required: true
        description: The VM, and in C(vm.properties) the service's properties.
"""
#: `known_tasks` contains the UPIDs of the VM's Proxmox tasks before the change. The published result contains the UPIDs
#: of the later Proxmox tasks.
TASKS_TEMPLATE = """\
---
# Change nothing before this task, which verifies that the VM with this VMID belongs to the service.
- name: Verify the VM's identity
  agent_smith.proxmox.vm_identity:
    vm: "{{ vm }}"
  register: ACTION_ROLE_before

# Insert your Ansible tasks here. The action plugins of agent_smith.proxmox (vm_power, vm_configured, …) find the login
# to Proxmox themselves, and verify and publish what they did. The modules of community.proxmox get the login from the
# playbook's module_defaults.

# This task reads the outcome from Proxmox. A module's answer "ok" does not prove that the change was made.
- name: Publish the result
  agent_smith.proxmox.vm_identity:
    vm: "{{ vm }}"
    known_tasks: "{{ ACTION_ROLE_before.facts.known_tasks }}"
    result:
      # Whether the Ansible tasks above have changed the VM.
      changed: false
      # In check mode: what would be changed, for example {cores: 4}. `smith play` shows this before it asks to confirm.
      planned: {}
"""
TESTS_TEMPLATE = """\
\"\"\"Tests of the action ACTION-NAME: `smith actions test ACTION-NAME`. docs/lab_test.md has the fixtures.\"\"\"

# The service properties that the action needs, for example {"isoImage": "local:iso/debian-13.iso"}.
PROPERTIES = {}


def test_ACTION_ROLE_plans_in_check_mode_and_changes_nothing(lab_vm, run_action, proxmox):
    before = proxmox.vm_config(lab_vm["node"], lab_vm["vmid"])
    plan = run_action("ACTION-NAME", lab_vm, check=True, properties=PROPERTIES)
    assert plan.succeeded, plan.operator_message
    assert proxmox.vm_config(lab_vm["node"], lab_vm["vmid"]) == before


def test_ACTION_ROLE_succeeds_and_a_second_run_changes_nothing(lab_vm, run_action):
    result = run_action("ACTION-NAME", lab_vm, properties=PROPERTIES)
    assert result.succeeded, result.operator_message
    second_result = run_action("ACTION-NAME", lab_vm, properties=PROPERTIES)
    assert second_result.succeeded, second_result.operator_message
    # `second_result.vm` is the result that the playbook published.
    assert second_result.vm["changed"] is False


def test_ACTION_ROLE_refuses_the_vm_of_another_service(lab_vm, run_action):
    other_service_id = "8f2c0a11-9b5e-4a1b-bc2d-6929e0105b7e"
    result = run_action("ACTION-NAME", lab_vm, service_id=other_service_id, properties=PROPERTIES)
    assert result.code == "VM_IDENTITY_MISMATCH", result.operator_message
"""
#: The folder of the tests, relative to the provider's folder.
TESTS_FOLDER = "tests"


def new_action_files(action_name: str) -> dict[str, str]:
    """Return the text of each file of a new action. The keys are paths relative to the provider's folder."""
    role = role_name(action_name)
    templates = {
        f"{action_name}.yml": PLAYBOOK_TEMPLATE,
        f"{action_name}{SCHEMA_SUFFIX}": SCHEMA_TEMPLATE,
        f"roles/{role}/meta/argument_specs.yml": ARGUMENT_SPECS_TEMPLATE,
        f"roles/{role}/tasks/main.yml": TASKS_TEMPLATE,
        test_file_path(action_name): TESTS_TEMPLATE,
    }
    return {
        path: text.replace(NAME_PLACEHOLDER, action_name).replace(ROLE_PLACEHOLDER, role)
        for path, text in templates.items()
    }


def role_name(action_name: str) -> str:
    """Return the name of an action's role. The names of the role's variables begin with this name."""
    return action_name.replace("-", "_")


def test_file_path(action_name: str) -> str:
    """Return the path of the tests of an action, relative to the provider's folder."""
    return f"{TESTS_FOLDER}/test_{role_name(action_name)}.py"
