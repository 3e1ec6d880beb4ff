"""Read-only questions to Proxmox: identity, free VMIDs, metrics, doctor. The only user of proxmoxer.

Nothing is ever changed here: every change goes through a playbook. A list proves no absence, because a token without
VM.Audit gets an empty one with 200; who must know asks `permissions` and the VM's own configuration.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import urllib3
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
from urllib3.util.retry import Retry

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind
from executor.proxmox.error_rules import classify
from executor.redaction import redactor
from executor.settings.settings import Settings

DEFAULT_PORT = 8006
CONNECT_TIMEOUT_S = 5.0
VMID_MIN, VMID_MAX = 100, 999_999_999
MAX_ERROR_TEXT = 400
STORAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
MARKER_LINE = re.compile(r"^smith-uid=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*?$", re.MULTILINE | re.IGNORECASE)

#: How proxmoxer fails: its own errors, requests' (which are OSErrors), and what it trips over in an odd answer.
_CALL_FAILED = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
_ANSWER_ODD = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class ProxmoxConnection:
    """Where Proxmox is and who we are there. A token is preferred to a password, which costs a login a thread."""

    host: str
    port: int = DEFAULT_PORT
    user: str
    token_id: str = ""  #: `job`, not `smith@pve!job`
    token_secret: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    verify: bool | Path = True  #: a path is the bundle with the cluster's CA

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take the `PROXMOX_*` settings over."""
        verify: bool | Path = settings.proxmox_validate_certs
        if verify and settings.proxmox_ca_bundle:
            verify = settings.proxmox_ca_bundle
        return cls(
            host=settings.proxmox_host,
            port=settings.proxmox_port,
            user=settings.proxmox_user,
            token_id=settings.proxmox_token_id,
            token_secret=settings.proxmox_token_secret.get_secret_value(),
            password=settings.proxmox_password.get_secret_value(),
            verify=verify,
        )


@dataclass(frozen=True)
class VmRow:
    """One VM or container of the cluster's list, which Proxmox refreshes about every 10 s."""

    vmid: int
    node: str
    name: str = ""
    status: str = ""  #: running, stopped, or unknown when its node is down
    is_template: bool = False
    kind: str = "qemu"  #: or lxc
    cpu_share: float = 0.0  #: of all its cores together, 0 to 1
    cores: int = 0
    memory_bytes: int = 0
    max_memory_bytes: int = 0
    disk_bytes: int = 0  #: always 0 for qemu
    max_disk_bytes: int = 0
    net_in_bytes: int = 0  #: the counters start again with the VM: when `uptime_s` drops, so do they
    net_out_bytes: int = 0
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    uptime_s: int = 0
    tags: tuple[str, ...] = ()
    lock: str = ""


@dataclass(frozen=True)
class NodeRow:
    """One node of the cluster."""

    name: str
    is_online: bool
    cpu_share: float = 0.0
    cores: int = 0
    memory_bytes: int = 0
    max_memory_bytes: int = 0


@dataclass(frozen=True)
class StorageRow:
    """One storage as one node has it; a storage of several nodes has a row for each."""

    name: str
    node: str
    is_shared: bool = False  #: the same data from every node that has it
    is_available: bool = False
    holds_disks: bool = False


