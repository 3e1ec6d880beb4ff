"""In a run of lab tests, the simulator gives each new service an id that contains the run's token and expiry.

By this id in a VM's marker, the VM is recognized as one of the run.
"""

from __future__ import annotations

import time

from smith_lab.fulcrum_setup import AdminClient, bootstrap
from smith_lab.lab_test.reserved_range import lease_in_service_id, new_lease, new_service_id
from smith_lab.simulator.control import running_simulator


def test_a_new_service_has_an_id_of_the_run() -> None:
    lease = new_lease(time.time() + 600)
    with running_simulator(new_service_id=lambda: new_service_id(lease)) as core, AdminClient(core.url) as admin:
        ids = bootstrap(admin)
        service = admin.create_service(
            group_id=admin.create_group(ids.consumer_id, "group"),
            service_type_id=ids.service_type_id,
            agent_id=ids.agent_id,
            name="shop",
            properties={"cores": 1, "memoryMb": 512, "diskGb": 8, "image": "lab"},
        )
        assert lease_in_service_id(service["id"]) == lease
        assert lease_in_service_id(ids.agent_id) is None
