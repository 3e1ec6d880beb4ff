"""Step 5 of 7, where a new VM goes, or a migration, when nobody has named one node: filter, then weigh, then say why.

`decide` is a pure function. `Placer` gathers what it needs from Proxmox, a few seconds old at most, and counts what our
own creates under way have been promised, so that a burst of them does not land on one node.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from executor.errors import ErrorCode, JobError
from executor.log import get_logger
from executor.placement import templates
from executor.proxmox.client import NodeRow, ProxmoxReader, StorageRow, VmRow
from executor.settings.settings import Settings

log = get_logger(__name__)

MIB = 1024**2
#: Whatever carries it may be started by a job at any moment, so its memory counts while it is stopped, too.
OUR_TAG = "smith"
FACTS_AGE_S = 5.0
#: Bridges and templates change rarely.
LASTING_AGE_S = 60.0
#: What counts for how much: free memory, unpromised cores, idle cores; each create under way costs a tenth.
MEMORY_WEIGHT, CORES_WEIGHT, IDLE_WEIGHT, CREATE_COST = 0.6, 0.25, 0.15, 0.1
#: Of several reasons why no node fits, the one that asks for the mildest reaction is told.
MILDEST_FIRST = (ErrorCode.NODE_DOWN, ErrorCode.CAPACITY, ErrorCode.NOT_FOUND)
#: How much better another node must be before a VM is moved there: less would send VMs to and fro.
MOVE_GAIN = 0.1
#: Why the template's node is taken without a look at its load.
UNWEIGHED = "the template's node, because the token may not see how full the nodes are (Sys.Audit on /nodes)"
BRIDGE = re.compile(r"(?:^|,)bridge=([^,]+)")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node as the decision sees it."""

    name: str
    is_online: bool = True
    in_maintenance: bool = False
    cores: int = 0  #: 0: not shown to us
    memory_bytes: int = 0  #: 0: not shown to us
    own_memory_bytes: int = 0  #: what the node uses itself, beside its guests
    promised_memory_bytes: int = 0  #: to its guests and to creates under way
    promised_cores: int = 0
    cpu_share: float = 0.0  #: busy right now, 0 to 1
    creates: int = 0  #: ours, under way
    storages: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the new VM needs of its node."""

    memory_mib: int
    cores: int
    storage: str = ""
    bridge: str = ""
    templates: Mapping[str, int]  #: by node, the template to clone for a VM there; 0 where nothing is cloned
    home: str = ""  #: the template's own node, for when nothing can be weighed
    source: str = "the template"  #: what cannot be had on the nodes that are not in `templates`


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the operator decided."""

    nodes: Sequence[str] = ()  #: empty: every node
    memory_overcommit: float = 1.0
    cpu_overcommit: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where, from which template, and why."""

    node: str
    template_vmid: int
    reason: str
    storage: str = ""  #: `create`: where its clone is written, with the node unless the storage is the same everywhere

    def noted_in(self, vm: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result document with the decision in it; an empty one stays empty."""
        told = {"node": self.node, "template_vmid": self.template_vmid, "reason": self.reason}
        return {**vm, "placement": told} if vm else {}


# ---------------------------------------------------------------------------------------------------------------
# The decision.


def decide(wish: Wish, nodes: Sequence[NodeFacts], rules: Rules) -> Placement:
    """Choose a node.

    Raises JobError when none fits: NODE_DOWN when one would if it were there, CAPACITY, or NOT_FOUND (a template that
    cannot be had, a bridge, a name of PROXMOX_NODES that is no node).
    """
    fitting, refused = _fitting(nodes, wish, rules)
    chosen = _best(fitting, wish, rules)
    why = _in_words(chosen, wish, rules) if chosen.memory_bytes else UNWEIGHED
    if not chosen.memory_bytes:
        chosen = next((node for node in fitting if node.name == wish.home), chosen)
    return Placement(
        node=chosen.name, template_vmid=wish.templates[chosen.name], reason=_told(f"{chosen.name}: {why}", refused)
    )