class ProxmoxReader:
    """Asks Proxmox. Thread-safe: each thread has a connection of its own.

    Every failure is a JobError with the code that `error_rules.py` gives it.
    """

    def __init__(
        self,
        connection: ProxmoxConnection,
        timeout_s: float = 10,
        *,
        renew: Callable[[], ProxmoxConnection] | None = None,  # asked after a 401 or 403
    ) -> None:
        self.connection = connection
        self._renew = renew
        self._timeout_s = (min(CONNECT_TIMEOUT_S, timeout_s), timeout_s)
        self._local = threading.local()

    def version(self) -> str:
        """Ask for Proxmox VE's version, such as `9.0.3`. Any valid login may."""
        return _text(_object(self._ask("/version")).get("version"))

    def vms(self) -> list[VmRow]:
        """List the VMs, containers and templates that the token may see, of the whole cluster, in one call."""
        return vm_rows(self._ask("/cluster/resources", type="vm"))

    def nodes(self) -> list[NodeRow]:
        """List the cluster's nodes."""
        return node_rows(self._ask("/nodes"))

    def storages(self) -> list[StorageRow]:
        """List the storages that the token may see (Datastore.Audit, or the right to allocate), node by node."""
        return storage_rows(self._ask("/cluster/resources", type="storage"))

    def volumes(self, node: str, storage: str, content: str) -> frozenset[str]:
        """List the volumes of one kind (iso, vztmpl, backup) on a node's storage, as far as the token may see them."""
        path = f"/nodes/{_valid_node(node)}/storage/{_valid_storage(storage)}/content"
        return frozenset(_text(row.get("volid")) for row in _rows(self._ask(path, content=content)))

    def bridges(self, node: str) -> frozenset[str]:
        """Ask which bridges and virtual networks a node offers us; empty when the token may see none."""
        answer = self._ask(f"/nodes/{_valid_node(node)}/network", type="any_bridge")
        return frozenset(_text(row.get("iface")) for row in _rows(answer))

    def nodes_in_maintenance(self) -> frozenset[str]:
        """Ask the HA manager which nodes an operator has emptied. Needs Sys.Audit on `/`."""
        answer = _object(self._ask("/cluster/ha/status/manager_status"))
        manager = answer.get("manager_status", answer)
        states = manager.get("node_status") if isinstance(manager, dict) else None
        return frozenset(node for node, state in states.items() if state == "maintenance") if states else frozenset()

    def vm_config(self, node: str, vmid: int, *, kind: str = "qemu") -> dict[str, Any]:
        """Read a VM's configuration from its node, with pending changes merged in.

        VM_NOT_FOUND here means: not on this node, or the token lacks VM.Audit. It is no proof that the VM is gone.
        """
        if kind not in tuple(GuestKind):
            raise JobError(ErrorCode.INVALID_REQUEST, "not a kind of guest")
        return _object(self._ask(f"/nodes/{_valid_node(node)}/{kind}/{_valid_vmid(vmid)}/config"))

    def is_vmid_free(self, vmid: int) -> bool:
        """Ask whether no guest of the cluster has this VMID, those included that the token may not see."""
        _valid_vmid(vmid)  # Proxmox answers 400 to a wrong one too
        try:
            self._call("/cluster/nextid", vmid=vmid)
        except ResourceException as exc:
            if exc.status_code == 400:
                return False
            _give_up(exc)
        except _CALL_FAILED + _ANSWER_ODD as exc:
            _give_up(exc)
        return True

    def is_quorate(self) -> bool:
        """Ask whether the cluster has quorum. A node on its own has.

        Only Sys.Audit on `/` shows the cluster's own word; without it, more than half of the nodes must be online.
        """
        try:
            answer = self._ask("/cluster/status")
        except JobError as error:
            if error.code is not ErrorCode.PVE_PERMISSION:
                raise
            nodes = self.nodes()
            return 2 * sum(node.is_online for node in nodes) > len(nodes)
        clusters = [row for row in _rows(answer) if row.get("type") == "cluster"]
        return all(_number(row.get("quorate")) for row in clusters)

    def may_see_all_vms(self) -> bool:
        """Ask whether a VM that is not in our lists is really not there: VM.Audit on `/vms`."""
        return "VM.Audit" in self.permissions("/vms")

    def find_by_marker(self, rows: Iterable[VmRow], service_id: str, *, name_suffix: str) -> VmRow | None:
        """Look among `vms()` for the VM whose description says that it is the service's.

        The end of the name holds the service's first digits and picks the few whose configuration is read. Two such
        VMs are one too many: VM_IDENTITY_MISMATCH, for a person to look at.
        """
        found = [row for row in rows if self._may_carry_marker(row, name_suffix) and self._is_of(row, service_id)]
        if len(found) > 1:
            vmids = ", ".join(str(row.vmid) for row in found)
            raise JobError(ErrorCode.VM_IDENTITY_MISMATCH, f"more than one VM carries the service's marker: {vmids}")
        return found[0] if found else None

    def find_unmarked(self, rows: Iterable[VmRow], name: str, vmids: range) -> VmRow | None:
        """Look among `vms()` for the one VM of that name, on one of these VMIDs, that carries no marker at all.

        A clone carries its template's description until it is configured, and the name is there from the beginning.
        A container has its marker from its first moment.
        """
        clones = [row for row in rows if row.kind == GuestKind.QEMU and row.name == name and row.vmid in vmids]
        found = [row for row in clones if self._may_carry_marker(row, name)]
        return found[0] if len(found) == 1 and not self._markers_on(found[0]) else None

    def _markers_on(self, row: VmRow) -> list[str]:
        return MARKER_LINE.findall(_text(self._config_of(row).get("description")))

    @staticmethod
    def _may_carry_marker(row: VmRow, name_suffix: str) -> bool:
        return not row.is_template and row.name.endswith(name_suffix)

    def _is_of(self, row: VmRow, service_id: str) -> bool:
        return self.marker_of(self._config_of(row)) == service_id.lower()

    def _config_of(self, row: VmRow) -> dict[str, Any]:
        try:
            return self.vm_config(row.node, row.vmid, kind=row.kind)
        except JobError as error:
            if error.code is not ErrorCode.VM_NOT_FOUND:
                raise
            # Moved or removed since the list was made: looking again decides, a guess could make a second VM.
            raise JobError(ErrorCode.PVE_CONFLICT, f"VM {row.vmid} moved or vanished while it was looked at") from error

    def permissions(self, path: str) -> frozenset[str]:
        """Ask which privileges we hold on a path, such as `/vms/100`. Any valid login may."""
        found = _object(self._ask("/access/permissions", path=path)).get(path)
        return frozenset(found) if isinstance(found, dict) else frozenset()  # the values say only: propagated or not

    @staticmethod
    def marker_of(config: dict[str, Any]) -> str:
        """Read whose VM this is: the service's UUID in its description, '' without one, or with two different ones."""
        found = {uid.lower() for uid in MARKER_LINE.findall(_text(config.get("description")))}
        return found.pop() if len(found) == 1 else ""

    def _ask(self, path: str, /, **query: Any) -> Any:
        """GET, with every failure as a JobError."""
        try:
            return self._call(path, **query)
        except _CALL_FAILED + _ANSWER_ODD as exc:
            _give_up(exc)

    def _call(self, path: str, /, **query: Any) -> Any:
        """GET. A ticket that ran out is renewed by logging in again, once; a secret that has changed is used."""
        had_login = self._has_api()
        used = self.connection
        try:
            return _get(self._api(), path, query)
        except (AuthenticationError, ResourceException) as exc:
            status = getattr(exc, "status_code", 401)
            is_new = status in (401, 403) and self._is_renewed(used)
            is_ticket = had_login and not used.token_secret and status == 401
            if not is_new and not is_ticket:
                raise
        self._local.api = None
        return _get(self._api(), path, query)

    def _is_renewed(self, used: ProxmoxConnection) -> bool:
        """Ask for the connection in force; True when it is not the one that was refused."""
        if self._renew is not None:
            self.connection = self._renew()
        return self.connection is not used

    def _has_api(self) -> bool:
        """True when this thread has one, made by this process for the connection in force."""
        made = getattr(self._local, "pid", None), getattr(self._local, "connection", None)
        return made == (os.getpid(), self.connection) and self._local.api is not None

    def _api(self) -> ProxmoxAPI:
        """One for each thread, and a new one in a forked child: a socket must never have two readers."""
        if not self._has_api():
            used = self.connection
            self._local.api = _connect(used, self._timeout_s)
            self._local.pid, self._local.connection = os.getpid(), used
        return self._local.api


