"""`smith drift` and `smith mappings adopt|forget`, with a FulcrumCore simulator, a Proxmox stand-in and no agent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smith_lab.fulcrum_setup import add_agent
from smith_lab.system import LabSystem, run_lab_system
from sqlalchemy import update
from support.cli_world import claim, submit
from support.drift_world import VMIDS, World, empty_world
from support.simulator_world import VM

from executor.database import job_queue
from executor.database.tables.jobs import Job
from executor.model import JobResult


def service_of_agent(world: World, agent_id: str) -> str:
    """Order a service of this agent; return its id."""
    admin, ids = world.lab.admin, world.lab.ids
    group_id = admin.create_group(ids.consumer_id, f"g-{uuid.uuid4().hex[:8]}")
    service = admin.create_service(
        group_id=group_id, service_type_id=ids.service_type_id, agent_id=agent_id, name="web", properties=VM
    )
    return str(service["id"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        yield system


@pytest.fixture
def world(lab: LabSystem, tmp_path: Path) -> Iterator[World]:
    """Yield a world without the services and VMs of earlier tests."""
    with empty_world(lab, tmp_path) as new_world:
        yield new_world


# --- drift --------------------------------------------------------------------------------------------------------


def test_nothing_differs_and_the_exit_code_is_0(world: World) -> None:
    world.add_service_with_vm()
    assert world.drift(code=0) == {"frozen": None, "mapped": 1, "foreign": 0, "findings": []}
    assert world.cli.ok("drift") == "nothing differs; 1 VMs are mapped\n"
    assert world.cli.ok("drift", "fix") == "nothing can be repaired\n"


def test_every_difference_is_shown_and_nothing_is_changed(world: World) -> None:
    (gone, moved, renamed, recycled) = (world.add_service_with_vm() for _ in range(4))
    control = world.lab.proxmox.control
    control("remove", vmid=gone[1])
    control("move", vmid=moved[1], node="pve2")
    control("rename", vmid=renamed[1], name="other")
    control("recycle", vmid=recycled[1])
    unmapped_vm = world.add_vm(unmapped_service := world.service(next(VMIDS)))
    unknown_service_vm = world.add_vm(str(uuid.uuid4()))
    missing_vmid = next(VMIDS)
    world.service(missing_vmid)
    before = world.cli.json("mappings", "list")
    world.lab.proxmox.reset_request_log()

    differences = world.kinds()

    assert sorted(differences) == sorted(
        [
            ("vm_gone", gone[1]),
            ("vm_moved", moved[1]),
            ("vm_renamed", renamed[1]),
            ("vm_recycled", recycled[1]),
            ("unmapped_vm", unmapped_vm),
            ("vm_without_service", unknown_service_vm),
            ("service_without_vm", missing_vmid),
        ]
    )
    assert world.lab.proxmox.changing_requests() == []
    assert world.cli.json("mappings", "list") == before
    assert world.audit() == []
    assert unmapped_service in {finding["service_id"] for finding in world.drift(code=1)["findings"]}


def test_vms_of_another_agent_and_of_another_fulcrumcore_are_counted_without_findings(world: World) -> None:
    """FulcrumCore's list of services contains those of other agents. It is read once, instead of each service."""
    lab, ids = world.lab, world.lab.ids
    other_agent_id, _token = add_agent(
        lab.admin, name=f"dc-{uuid.uuid4().hex[:8]}", provider_id=ids.provider_id, agent_type_id=ids.agent_type_id
    )
    world.add_service_with_vm()
    world.add_vm(service_of_agent(world, other_agent_id))
    world.add_vm(description=f"smith-uid={uuid.uuid4()}\nsmith-agent={uuid.uuid4()}", tags="smith")
    lab.core.clear_history()
    assert world.drift(code=0)["foreign"] == 2
    paths = [call["path"] for call in lab.core.history(method="GET") if "/services" in call["path"]]
    assert len(paths) == 1
    text = "not compared: 2 VMs and containers of other agents, other clusters or another FulcrumCore"
    assert text in world.cli.ok("drift")


def test_a_mapping_whose_service_has_an_old_agent_id_is_found(world: World) -> None:
    """The agent was deleted in FulcrumCore and created again; FulcrumCore keeps its services with the old agent id."""
    lab, ids = world.lab, world.lab.ids
    old_agent_id, _token = add_agent(
        lab.admin, name=f"dc-{uuid.uuid4().hex[:8]}", provider_id=ids.provider_id, agent_type_id=ids.agent_type_id
    )
    vmid = world.add_vm(service_id := service_of_agent(world, old_agent_id))
    world.mapping(service_id, vmid)
    (finding,) = world.drift(code=1)["findings"]
    assert (finding["kind"], finding["vmid"]) == ("service_of_other_agent", vmid)
    assert old_agent_id in finding["text"]
    assert world.state(service_id)[0] == "active"