def decide_move(current: str, wish: Wish, nodes: Sequence[NodeFacts], rules: Rules) -> Placement:
    """Choose the node that a VM, which is on `current`, should be on: its own, unless that may not be or others gain.

    `nodes` are counted without the VM. Raises JobError as `decide` does.
    """
    fitting, refused = _fitting(nodes, wish, rules)
    best, here = _best(fitting, wish, rules), next((node for node in fitting if node.name == current), None)
    if here is not None and _score(best, wish, rules) - _score(here, wish, rules) < MOVE_GAIN:
        return Placement(
            node=current, template_vmid=0, reason=_told(f"{current}: no other node is much better", refused)
        )
    why = _in_words(best, wish, rules) if best.memory_bytes else "it fits"
    return Placement(node=best.name, template_vmid=0, reason=_told(f"{best.name}: {why}", refused))


def _fitting(
    nodes: Sequence[NodeFacts], wish: Wish, rules: Rules
) -> tuple[list[NodeFacts], dict[str, tuple[ErrorCode, str]]]:
    """Return the nodes that may be, and why the others may not. Raises JobError when there is none."""
    allowed = [node for node in nodes if not rules.nodes or node.name in rules.nodes]
    refused = {node.name: reason for node in allowed if (reason := _refusal(node, wish, allowed, rules))}
    fitting = [node for node in allowed if node.name not in refused]
    if not fitting:
        raise _nothing_fits(wish, refused)
    return fitting, refused


def _best(fitting: Sequence[NodeFacts], wish: Wish, rules: Rules) -> NodeFacts:
    return max(fitting, key=lambda node: (_score(node, wish, rules), node.name == wish.home, _after(node.name)))


def _told(why: str, refused: Mapping[str, tuple[ErrorCode, str]]) -> str:
    others = [f"not {name}: {text}" for name, (_code, text) in sorted(refused.items())]
    return "; ".join([why, *others])[:500]


def _refusal(node: NodeFacts, wish: Wish, others: Sequence[NodeFacts], rules: Rules) -> tuple[ErrorCode, str] | None:
    """Say why a node does not fit, None when it does."""
    away = ErrorCode.NODE_DOWN if node.name in wish.templates else ErrorCode.NOT_FOUND
    free, left = _free_memory(node, rules), node.cores * rules.cpu_overcommit - node.promised_cores
    reasons = (
        (not node.is_online, away, "is offline"),
        (node.in_maintenance, away, "is in maintenance"),
        (node.name not in wish.templates, ErrorCode.NOT_FOUND, f"{wish.source} cannot be had there"),
        (_lacks(node, others, "storages", wish.storage), ErrorCode.NOT_FOUND, f"has no storage {wish.storage}"),
        (_lacks(node, others, "bridges", wish.bridge), ErrorCode.NOT_FOUND, f"has no bridge {wish.bridge}"),
        (
            bool(node.memory_bytes) and free < wish.memory_mib * MIB,
            ErrorCode.CAPACITY,
            f"has {max(free, 0) / MIB:.0f} MiB of memory left, {wish.memory_mib} are asked for",
        ),
        (
            bool(node.cores) and left < wish.cores,
            ErrorCode.CAPACITY,
            f"has {max(left, 0):.0f} cores left, {wish.cores} are asked for",
        ),
    )
    return next(((code, reason) for is_so, code, reason in reasons if is_so), None)


def _lacks(node: NodeFacts, others: Sequence[NodeFacts], kind: str, name: str) -> bool:
    """Tell whether a node lacks what another has; what none is known to have may only not be shown to us."""
    return bool(name) and name not in getattr(node, kind) and any(name in getattr(each, kind) for each in others)


def _nothing_fits(wish: Wish, refused: Mapping[str, tuple[ErrorCode, str]]) -> JobError:
    if not refused:
        return JobError(ErrorCode.NOT_FOUND, "none of PROXMOX_NODES is a node that the token may see")
    codes = {code for code, _reason in refused.values()}
    code = next(code for code in MILDEST_FIRST if code in codes)
    what = f"no node fits {wish.memory_mib} MiB and {wish.cores} cores"
    told = "; ".join(f"{name} {reason}" for name, (_code, reason) in sorted(refused.items()))
    return JobError(code, f"{what}: {told}"[:400])


def _free_memory(node: NodeFacts, rules: Rules) -> float:
    return node.memory_bytes * rules.memory_overcommit - node.own_memory_bytes - node.promised_memory_bytes


