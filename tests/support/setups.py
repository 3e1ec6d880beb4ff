"""A sound lab: `smith doctor` reports no problem in it. Each setup of tests/data/setups.yml breaks it by its steps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from smith_lab.fulcrum_setup import SEED_TOKEN, AdminClient, add_agent, bootstrap
from smith_lab.system import LabSystem, run_lab_system
from support import small_disks
from support.cli_world import submit
from support.databases import migrated_sqlite_file
from support.small_disks import SmallDisk
from support.tls_front import TlsFront

from executor.database import mappings
from executor.database.engine import open_engine, transaction
from executor.deploy_files import find_deploy_file
from executor.doctor.checks import CheckResult, Status
from executor.doctor.run import run_checks
from executor.fulcrum.bootstrap import VM_SERVICE_TYPE_FILE, read_type_file
from executor.proxmox.privileges import list_privilege_needs

#: The variables of the lab that contain a secret. The sound system sets the files with the secrets instead.
SECRETS = ("FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET")
STORAGE = "local-lvm"
PAST = "2020-01-01T00:00:00Z"
_NEEDS = list_privilege_needs(
    9, disk_storages=[STORAGE, "ceph"], iso_and_vztmpl_storages=["local"], backup_storage="backups"
)
#: The paths and privileges that the token of the Proxmox stand-in has.
PRIVILEGES = [(need.path, privilege) for need in _NEEDS for privilege in sorted(need.privileges)]
PRIVILEGES.append(("/sdn/zones/localnetwork", "SDN.Use"))
#: Lists for the setups with `for_each`: each member is used to break another system.
LISTS = {
    "vm_privileges": sorted({*list_privilege_needs(9, disk_storages=[])[0].privileges, "VM.Backup"}),
    "storage_privileges": sorted(list_privilege_needs(9, disk_storages=[STORAGE])[1].privileges),
}


class BrokenSystem:
    """A lab, the settings of its executor, and the steps that break them. A step is a method of this class."""

    def __init__(self, lab: LabSystem, folder: Path, stack: ExitStack, patch: pytest.MonkeyPatch) -> None:
        self.lab, self.folder, self._stack, self._patch = lab, folder, stack, patch
        self.installed_collection = _installed_collection()
        self.data = folder / "data"
        self.token_file, self._secret_file = folder / "token", folder / "secret"
        self.disk: SmallDisk | None = None
        self.roles: dict[str, set[str]] = {}  #: the privileges that the commands of a remedy give to a role
        self._tls_front: TlsFront | None = None
        self._lock_holder: sqlite3.Connection | None = None
        self.environ = self._sound_environment()

    def _sound_environment(self) -> dict[str, str]:
        """Return settings with which no preflight check reports a problem."""
        for file, text in (
            (self.token_file, self.lab.ids.agent_token),
            (self._secret_file, self.lab.proxmox.token_secret),
        ):
            file.write_text(text)
            file.chmod(0o600)
        values = self.lab.environment() | {
            "FULCRUM_API_TOKEN_FILE": str(self.token_file),
            "PROXMOX_TOKEN_SECRET_FILE": str(self._secret_file),
            "PROXMOX_BACKUP_STORAGE": "backups",
            "SMITH_DATA_DIR": str(self.data),
            "SMITH_RUN_DIR": "/dev/shm/smith-doctor-test",  # noqa: S108 (only its file system is checked)
        }
        return {name: text for name, text in values.items() if name not in SECRETS}

    def values(self) -> dict[str, str]:
        """Return the values for the names in braces in setups.yml."""
        core_port = self._tls_front.port if self._tls_front else self.lab.core.server.port
        with socket.create_server(("127.0.0.1", 0)) as unused:
            closed_port = unused.getsockname()[1]
        return {
            "core": f"127.0.0.1:{core_port}",
            "core_port": str(core_port),
            "core_ca": str(self._tls_front.ca_bundle) if self._tls_front else "",
            "closed_port": str(closed_port),
            "proxmox_port": str(self.lab.proxmox.port),
            "proxmox_ca": str(self.lab.proxmox.ca_bundle),
            "proxmox_secret": self.lab.proxmox.token_secret,
            "agent_id": self.lab.ids.agent_id,
            "agent_type_id": self.lab.ids.agent_type_id,
            "provider_id": self.lab.ids.provider_id,
            "service_type_id": self.lab.ids.service_type_id,
            "deploy": str(find_deploy_file(VM_SERVICE_TYPE_FILE).parent),
            "token_file": str(self.token_file),
            "secret_file": str(self._secret_file),
            "folder": str(self.folder),
            "programs": str(Path(sys.executable).parent),
            "packages": sysconfig.get_path("purelib"),
            "data": str(self.data),
            "disk": str(self.disk.mount) if self.disk else "",
        }

    def findings(self) -> list[CheckResult]:
        """Run the checks as `smith doctor` does; return the results that are not ok."""
        environ = {name: text for name, text in self.environ.items() if text}
        return [result for result in run_checks(env_file=None, environ=environ) if result.status is not Status.OK]

    def read(self, file: str) -> str:
        return Path(file).read_text(encoding="utf-8")

    def restore(self, *, core: bool = True, proxmox: bool = True) -> None:
        """Make FulcrumCore and Proxmox of the lab sound again, except for added guests, VNets and pools."""
        if core:
            self.lab.core.reset()
            self.lab.admin.use_token(SEED_TOKEN)
            self.lab.ids = bootstrap(self.lab.admin)
        if proxmox:
            self._restore_proxmox()

    def _restore_proxmox(self) -> None:
        stand_in = self.lab.proxmox
        stand_in.control("clear_faults")
        stand_in.control("logins", delay_s=0)
        stand_in.control("token_secret", secret=stand_in.token_secret)
        stand_in.use_certificate()
        for path, privilege in PRIVILEGES:
            stand_in.control("grant", path=path, privilege=privilege)
        values = {"active": 1, "disable": 0, "nodes": "", "content": "images,rootdir", "avail": 2 * 10**12}
        stand_in.control("storage", storage=STORAGE, **values)

    # --- steps: settings and files --------------------------------------------------------------------------------

    def set(self, **values: str) -> None:
        """Set variables; an empty value removes one."""
        self.environ |= values

    def mode(self, file: str, mode: int) -> None:
        (self.folder / file).chmod(mode)

    def owner(self, file: str, uid: int) -> None:
        os.chown(self.data / file, uid, -1)

    def small_disk(self, setting: str, mib: int) -> None:
        """Mount a small file system for the folder of this setting."""
        folder = tempfile.mkdtemp(prefix="disk-")  # a short path, because that of a run folder is limited
        self._stack.callback(shutil.rmtree, folder)
        self.disk = small_disks.mount_small_disk(Path(folder) / "d", mib)
        self._stack.callback(small_disks.unmount, self.disk)
        self.environ[setting] = str(self.disk.folder)

    def fill_disk(self) -> None:
        assert self.disk is not None
        self.disk.fill()

    def free_disk(self) -> None:
        assert self.disk is not None
        self.disk.free()

    def read_only(self) -> None:
        assert self.disk is not None
        subprocess.run([shutil.which("mount") or "mount", "-o", "remount,ro", self.disk.mount], check=True)

    def collection(self, version: str) -> None:
        """Install this version of community.proxmox where Ansible searches first; "none" hides every version."""
        if version != "none":
            folder = self.folder / "collections"
            manifest = folder / "ansible_collections" / "community" / "proxmox" / "MANIFEST.json"
            manifest.parent.mkdir(parents=True)
            manifest.write_text(json.dumps({"collection_info": {"version": version}}))
            self._patch.setenv("ANSIBLE_COLLECTIONS_PATH", str(folder))
            return
        self._patch.delenv("ANSIBLE_COLLECTIONS_PATH", raising=False)
        self._patch.setenv("HOME", str(self.folder))
        paths = [self._without_collections(number, Path(path)) for number, path in enumerate(sys.path)]
        self._patch.setattr(sys, "path", paths)
        packages = self._without_collections(len(paths), Path(sysconfig.get_path("purelib")))
        self._patch.setattr(sysconfig, "get_path", lambda _name: packages)

    def _without_collections(self, number: int, folder: Path) -> str:
        """Return a folder with links to all packages of `folder` except its Ansible collections."""
        if not (folder / "ansible_collections" / "community").exists():
            return str(folder)
        copy = self.folder / f"path-{number}"
        copy.mkdir()
        for entry in folder.iterdir():
            if entry.name != "ansible_collections":
                (copy / entry.name).symlink_to(entry)
        return str(copy)

    # --- steps: FulcrumCore ---------------------------------------------------------------------------------------

    def core_with_tls(self, **certificate: Any) -> None:
        """Let FulcrumCore accept TLS only, with this certificate."""
        if self._tls_front is None:
            self._tls_front = TlsFront(self.lab.core.server.port, self.folder / "front")
            self._stack.callback(self._tls_front.close)
            self.environ["FULCRUM_CA_BUNDLE"] = str(self._tls_front.ca_bundle)
            self.environ["FULCRUM_API_URL"] = f"https://127.0.0.1:{self._tls_front.port}"
        self._tls_front.use_certificate(**certificate)

    def core_clock(self, seconds: float) -> None:
        self.lab.core.advance(seconds)

    def core_call(self, method: str, path: str, body: Any) -> None:
        self.lab.admin.call(method, path, body)

    def token(self, kind: str) -> None:
        """Use a token of this kind."""
        ids, admin = self.lab.ids, self.lab.admin
        makers = {
            "wrong": lambda: "not-the-token",
            "expired": lambda: admin.create_token("old", "agent", ids.agent_id, expire_at=PAST)["value"],
            "admin": lambda: ids.admin_token,
            "participant": lambda: admin.create_token("p", "participant", ids.provider_id)["value"],
            "other_agent": lambda: add_agent(
                admin, name="other", provider_id=ids.provider_id, agent_type_id=ids.agent_type_id
            )[1],
        }
        file = self.folder / "other-token"
        file.write_text(makers[kind]())
        file.chmod(0o600)
        self.environ["FULCRUM_API_TOKEN_FILE"] = str(file)

    def other_executor(self, status: str) -> None:
        """Send a heartbeat with the agent's token, as an executor with another database does."""
        with AdminClient(self.lab.core.url, self.lab.ids.agent_token) as agent:
            agent.call("PUT", "/agents/me/status", {"status": status})

    def older_service_type(self, action: str, property: str) -> None:
        """Remove an action and a property from the service type."""
        kind = read_type_file(VM_SERVICE_TYPE_FILE)
        lifecycle, schema_of_type = kind["lifecycleSchema"], kind["propertySchema"]
        lifecycle["actions"] = [row for row in lifecycle["actions"] if row["name"] != action]
        del schema_of_type["properties"][property]
        self._change_service_type({"lifecycleSchema": lifecycle, "propertySchema": schema_of_type})

    def action_without_playbook(self, name: str) -> None:
        lifecycle = read_type_file(VM_SERVICE_TYPE_FILE)["lifecycleSchema"]
        lifecycle["actions"].append({**lifecycle["actions"][0], "name": name})
        self._change_service_type({"lifecycleSchema": lifecycle})

    def restore_service_type(self) -> None:
        kind = read_type_file(VM_SERVICE_TYPE_FILE)
        self._change_service_type({name: kind[name] for name in ("lifecycleSchema", "propertySchema")})

    def _change_service_type(self, body: dict[str, Any]) -> None:
        self.lab.admin.call("PATCH", f"/service-types/{self.lab.ids.service_type_id}", body)

    # --- steps: Proxmox -------------------------------------------------------------------------------------------

    def proxmox(self, verb: str, **values: Any) -> None:
        self.lab.proxmox.control(verb, **values)

    def certificate(self, **values: Any) -> None:
        self.lab.proxmox.use_certificate(**values)

    def no_privileges(self) -> None:
        """Revoke every privilege of the user and the token, except the one to read the cluster's options."""
        for path, privilege in PRIVILEGES:
            self.proxmox("revoke", path=path, privilege=privilege)

    # --- steps: the database --------------------------------------------------------------------------------------

    def database(self, content: str) -> None:
        """Put a database with this content into the data folder."""
        file = self.data / "smith.db"
        self.data.mkdir(exist_ok=True)
        if content == "unlocked":
            assert self._lock_holder is not None
            self._lock_holder.close()
            return
        for old in self.data.glob("smith.db*"):
            old.unlink()
        if content == "foreign":
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("CREATE TABLE invoices (id INTEGER)")
            return
        file.write_bytes(migrated_sqlite_file(self.folder / "migrated").read_bytes())
        if content == "corrupt":
            (self.folder / "backup.db").write_bytes(file.read_bytes())
            file.write_bytes(b"this is not a database" * 100)
        elif content == "newer":
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("UPDATE alembic_version SET version_num = '9999'")
        elif content == "locked":
            self._lock_holder = sqlite3.connect(file, isolation_level=None)
            self._lock_holder.execute("PRAGMA journal_mode=WAL")
            self._lock_holder.execute("BEGIN IMMEDIATE")
        elif content != "empty":
            self._fill(file, content)

    def _fill(self, file: Path, content: str) -> None:
        engine = open_engine(f"sqlite:///{file}")
        with transaction(engine) as session:
            if content == "jobs_of_agent":
                submit(session, service={"id": self.lab.ids.agent_id, "agentId": self.lab.ids.agent_id})
            elif content == "quarantine":
                for number, vmid in enumerate((5000, 5001)):
                    place = {"cluster": "default", "vmid": vmid, "name": f"vm-{vmid}", "node": "pve1"}
                    service_id = f"{number:08x}-0000-4000-8000-000000000009"
                    mapping = mappings.insert_active_mapping(session, service_id=service_id, **place)
                    assert mapping is not None
                    mappings.mark_mapping_deleted(session, mapping.id, "deleted by a test")
        engine.dispose()


def _installed_collection() -> Path:
    folders = [Path(folder) / "ansible_collections" / "community" / "proxmox" for folder in sys.path]
    return next(folder for folder in folders if folder.exists())


@contextmanager
def running_sound_lab(folder: Path) -> Iterator[LabSystem]:
    """Run a lab whose Proxmox has no problem that a preflight check would report."""
    with run_lab_system(folder) as lab:
        lab.proxmox.control("grant", path="/", privilege="Sys.Audit")
        lab.proxmox.control("grant", path="/pool", privilege="Pool.Audit")
        lab.proxmox.control("logins", delay_s=0)
        yield lab
