"""The limits of a tenant: how much of them jobs reserve and release. The tests run on both kinds of database."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from smith_lab.proxmox.stand_in import ProxmoxStandIn, running_stand_in
from smith_lab.system import wait_for
from sqlalchemy import Engine
from support.databases import new_job

from executor.agent import outcome_store
from executor.agent.outcome import Ending, MappingChange, Outcome
from executor.agent.reservation import MappingFinder
from executor.agent.tenant_usage import TenantUsage
from executor.database import job_queue, usage
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.usage import Amounts, TenantLimitReached
from executor.model import JobResult
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import load_settings
from executor.shared.error_codes import ErrorCode

TENANT, OTHER_TENANT = str(uuid.uuid4()), str(uuid.uuid4())
SMALL = {"cores": 2, "memoryMb": 1024, "diskGb": 10, "image": "debian-12"}
VMIDS = itertools.count(140_000, 1000)
JSON = dict[str, Any]


@pytest.fixture(scope="module")
def pve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxmoxStandIn]:
    with running_stand_in(folder=tmp_path_factory.mktemp("stand-in")) as running:
        yield running


class Tenants:
    """The jobs of tenants. As in the worker, each job is claimed, gets its mapping and ends, but it has no run."""

    def __init__(self, engine: Engine, pve: ProxmoxStandIn, **limits: str) -> None:
        self.engine = engine
        first = next(VMIDS)
        more = {"PROXMOX_VMID_MIN": str(first), "PROXMOX_VMID_MAX": str(first + 999)}
        more["PROXMOX_BACKUP_STORAGE"] = "backups"
        settings = load_settings(env_file=None, environ=pve.env() | more | limits)
        proxmox = ProxmoxReader(ProxmoxConnection.from_settings(settings))
        self.finder = MappingFinder(
            engine=engine,
            proxmox=proxmox,
            settings=settings,
            cluster="default",
            tenant_usage=TenantUsage(engine=engine, proxmox=proxmox, settings=settings),
        )

    def claim_job(
        self, action: str, params: JSON | None = None, service_id: str = "", tenant: str | None = TENANT
    ) -> Job:
        """Store and claim a job."""
        service_id = service_id or str(uuid.uuid4())
        stored_service = {"name": "web", "properties": SMALL}
        row = new_job(service_id=service_id, action=action, params=params, tenant_id=tenant, service=stored_service)
        with transaction(self.engine) as session:
            job_queue.submit(session, row)
            claimed = job_queue.claim(session, "me", lease_s=300)
        assert claimed is not None
        return claimed

    def claim_job_and_find_mapping(
        self, action: str, params: JSON | None = None, service_id: str = "", tenant: str | None = TENANT
    ) -> Job:
        """Store and claim a job, and find or reserve its mapping."""
        job = self.claim_job(action, params, service_id, tenant)
        self.find_or_reserve_mapping(job)
        return job

    def find_or_reserve_mapping(self, job: Job) -> Any:
        """Return the job's mapping, or reserve a new one. This also reserves what the job needs of the limits."""
        return self.finder.find_or_reserve_mapping(job).mapping

    def end_job(self, job: Job, *, code: ErrorCode | None = None, **vm: Any) -> None:
        """End a job that has a mapping: with success, or with an error code."""
        mapping = self.find_or_reserve_mapping(job)
        vm_facts = {"vmid": mapping.vmid, "node": "pve1", "status": "stopped", **vm} if code is None or vm else {}
        result = JobResult(succeeded=code is None, vm=vm_facts, code=code, detail="no" if code else "")
        outcome = Outcome(ending=Ending.FINISH, result=result, mapping_change=MappingChange.APPLY_RESULT)
        outcome_store.store_outcome(self.engine, lambda _: outcome, job_queue.lease_of(job), mapping)

    def end_job_without_mapping(self, job: Job) -> None:
        """End a job that has no mapping, as after a JobError."""
        result = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no")
        outcome = Outcome(ending=Ending.FINISH, result=result)
        outcome_store.store_outcome(self.engine, lambda _: outcome, job_queue.lease_of(job), None)

    def create_vm(self, tenant: str | None = TENANT, **params: Any) -> str:
        """Create a VM; return its service's id."""
        job = self.claim_job_and_find_mapping("create", SMALL | params, tenant=tenant)
        self.end_job(job)
        return str(job.service_id)

    def exceed_limit(self, action: str, params: JSON | None = None, service_id: str = "") -> TenantLimitReached:
        """Begin and end a job that exceeds a limit of its tenant; return the error."""
        job = self.claim_job(action, params, service_id)
        with pytest.raises(TenantLimitReached) as caught:
            self.find_or_reserve_mapping(job)
        self.end_job_without_mapping(job)
        assert caught.value.code is ErrorCode.CAPACITY
        return caught.value

    def used_amounts(self, tenant: str | None = TENANT) -> Amounts:
        """Return what the VMs and jobs of the tenant use."""
        with read_only_session(self.engine) as session:
            return usage.used_and_reserved_amounts(session, tenant)


