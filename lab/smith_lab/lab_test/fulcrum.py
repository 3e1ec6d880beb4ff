"""Runs a FulcrumCore simulator, and an agent that uses the VMIDs that a run of lab tests has reserved.

In this file, a run is a run of lab tests, not of one playbook. The lab is a Proxmox for tests. LabSystem calls the
agent process the executor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from executor.shared.marker import service_id_in
from smith_lab.fulcrum_setup import AdminClient, bootstrap
from smith_lab.lab_test.guest_actions import GuestActions
from smith_lab.lab_test.lab_settings import IMAGE
from smith_lab.lab_test.open_lab import LabRun
from smith_lab.simulator.control import running_simulator
from smith_lab.system import LabSystem


class LabFulcrum(LabSystem):
    """A FulcrumCore simulator, and an agent that runs the simulator's jobs in the lab.

    The base class LabSystem starts and stops the agent, and has methods with which tests order and change services.
    """

    # `running_fulcrum` sets these attributes.
    lab_run: LabRun
    template_disk_gib: int

    def order_service(self, name: str, **properties: Any) -> str:
        """Order a VM of the lab's template; return the service's id. The run's name prefix is put before `name`.

        IMAGE is the name of the lab's template in the agent's settings.
        """
        defaults: dict[str, Any] = {"image": IMAGE, "cores": 1, "memoryMb": 512, "diskGb": self.template_disk_gib}
        return super().order_service(f"{self.lab_run.reserved_range.prefix}-{name}", **defaults | properties)


class _LabProxmox:
    """Returns the executor's settings for the lab's Proxmox.

    LabSystem usually gets a Proxmox stand-in; here it gets this object instead. To start the agent, LabSystem calls
    only `env`.
    """

    def __init__(self, lab_run: LabRun) -> None:
        self._lab_run = lab_run

    def env(self) -> dict[str, str]:
        return self._lab_run.settings.proxmox_variables()


@contextmanager
def running_fulcrum(
    guest_actions: GuestActions, folder: Path, *, must_keep_guests: bool = False
) -> Iterator[LabFulcrum]:
    """Run a simulator and an agent for the `with` block. Then remove the guests of the simulator's services.

    With `must_keep_guests`, the guests (VMs and containers) are not removed.

    A GuestActions object runs playbooks on guests of one run of lab tests. Here it provides the run, the VMIDs for the
    agent, the lab's cluster, and the folder with actions that are not built-in.
    """
    lab_run = guest_actions.lab_run
    with ExitStack() as stack:
        # Each service id contains six hexadecimal digits that identify the run. The marker of a guest contains the
        # service id, so the guests of a run can be found and removed later.
        simulator = stack.enter_context(running_simulator(new_service_id=lab_run.reserved_range.new_service_id))
        admin = stack.enter_context(AdminClient(simulator.url))
        fulcrum = LabFulcrum(
            folder=folder,
            fulcrum_base_url=simulator.url,
            admin=admin,
            ids=bootstrap(admin),  # creates the agent, its API token and its types in the simulator; returns their ids
            proxmox=_LabProxmox(lab_run),  # type: ignore[arg-type]
            settings=_agent_settings(guest_actions),
            _simulator=simulator,
        )
        fulcrum.lab_run = lab_run
        fulcrum.template_disk_gib = guest_actions.cluster.template_disk_gib(lab_run.settings.template)
        fulcrum.start_executor()
        try:
            yield fulcrum
        finally:
            fulcrum.stop_executor()
            if not must_keep_guests:
                _remove_guests(guest_actions, {str(service["id"]) for service in admin.list_services()})


def _agent_settings(guest_actions: GuestActions) -> dict[str, str]:
    """Return the agent's settings for the lab, except the connection to Proxmox."""
    lab_settings = guest_actions.lab_run.settings
    settings = {
        "PROXMOX_TEMPLATES": f"{IMAGE}={lab_settings.template}",
        # `os_template` is the volume of a container template; '' if the lab has none.
        "PROXMOX_OS_TEMPLATES": f"{IMAGE}={lab_settings.os_template}" if lab_settings.os_template else "",
        "PROXMOX_STORAGE": lab_settings.storage,
        "PROXMOX_BRIDGE": lab_settings.bridge,
        "PROXMOX_NODES": ",".join(name for name in (lab_settings.node, lab_settings.second_node) if name),
        "PROXMOX_BACKUP_STORAGE": lab_settings.backup_storage,
        "PROXMOX_VMID_MIN": str(guest_actions.vmids[0]),
        "PROXMOX_VMID_MAX": str(guest_actions.vmids[-1]),
        "SMITH_ACTIONS_PATH": str(guest_actions.actions_folder or ""),
    }
    return {name: value for name, value in settings.items() if value}


def _remove_guests(guest_actions: GuestActions, service_ids: set[str]) -> None:
    for guest in guest_actions.cluster.guests(guest_actions.vmids):
        if service_id_in(guest.notes) in service_ids:
            guest_actions.cluster.stop_and_remove(guest)