def _shares(node: NodeFacts, wish: Wish, rules: Rules) -> tuple[float, float]:
    """Return which part of memory and of cores would be left, with this VM there."""
    memory = (_free_memory(node, rules) - wish.memory_mib * MIB) / max(node.memory_bytes * rules.memory_overcommit, 1)
    cores = 1 - (node.promised_cores + wish.cores) / max(node.cores * rules.cpu_overcommit, 1)
    return memory, cores


def _score(node: NodeFacts, wish: Wish, rules: Rules) -> float:
    memory, cores = _shares(node, wish, rules) if node.memory_bytes else (0.0, 0.0)
    idle = 1 - min(max(node.cpu_share, 0.0), 1.0)
    return MEMORY_WEIGHT * memory + CORES_WEIGHT * cores + IDLE_WEIGHT * idle - CREATE_COST * node.creates


def _after(name: str) -> tuple[int, ...]:
    """Of equals, let the first by name be the greatest."""
    return tuple(-ord(char) for char in name)


def _in_words(node: NodeFacts, wish: Wish, rules: Rules) -> str:
    memory, cores = _shares(node, wish, rules)
    told = f"{memory:.0%} of memory and {cores:.0%} of cores stay free, {node.cpu_share:.0%} of CPU in use"
    return told + (f", {node.creates} more creates under way" if node.creates else "")


# ---------------------------------------------------------------------------------------------------------------
# The facts.


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What Proxmox said, all at about the same moment."""

    asked_at: float
    nodes: Sequence[NodeRow]
    vms: Sequence[VmRow]
    storages: Sequence[StorageRow]
    in_maintenance: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class _Promise:
    """What a create under way will take, until Proxmox's own list shows it."""

    node: str
    memory_bytes: int
    cores: int
    kept_at: float | None = None  #: when the create ended


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """One create, as the placer needs to know it."""

    vmid: int
    image: str = ""  #: what is cloned
    volume: str = ""  #: what is not: an ISO image or a container's template; '' for empty disks
    memory_mib: int
    cores: int
    bridge: str
    node: str = ""  #: named by the operator or by the mapping; '' leaves the choice to us


@dataclass
class _Remembered:
    value: Any
    asked_at: float