MakeTenants = Callable[..., Tenants]


@pytest.fixture
def make_tenants(engine: Engine, pve: ProxmoxStandIn) -> MakeTenants:
    return lambda **limits: Tenants(engine, pve, **limits)


@pytest.mark.parametrize(
    "limit",
    [
        {"SMITH_TENANT_MAX_VMS": "1"},
        {"SMITH_TENANT_MAX_CORES": "3"},
        {"SMITH_TENANT_MAX_MEMORY_MIB": "2047"},
        {"SMITH_TENANT_MAX_DISK_GIB": "19"},
    ],
    ids=lambda limit: next(iter(limit)),
)
def test_of_two_creates_at_once_exactly_one_exceeds_the_limit(make_tenants: MakeTenants, limit: dict[str, str]) -> None:
    tenants = make_tenants(**limit)
    jobs = [tenants.claim_job("create", SMALL) for _ in range(2)]
    start, refused, reserved = threading.Barrier(2), [], []

    def reserve(job: Job) -> None:
        start.wait()
        try:
            reserved.append(tenants.find_or_reserve_mapping(job))
        except TenantLimitReached as error:
            refused.append(error)

    threads = [threading.Thread(target=reserve, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(reserved), [error.code for error in refused]) == (1, [ErrorCode.CAPACITY])
    assert tenants.used_amounts() == Amounts(vms=1, cores=2, memory_mib=1024, disk_gib=10)


def test_of_two_updates_at_once_exactly_one_exceeds_the_limit(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_CORES="6")
    jobs = [tenants.claim_job("update", SMALL | {"cores": 4}, tenants.create_vm()) for _ in range(2)]
    start, refused = threading.Barrier(2), []

    def reserve(job: Job) -> None:
        start.wait()
        try:
            tenants.find_or_reserve_mapping(job)
        except TenantLimitReached as error:
            refused.append(error.detail)

    threads = [threading.Thread(target=reserve, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["the limit of 6 cores is reached"]


def test_a_tenant_at_its_limit_delays_no_other_tenant(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_VMS="1")
    tenants.create_vm()
    error = tenants.exceed_limit("create", SMALL)
    assert (error.detail, "1 in use" in error.operator_detail) == ("the limit of 1 VMs is reached", True)
    assert error.operator_detail.endswith("(SMITH_TENANT_MAX_VMS)")
    tenants.create_vm(tenant=OTHER_TENANT)
    assert tenants.used_amounts(OTHER_TENANT).vms == 1


def test_jobs_without_a_tenant_share_the_limits_of_one_tenant(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_VMS="1")
    tenants.create_vm(tenant=None)
    job = tenants.claim_job("create", SMALL, tenant=None)
    with pytest.raises(TenantLimitReached):
        tenants.find_or_reserve_mapping(job)


def test_what_a_failed_create_had_reserved_counts_no_longer(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_VMS="1")
    tenants.end_job(tenants.claim_job_and_find_mapping("create", SMALL), code=ErrorCode.CAPACITY)
    assert tenants.used_amounts() == Amounts()
    tenants.create_vm()


def test_a_failed_create_whose_vm_may_exist_counts_until_it_is_deleted(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_VMS="1")
    job = tenants.claim_job_and_find_mapping("create", SMALL)
    tenants.end_job(job, code=ErrorCode.PVE_TIMEOUT)
    assert tenants.used_amounts() == Amounts(vms=1, cores=2, memory_mib=1024, disk_gib=10)
    tenants.exceed_limit("create", SMALL)
    again = tenants.claim_job_and_find_mapping("create", SMALL, str(job.service_id))  # of the same service
    tenants.end_job(again)
    assert tenants.used_amounts() == Amounts(vms=1, cores=2, memory_mib=1024, disk_gib=10)
    tenants.end_job(tenants.claim_job_and_find_mapping("delete", service_id=str(job.service_id)), status="absent")
    assert tenants.used_amounts() == Amounts()
    tenants.create_vm()


def test_an_update_that_fails_or_shrinks_the_vm_gives_back_and_one_that_grows_it_is_checked(
    make_tenants: MakeTenants,
) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_MEMORY_MIB="2048")
    service_id = tenants.create_vm()
    assert tenants.exceed_limit("update", SMALL | {"memoryMb": 2049}, service_id).resource == "memory_mib"
    failing = tenants.claim_job_and_find_mapping("update", SMALL | {"memoryMb": 2048}, service_id)
    assert tenants.used_amounts().memory_mib == 2048
    tenants.exceed_limit("create", SMALL)
    tenants.end_job(failing, code=ErrorCode.TASK_FAILED)
    assert tenants.used_amounts().memory_mib == 1024
    tenants.end_job(
        tenants.claim_job_and_find_mapping("update", SMALL | {"memoryMb": 2048}, service_id), cores=2, memory_mib=2048
    )
    assert tenants.used_amounts().memory_mib == 2048
    tenants.end_job(
        tenants.claim_job_and_find_mapping("update", SMALL | {"memoryMb": 512}, service_id), cores=2, memory_mib=512
    )
    assert tenants.used_amounts().memory_mib == 512


def test_disks_that_an_update_no_longer_names_still_count(make_tenants: MakeTenants, pve: ProxmoxStandIn) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_DISK_GIB="40")
    service_id = tenants.create_vm()
    mapping = tenants.find_or_reserve_mapping(tenants.claim_job("start", service_id=service_id))
    config = {"scsi0": "ceph:a,size=10G", "scsi1": "ceph:b,size=20G", "boot": "order=scsi0", "ide2": "ceph:cloudinit"}
    pve.control("add", vmid=mapping.vmid, name="web", node="pve1", config=config)
    _end_processing_jobs(tenants)
    more = SMALL | {"disks": [{"disk": "scsi2", "sizeGb": 11, "storage": "ceph"}]}
    assert tenants.exceed_limit("update", more, service_id).resource == "disk_gib"
    named_first = SMALL | {"disks": [{"disk": "scsi0", "sizeGb": 20}]}  # the first disk counts once
    tenants.end_job(tenants.claim_job_and_find_mapping("update", named_first, service_id))
    assert tenants.used_amounts().disk_gib == 40
    pve.control("remove", vmid=mapping.vmid)


def _end_processing_jobs(tenants: Tenants) -> None:
    with transaction(tenants.engine) as session:
        for job in session.query(Job).where(Job.status == "processing"):
            result = JobResult(succeeded=True, vm={})
            job_queue.finish(session, job_queue.lease_of(job), result)


def test_a_vm_with_snapshots_counts_with_its_largest_sizes(make_tenants: MakeTenants) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_CORES="4")
    service_id = tenants.create_vm(cores=4)
    tenants.end_job(tenants.claim_job_and_find_mapping("snapshot", service_id=service_id), cores=4, memory_mib=1024)
    tenants.end_job(
        tenants.claim_job_and_find_mapping("update", SMALL | {"cores": 1}, service_id), cores=1, memory_mib=1024
    )
    assert tenants.used_amounts().cores == 4, "a rollback would give the VM its four cores again"
    tenants.exceed_limit("create", SMALL)