def _connect(connection: ProxmoxConnection, timeout_s: tuple[float, float]) -> ProxmoxAPI:
    """Make an API object. Only a password makes this ask Proxmox."""
    if connection.token_secret:
        login = {"token_name": connection.token_id, "token_value": connection.token_secret}
    else:
        login = {"password": connection.password}
    verify = connection.verify if isinstance(connection.verify, bool) else str(connection.verify)
    if verify is False:  # said once, where the settings are read, and not with every request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    api = ProxmoxAPI(
        connection.host,
        port=connection.port,
        user=connection.user,
        verify_ssl=verify,
        timeout=timeout_s,
        **login,
    )
    session = api._store["session"]
    session.max_redirects = 0  # Proxmox never redirects; whoever does must not get our token
    session.get_adapter("https://").max_retries = Retry(total=1, connect=1, read=0, redirect=0, status=0, other=0)
    return api


def _get(api: ProxmoxAPI, path: str, query: dict[str, Any]) -> Any:
    answer = api(path.strip("/")).get(**query)
    if isinstance(answer, dict) and isinstance(answer.get("errors"), bytes):  # proxmoxer's way to say: no JSON
        raise ValueError("the answer is not JSON")
    return answer


def _give_up(exc: Exception) -> NoReturn:
    """Raise the JobError that says what happened."""
    if isinstance(exc, _CALL_FAILED):
        found = classify(_innermost(exc))
        remedy = _remedy(found.text) if found.code == ErrorCode.PVE_TLS else ""
        raise JobError(found.code, redactor.redact(found.text)[:MAX_ERROR_TEXT] + remedy) from exc
    raise JobError(ErrorCode.PVE_API_ERROR, f"Proxmox's answer cannot be read ({type(exc).__name__})") from exc