@dataclass
class Placer:
    """Places creates, any number at once; one for each agent."""

    proxmox: ProxmoxReader
    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _cluster: Cluster | None = None
    _promises: dict[int, _Promise] = field(default_factory=dict)
    _lasting: dict[tuple[str, str], _Remembered] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def placing(self, request: PlacementRequest) -> Iterator[Placement]:
        """Decide, and hold the place for the length of the block. Raises JobError when there is none."""
        with self._lock:
            placement = self._place(request)
            placement = replace(placement, storage=self._place_of_disks(placement.node))
            self._promise(request.vmid, placement.node, request.memory_mib * MIB, request.cores)
        log.info("vm_placed", node=placement.node, template=placement.template_vmid, reason=placement.reason)
        with self._kept(request.vmid):
            yield placement

    @contextmanager
    def moving(self, vmid: int, node: str) -> Iterator[Placement]:
        """Decide where a VM should be, and hold the place for the length of the block. Raises JobError when nowhere.

        `node` is where it was when it was last seen: what is not in Proxmox's list stays there.
        """
        with self._lock:
            self._cluster = None  # whoever asks for this has just changed something
            row = next((vm for vm in self._look().vms if vm.vmid == vmid), None)
            stays = Placement(node=node, template_vmid=0, reason=f"{node}: Proxmox does not list it")
            placement = stays if row is None else self._move(row)
            self._promise(vmid, placement.node, row.max_memory_bytes if row else 0, row.cores if row else 0)
        log.info("vm_placed", node=placement.node, reason=placement.reason)
        with self._kept(vmid):
            yield placement

    def _place_of_disks(self, node: str) -> str:
        """Name what clones for this node share: a storage of several nodes, or one node's own."""
        name = self.settings.proxmox_storage or ""
        rows = [row for row in self._look().storages if row.name == name and row.node == node]
        return name if any(row.is_shared for row in rows) else f"{name or 'the template'}@{node}"

    def _promise(self, vmid: int, node: str, memory_bytes: int, cores: int) -> None:
        self._promises[vmid] = _Promise(node=node, memory_bytes=memory_bytes, cores=cores)

    @contextmanager
    def _kept(self, vmid: int) -> Iterator[None]:
        """Keep the promise until a list that is younger than the block's end shows the VM, or that there is none."""
        try:
            yield
        finally:
            with self._lock:
                self._promises[vmid].kept_at = self.clock()

    def _move(self, row: VmRow) -> Placement:
        cluster = self._look()
        config = self.proxmox.vm_config(row.node, row.vmid, kind=row.kind)
        reachable = templates.reach(templates.without_cloud_init(row, config), cluster.storages).nodes
        bridges = {name for key, text in config.items() if key.startswith("net") for name in BRIDGE.findall(str(text))}
        known = {name: self._bridges(name) for name in reachable}
        fits = [name for name in reachable if not known[name] or bridges <= known[name] or name == row.node]
        wish = Wish(
            memory_mib=row.max_memory_bytes // MIB,
            cores=row.cores,
            templates=dict.fromkeys(fits, 0),
            home=row.node,
            source="its disks or its network",
        )
        return decide_move(row.node, wish, self._nodes(cluster, wish, {row.vmid}), self._rules())

    def _place(self, request: PlacementRequest) -> Placement:
        cluster = self._look()
        if not request.image:
            return self._place_without_template(request, cluster)
        found = self._templates(request.image, cluster)
        there = next((vm for vm in cluster.vms if vm.vmid == request.vmid and not vm.is_template), None)
        if there is not None:
            return Placement(node=there.node, template_vmid=found[0].vmid, reason=f"{there.node}: it is there already")
        images = [self._template(row) for row in found]
        storage = self.settings.proxmox_storage if self.settings.proxmox_full_clones else ""
        reaches = {image.vmid: templates.reach(image, cluster.storages, storage) for image in images}
        if request.node:
            vmid = templates.for_node(request.node, request.image, images, reaches)
            return Placement(node=request.node, template_vmid=vmid, reason=f"{request.node}: named by PROXMOX_NODES")
        wish = Wish(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=storage,
            bridge=request.bridge,
            templates=templates.serving(images, reaches),
            home=images[0].node,
        )
        return decide(wish, self._nodes(cluster, wish), self._rules())

    def _templates(self, image: str, cluster: Cluster) -> list[VmRow]:
        try:
            return templates.candidates(image, self.settings.proxmox_templates, cluster.vms)
        except JobError as error:
            if error.code is ErrorCode.NOT_FOUND and not self.proxmox.may_see_all_vms():
                text = f"the token lacks VM.Audit on /vms, so {error.detail}"
                raise JobError(ErrorCode.PVE_PERMISSION, text) from None
            raise

    def _place_without_template(self, request: PlacementRequest, cluster: Cluster) -> Placement:
        there = next((vm.node for vm in cluster.vms if vm.vmid == request.vmid), "")
        if there or request.node:
            why = "it is there already" if there else "named by PROXMOX_NODES"
            return Placement(node=there or request.node, template_vmid=0, reason=f"{there or request.node}: {why}")
        wish = Wish(
            memory_mib=request.memory_mib,
            cores=request.cores,
            storage=self.settings.proxmox_storage or "",
            bridge=request.bridge,
            templates={node.name: 0 for node in cluster.nodes if self._may_have(node.name, request.volume, cluster)},
            source=request.volume or "anything",
        )
        return decide(wish, self._nodes(cluster, wish), self._rules())

    def _may_have(self, node: str, volume: str, cluster: Cluster) -> bool:
        """Tell whether a node's storage holds a volume; True as well when the token may not see that."""
        storage = volume.partition(":")[0]
        if not storage or not any(each.name == storage for each in cluster.storages):
            return True
        if not any(each.name == storage and each.node == node and each.is_available for each in cluster.storages):
            return False
        content = volume.partition(":")[2].partition("/")[0]
        held = self._lastingly(
            f"volumes {content}", f"{storage}@{node}", lambda: self.proxmox.volumes(node, storage, content), None
        )
        return held is None or volume in held

    def _rules(self) -> Rules:
        return Rules(
            nodes=self.settings.proxmox_nodes,
            memory_overcommit=self.settings.smith_memory_overcommit,
            cpu_overcommit=self.settings.smith_cpu_overcommit,
        )

    # --- what Proxmox says ----------------------------------------------------------------------------------------

    def _look(self) -> Cluster:
        """Return the cluster as it was a moment ago, and forget the promises that it shows as kept."""
        now = self.clock()
        if self._cluster is None or now - self._cluster.asked_at > FACTS_AGE_S:
            self._cluster = Cluster(
                asked_at=now,
                nodes=self.proxmox.nodes(),
                vms=self.proxmox.vms(),
                storages=_or(self.proxmox.storages, []),
                in_maintenance=_or(self.proxmox.nodes_in_maintenance, frozenset()),
            )
            kept = [vmid for vmid, each in self._promises.items() if each.kept_at is not None and each.kept_at < now]
            for vmid in kept:
                del self._promises[vmid]
        return self._cluster

    def _template(self, row: VmRow) -> templates.Template:
        def ask() -> templates.Template:
            return templates.read(row, self.proxmox.vm_config(row.node, row.vmid))

        # A node that is down cannot tell, and the decision says that it is down.
        return self._lastingly("template", f"{row.vmid}@{row.node}", ask, templates.read(row, {}))

    def _lastingly(self, kind: str, name: str, ask: Callable[[], T], otherwise: T) -> T:
        """Ask once a minute."""
        known = self._lasting.get((kind, name))
        if known is None or self.clock() - known.asked_at > LASTING_AGE_S:
            try:
                known = self._lasting[kind, name] = _Remembered(ask(), self.clock())
            except JobError as error:
                log.debug("placement_fact_missing", kind=kind, name=name, error_code=error.code)
                return otherwise
        value: T = known.value
        return value

    def _bridges(self, node: str) -> frozenset[str]:
        nothing: frozenset[str] = frozenset()
        return self._lastingly("bridges", node, lambda: self.proxmox.bridges(node), nothing)

    def _nodes(self, cluster: Cluster, wish: Wish, apart: Collection[int] = ()) -> list[NodeFacts]:
        """Return the facts of the nodes that may be; guests of `apart` are not counted."""
        rows = [
            node
            for node in cluster.nodes
            if not self.settings.proxmox_nodes or node.name in self.settings.proxmox_nodes
        ]
        return [self._node(node, cluster, wish, apart) for node in rows]

    def _node(self, row: NodeRow, cluster: Cluster, wish: Wish, apart: Collection[int]) -> NodeFacts:
        facts = node_facts(row, cluster, {*self._promises, *apart})
        promises = [each for vmid, each in self._promises.items() if each.node == row.name and vmid not in apart]
        bridges = self._bridges(row.name) if row.is_online and wish.bridge else frozenset()
        return replace(
            facts,
            bridges=bridges,
            promised_memory_bytes=facts.promised_memory_bytes + sum(each.memory_bytes for each in promises),
            promised_cores=facts.promised_cores + sum(each.cores for each in promises),
            creates=sum(each.kept_at is None for each in promises),
        )