#: The name of a backup's volume on a directory storage, and on a Proxmox Backup Server.
ARCHIVES = ("backup/vzdump-qemu-{}-2026_11_27-08_00_00.vma.zst", "backup/vm/{}/2026-11-27T08:00:00Z")


@pytest.mark.parametrize(
    ("action", "name", "volume"),
    [("snapshot", "snapshots", ""), *(("backup", "backups", volume) for volume in ARCHIVES)],
    ids=["snapshot", "backup on a directory", "backup on a backup server"],
)
def test_snapshots_and_backups_are_limited_and_removed_ones_do_not_count(
    make_tenants: MakeTenants, pve: ProxmoxStandIn, action: str, name: str, volume: str
) -> None:
    tenants = make_tenants(**{f"SMITH_TENANT_MAX_{name.upper()}": "1"})
    service_id = tenants.create_vm()
    job = tenants.claim_job_and_find_mapping(action, service_id=service_id)
    vmid = tenants.find_or_reserve_mapping(job).vmid
    pve.control("add", vmid=vmid, name="web", node="pve1", config={"memory": "1024"})
    tenants.end_job(job)
    _add_to_proxmox(pve, action, vmid, volume.format(vmid))
    assert tenants.exceed_limit(action, service_id=service_id).detail == f"the limit of 1 {name} is reached"
    pve.control("remove", vmid=vmid)
    pve.control("add", vmid=vmid, name="web", node="pve1", config={"memory": "1024"})
    if action == "backup":
        pve.control("storage", storage="backups", volumes={})
    tenants.end_job(tenants.claim_job_and_find_mapping(action, service_id=service_id))
    assert getattr(tenants.used_amounts(), name) == 1
    pve.control("remove", vmid=vmid)