def _remedy(text: str) -> str:
    """What to do about a certificate that does not fit."""
    if "expired" in text or "not yet valid" in text:
        return ". Renew Proxmox's certificate; if it is valid, one of the clocks is wrong"
    if "mismatch" in text or "doesn't match" in text:
        return ". PROXMOX_HOST must be a name or an address that Proxmox's certificate is made for"
    return ". PROXMOX_CA_BUNDLE must name a file with the CA of Proxmox's certificate (/etc/pve/pve-root-ca.pem)"


def _innermost(exc: BaseException) -> str:
    """The failure in its own words. Names of objects in memory tell nothing and differ each time."""
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", " ".join(str(exc).split())) or type(exc).__name__


def _valid_node(node: str) -> str:
    if not NODE_NAME.fullmatch(node):
        raise JobError(ErrorCode.INVALID_REQUEST, "not the name of a node")
    return node


def _valid_storage(storage: str) -> str:
    if not STORAGE_NAME.fullmatch(storage):
        raise JobError(ErrorCode.INVALID_REQUEST, "not the name of a storage")
    return storage


def _valid_vmid(vmid: int) -> int:
    if not VMID_MIN <= vmid <= VMID_MAX:
        raise JobError(ErrorCode.INVALID_REQUEST, f"{vmid} is not a VMID")
    return vmid


# ---------------------------------------------------------------------------------------------------------------
# Rows. Proxmox's numbers come as numbers, as text, or not at all, depending on version, guest and node.


def vm_rows(answer: Any) -> list[VmRow]:
    """Read `GET /cluster/resources?type=vm`. What has no VMID or no node is left out: nobody could ask for it."""
    rows = (_vm_row(row) for row in _rows(answer) if row.get("type", "qemu") in ("qemu", "lxc"))
    return [row for row in rows if row.vmid >= VMID_MIN and row.node]


def _vm_row(row: dict[str, Any]) -> VmRow:
    return VmRow(
        vmid=_whole(row.get("vmid")),
        node=_text(row.get("node")),
        name=_text(row.get("name")),
        status=_text(row.get("status")),
        is_template=bool(_whole(row.get("template"))),
        kind=_text(row.get("type")) or "qemu",
        cpu_share=_number(row.get("cpu")),
        cores=_whole(row.get("maxcpu")),
        memory_bytes=_whole(row.get("mem")),
        max_memory_bytes=_whole(row.get("maxmem")),
        disk_bytes=_whole(row.get("disk")),
        max_disk_bytes=_whole(row.get("maxdisk")),
        net_in_bytes=_whole(row.get("netin")),
        net_out_bytes=_whole(row.get("netout")),
        disk_read_bytes=_whole(row.get("diskread")),
        disk_write_bytes=_whole(row.get("diskwrite")),
        uptime_s=_whole(row.get("uptime")),
        tags=tuple(tag for tag in re.split(r"[;,\s]+", _text(row.get("tags"))) if tag),
        lock=_text(row.get("lock")),
    )


def node_rows(answer: Any) -> list[NodeRow]:
    """Read `GET /nodes`. Of a node that is down, Proxmox tells only the name and that it is."""
    return [
        NodeRow(
            name=_text(row.get("node")),
            is_online=row.get("status") == "online",
            cpu_share=_number(row.get("cpu")),
            cores=_whole(row.get("maxcpu")),
            memory_bytes=_whole(row.get("mem")),
            max_memory_bytes=_whole(row.get("maxmem")),
        )
        for row in _rows(answer)
        if _text(row.get("node"))
    ]


def storage_rows(answer: Any) -> list[StorageRow]:
    """Read `GET /cluster/resources?type=storage`."""
    return [
        StorageRow(
            name=_text(row.get("storage")),
            node=_text(row.get("node")),
            is_shared=bool(_whole(row.get("shared"))),
            is_available=row.get("status") == "available",
            holds_disks="images" in _text(row.get("content")).split(","),
        )
        for row in _rows(answer)
        if _text(row.get("storage")) and _text(row.get("node"))
    ]


def _rows(answer: Any) -> list[dict[str, Any]]:
    """The objects of a list; an empty list is sometimes null."""
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not a list")
    return [row for row in answer if isinstance(row, dict)]


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer is not an object")
    return answer


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _whole(value: Any) -> int:
    """An int, not by way of a float where it can be helped: counters grow beyond 2**53."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return int(_number(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)