def node_facts(row: NodeRow, cluster: Cluster, apart: set[int]) -> NodeFacts:
    """Return what the lists say of a node. Guests with a VMID of `apart` are counted by the caller."""
    guests = [vm for vm in cluster.vms if vm.node == row.name and not vm.is_template and vm.vmid not in apart]
    counted = [vm for vm in guests if vm.status != "stopped" or OUR_TAG in vm.tags]
    running = sum(vm.memory_bytes for vm in cluster.vms if vm.node == row.name)
    return NodeFacts(
        name=row.name,
        is_online=row.is_online,
        in_maintenance=row.name in cluster.in_maintenance,
        cores=row.cores,
        memory_bytes=row.max_memory_bytes,
        own_memory_bytes=max(row.memory_bytes - running, 0),
        promised_memory_bytes=sum(vm.max_memory_bytes for vm in counted),
        promised_cores=sum(vm.cores for vm in counted),
        cpu_share=row.cpu_share,
        storages=frozenset(each.name for each in cluster.storages if each.node == row.name and each.is_available),
    )


def _or(ask: Callable[[], T], otherwise: T) -> T:
    """Ask for what the token may be too weak to see; without it, the decision knows less."""
    try:
        return ask()
    except JobError as error:
        if error.code is not ErrorCode.PVE_PERMISSION:
            raise
        return otherwise