def _add_to_proxmox(pve: ProxmoxStandIn, action: str, vmid: int, volume: str) -> None:
    """Create the snapshot or the backup in Proxmox."""
    if action == "snapshot":
        env = pve.env()
        url = f"https://{env['PROXMOX_HOST']}:{env['PROXMOX_PORT']}/api2/json/nodes/pve1/qemu/{vmid}/snapshot"
        token = f"{env['PROXMOX_USER']}!{env['PROXMOX_TOKEN_ID']}={env['PROXMOX_TOKEN_SECRET']}"
        headers = {"Authorization": f"PVEAPIToken={token}"}
        answer = requests.post(
            url, data={"snapname": "one"}, headers=headers, verify=env["PROXMOX_CA_BUNDLE"], timeout=20
        )
        assert answer.ok, answer.text
        wait_for(lambda: (pve.guest(vmid) or {}).get("snapshots"), 20, "the snapshot")
    else:
        archive = {"content": "backup", "format": "vma.zst", "size": 1, "ctime": 0, "vmid": vmid}
        pve.control("storage", storage="backups", volumes={volume: archive})


def test_the_sizes_of_a_vm_that_an_earlier_version_has_mapped_are_those_of_its_service(
    make_tenants: MakeTenants,
) -> None:
    tenants = make_tenants(SMITH_TENANT_MAX_CORES="3")
    service_id = tenants.create_vm()
    with transaction(tenants.engine) as session:
        row = session.query(Mapping).where(Mapping.service_id == service_id).one()
        row.cores = row.memory_mib = row.disk_gib = 0
        row.tenant_id = None
    tenants.end_job(tenants.claim_job_and_find_mapping("start", service_id=service_id))
    assert tenants.used_amounts() == Amounts(vms=1, cores=2, memory_mib=1024, disk_gib=10)
    tenants.exceed_limit("update", SMALL | {"cores": 4}, service_id)