def test_a_vm_whose_power_differs_from_its_services_status_is_shown(world: World) -> None:
    """FulcrumCore may have failed the start after its time-out, while the VM has started."""
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("power", vmid=vmid, status="running")
    (finding,) = world.drift(code=1)["findings"]
    assert (finding["kind"], finding["vmid"]) == ("power_differs", vmid)
    assert "the VM is running, but its service has the status Stopped" in finding["text"]
    with world.cli.database_session() as session:
        submit(session, service_id=service_id, action="start")
        job_queue.finish(session, claim(session), JobResult(succeeded=True))
        session.execute(update(Job).values(report_state="reported"))
    assert world.kinds(code=0) == [], "a job has just ended: Proxmox's list may be older and is not compared"


def test_a_moved_vm_is_shown_and_the_exit_code_is_0(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("move", vmid=vmid, node="pve2")
    assert world.kinds(code=0) == [("vm_moved", vmid)]
    assert world.drift("fix", "--yes", code=0)["repaired"][0]["repair"] == "correct_node"
    assert world.state(service_id) == ("active", "pve2", f"vm-{vmid}")
    assert world.kinds(code=0) == []


def test_a_repair_needs_yes_and_is_in_the_audit(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("remove", vmid=vmid)

    refused = world.cli("drift", "fix")
    assert (refused.returncode, world.state(service_id)[0]) == (1, "active")
    assert "mark_vm_lost" in refused.stdout
    assert "--yes" in refused.stdout
    assert world.drift("fix", "unmapped_vm", "--yes", code=1)["repaired"] == []

    assert len(world.drift("fix", "vm_gone", "--yes", "--reason", "host 3 burnt", code=0)["repaired"]) == 1
    assert world.state(service_id)[0] == "vm_lost"
    (entry,) = world.cli.json("audit", "list")
    assert (entry["verb"], entry["subject_id"], entry["reason"]) == ("mark_vm_lost", service_id, "host 3 burnt")
    assert world.kinds() == [("service_without_vm", vmid)]


def test_the_mappings_of_a_lost_database_are_adopted_from_proxmox(world: World) -> None:
    services = {vmid: service for service, vmid in (world.add_service_with_vm() for _ in range(3))}
    world.cli.file.unlink()
    with world.cli.database_session():
        pass
    assert len(world.drift("fix", "--yes", code=0)["repaired"]) == 3
    mapped_services = {row["vmid"]: row["service_id"] for row in world.cli.json("mappings", "list")}
    assert mapped_services == services
    assert world.kinds(code=0) == []


def test_a_vm_that_came_back_is_adopted_and_a_vm_without_service_is_left_alone(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    guest = world.lab.proxmox.guest(vmid)
    assert guest is not None
    world.lab.proxmox.control("remove", vmid=vmid)
    world.drift("fix", "--yes", code=0)
    world.lab.proxmox.control("add", vmid=vmid, name=guest["name"], config=guest["config"])
    unknown_service_vm = world.add_vm(str(uuid.uuid4()))

    world.drift("fix", "--yes", code=1)

    assert world.state(service_id)[0] == "active"
    assert world.kinds() == [("vm_without_service", unknown_service_vm)]
    assert world.lab.proxmox.guest(unknown_service_vm) is not None


def test_a_service_with_an_open_job_is_no_drift(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("remove", vmid=vmid)
    with world.cli.database_session() as session:
        submit(session, service_id=service_id, action="delete")
    assert world.kinds(code=0) == []


def lose_quorum(world: World) -> None:
    world.lab.proxmox.control("quorum", quorate=False)


def revoke_privilege(world: World) -> None:
    for path in ("/", "/vms"):
        world.lab.proxmox.control("revoke", path=path, privilege="VM.Audit")


def stop_node(world: World) -> None:
    # Without this privilege, the token cannot read the state of the quorum, and one online node of two counts as none.
    world.lab.proxmox.control("grant", path="/", privilege="Sys.Audit")
    world.lab.proxmox.control("node", node="pve1", online=False)


@pytest.mark.parametrize(
    ("make_inconclusive", "reason"),
    [(lose_quorum, "quorum"), (revoke_privilege, "VM.Audit"), (stop_node, "pve1 is offline")],
)
def test_an_inconclusive_answer_of_proxmox_gives_no_finding_and_no_repair(
    world: World, make_inconclusive: Any, reason: str
) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("remove", vmid=vmid)
    make_inconclusive(world)
    document = world.drift("fix", "--yes", code=5)
    assert reason in document["frozen"]
    assert (document["findings"], document["repaired"]) == ([], [])
    assert world.state(service_id)[0] == "active"
    comparison = world.cli("drift")
    assert (comparison.returncode, comparison.stdout) == (5, "")
    assert "the comparison is inconclusive" in comparison.stderr


def test_a_much_shorter_vm_list_is_inconclusive_without_believe_list(world: World) -> None:
    kept = world.add_service_with_vm()
    gone = [world.add_service_with_vm() for _ in range(4)]
    for _service, vmid in gone:
        world.lab.proxmox.control("remove", vmid=vmid)
    assert "4 of 5 mapped VMs" in world.drift(code=5)["frozen"]
    assert len(world.drift("fix", "--believe-list", "--yes", code=0)["repaired"]) == 4
    assert {world.state(service)[0] for service, _vmid in gone} == {"vm_lost"}
    assert world.state(kept[0])[0] == "active"


def test_a_vm_that_is_only_missing_from_the_vm_list_is_not_reported_as_gone(world: World) -> None:
    """`--believe-list` accepts a short list. Still, a VM is gone only if no node has its configuration."""
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("move", vmid=vmid, node="pve2")
    world.lab.proxmox.fail("GET", "/cluster/resources", status=200, text="nothing", times=-1)
    assert "lists no guest" in world.drift(code=5)["frozen"]
    assert world.kinds("--believe-list", code=0) == [("vm_moved", vmid)]
    assert world.state(service_id)[0] == "active"


def test_each_unreachable_system_has_its_own_exit_code(world: World) -> None:
    world.add_service_with_vm()
    assert world.cli("drift", FULCRUM_API_URL="http://127.0.0.1:9").returncode == 4
    assert world.cli("drift", PROXMOX_PORT="9").returncode == 5
    assert world.cli("drift", FULCRUM_API_URL="").returncode == 3


# --- adopt --------------------------------------------------------------------------------------------------------


def test_a_marked_vm_is_adopted_after_a_dry_run_that_changes_nothing(world: World) -> None:
    service_id = world.service(None)
    vmid = world.add_vm(service_id)
    world.lab.proxmox.reset_request_log()
    arguments = ("mappings", "adopt", "--service", service_id, "--vmid", str(vmid))

    assert world.cli.json(*arguments, "--dry-run")["adopted"] is False
    assert (world.cli.json("mappings", "list"), world.audit()) == ([], [])
    assert world.cli(*arguments).returncode == 2  # no terminal to ask on
    assert world.cli.json(*arguments, "--yes", "--reason", "import")["adopted"] is True

    assert world.state(service_id) == ("active", "pve1", f"vm-{vmid}")
    assert world.audit() == [("adopt", service_id)]
    assert world.lab.proxmox.changing_requests() == []


def test_an_unmarked_vm_gets_the_marker_and_keeps_everything_else(world: World) -> None:
    service_id = world.service(None)
    vmid = world.add_vm(name="legacy-db", tags="gold;db", scsi0="local-lvm:vm-1-disk-0,size=2252M", onboot=1)
    before = world.lab.proxmox.guest(vmid)
    assert before is not None
    arguments = ("mappings", "adopt", "--service", service_id, "--vmid", str(vmid), "--yes")

    refused = world.cli(*arguments)
    assert refused.returncode == 1
    assert "--set-marker" in refused.stderr
    assert world.cli.json("mappings", "list") == []
    adopted = world.cli(*arguments, "--set-marker", "--json")
    assert adopted.returncode == 0, adopted.stderr
    assert json.loads(adopted.stdout)["marker_written"] is True

    after = world.lab.proxmox.guest(vmid)
    assert after is not None
    assert after["config"]["description"].splitlines() == ["Acme's shop", "", f"smith-uid={service_id}"]
    assert set(after["config"]["tags"].replace(",", ";").split(";")) == {"gold", "db", "smith"}
    changed = {name for name, value in after["config"].items() if value != before["config"].get(name)}
    assert changed - {"digest"} == {"description", "tags"}
    assert world.state(service_id) == ("active", "pve1", "legacy-db")


def test_adopting_a_mapped_vm_writes_its_lost_marker_and_keeps_the_mapping(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("configure", vmid=vmid, values={"description": "cleaned up"})
    assert world.kinds() == [("vm_recycled", vmid)]
    done = world.cli("mappings", "adopt", "--service", service_id, "--vmid", str(vmid), "--set-marker", "--yes")
    assert done.returncode == 0, done.stderr
    assert world.kinds(code=0) == []
    assert len(world.cli.json("mappings", "list", "--all")) == 1


def test_a_marker_that_cannot_be_written_leaves_no_mapping(world: World) -> None:
    service_id, vmid = world.service(None), world.add_vm()
    world.lab.proxmox.control("lock", vmid=vmid, lock="backup")
    world.lab.proxmox.control("fail", method="*", path=f"/nodes/*/qemu/{vmid}/config", text="disk I/O error", times=-1)
    done = world.cli(
        "mappings", "adopt", "--service", service_id, "--vmid", str(vmid), "--set-marker", "--yes",
        SMITH_PLAYBOOK_TIMEOUT_S="10",
    )  # fmt: skip
    assert done.returncode != 0
    assert world.cli.json("mappings", "list") == []


def test_adopting_a_renamed_vm_again_stores_its_new_name(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    world.lab.proxmox.control("rename", vmid=vmid, name="shop-blue")
    assert world.kinds() == [("vm_renamed", vmid)]
    world.cli.ok("mappings", "adopt", "--service", service_id, "--vmid", str(vmid), "--yes")
    assert world.state(service_id) == ("active", "pve1", "shop-blue")
    assert world.kinds(code=0) == []


def test_a_refused_adoption_shows_the_reason(world: World) -> None:
    service_id, other = world.service(None), str(uuid.uuid4())
    mapped_service, mapped_vm = world.add_service_with_vm()
    unmapped_vm = world.add_vm(service_id)
    two_markers = world.add_vm(description=f"smith-uid={service_id}\nsmith-uid={other}")
    cases = [
        (service_id, 9000, "is a template"),
        (service_id, 4711, "does not list a VM 4711 for the agent's API token"),
        (service_id, world.add_vm(other), f"has the marker of {other}"),
        (service_id, two_markers, "has the marker of"),
        (service_id, mapped_vm, f"has the marker of {mapped_service}"),
        (mapped_service, world.add_vm(mapped_service), f"is mapped to VM {mapped_vm} already"),
        (other, unmapped_vm, "knows no service"),
        ("no-uuid", unmapped_vm, "is not the id of a service"),
    ]
    for service, vmid, reason in cases:
        done = world.cli("mappings", "adopt", "--service", service, "--vmid", str(vmid), "--set-marker", "--yes")
        assert (done.returncode, done.stdout) == (1, ""), (service, vmid)
        assert reason in done.stderr
    assert len(world.cli.json("mappings", "list")) == 1
    assert world.audit() == []


# --- forget -------------------------------------------------------------------------------------------------------


def test_forget_ends_the_mapping_and_keeps_the_vm(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    assert world.cli("mappings", "forget", str(vmid)).returncode == 2
    assert "is no longer mapped" in world.cli.ok("mappings", "forget", str(vmid), "--yes", "--reason", "sold")

    (row,) = world.cli.json("mappings", "list", "--all")
    assert (row["state"], "sold" in row["note"]) == ("deleted", True)
    assert world.lab.proxmox.guest(vmid) is not None
    (entry,) = world.cli.json("audit", "list")
    assert (entry["verb"], entry["reason"], entry["before"]["state"], entry["after"]["state"]) == (
        "forget",
        "sold",
        "active",
        "deleted",
    )
    assert world.kinds() == [("unmapped_vm", vmid)]
    assert world.cli("mappings", "forget", service_id, "--yes").returncode == 1


def test_a_mapping_with_a_running_job_is_not_forgotten(world: World) -> None:
    service_id, vmid = world.add_service_with_vm()
    with world.cli.database_session() as session:
        submit(session, service_id=service_id, action="stop")
        claim(session)
    done = world.cli("mappings", "forget", str(vmid), "--yes")
    assert done.returncode == 1
    assert "of this service is running" in done.stderr
    assert world.state(service_id)[0] == "active"


def test_volumes_of_a_deleted_vm_are_drift_until_they_are_removed(world: World) -> None:
    """Otherwise the next VM with this VMID, which may belong to another customer, would also have these volumes."""
    world.lab.proxmox.control("add_storage", storage="files", type="dir", content="images")
    vmid = world.delete_vm_but_leave_volume("files:{0}/vm-{0}-disk-0.raw")
    volume = f"{vmid}/vm-{vmid}-disk-0.raw"
    values = {"content": "images", "format": "raw", "size": 1, "vmid": vmid, "ctime": 1}
    world.lab.proxmox.control("storage", storage="files", volumes={volume: values})
    (finding,) = [row for row in world.drift(code=1)["findings"] if row["kind"] == "volumes_left"]
    assert (finding["vmid"], finding["repair"]) == (vmid, None)
    assert f"files:{volume}" in finding["text"]
    world.lab.proxmox.control("storage", storage="files", volumes={})
    # The exit code stays 1, because the service still exists in FulcrumCore although its VM is deleted.
    repaired = world.drift("fix", "--yes", code=1)["repaired"]
    assert [(row["kind"], row["vmid"]) for row in repaired] == [("volumes_left", vmid)]
    assert "volumes_left" not in [kind for kind, _vmid in world.kinds()]
