"""Chooses the node for a new VM or a migration: rejects nodes that do not fit, and chooses by score among the others.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.errors import ErrorCode, JobError

MIB = 1024**2
#: A node's score is the sum of its shares of free memory, free cores and idle CPU, each multiplied by its weight.
MEMORY_WEIGHT, CORES_WEIGHT, IDLE_WEIGHT = 0.6, 0.25, 0.15
#: This number is subtracted from a node's score for each create of this agent that is in progress on the node.
CREATE_COST = 0.1
#: If no node fits and the nodes were rejected with different error codes, the job gets the first of these codes. A
#: retry is most likely to succeed after NODE_DOWN, and least likely after NOT_FOUND.
CODE_PRECEDENCE = (ErrorCode.NODE_DOWN, ErrorCode.CAPACITY, ErrorCode.NOT_FOUND)
#: A VM migrates to another node only if the score of that node is higher by at least this number. With a lower number,
#: VMs would migrate back and forth.
MIN_MOVE_GAIN = 0.1
#: The reason that is reported for a placement when the token may not read the memory and cores of the nodes.
LOAD_UNKNOWN = "the template's node, because the token may not read the load of the nodes (Sys.Audit on /nodes)"
MAX_REASON_CHARS = 500
MAX_ERROR_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """The facts about one Proxmox node on which the choice depends."""

    name: str
    is_online: bool = True
    in_maintenance: bool = False
    cores: int = 0  #: 0 if the token may not read this number
    memory_bytes: int = 0  #: 0 if the token may not read this number
    own_memory_bytes: int = 0  #: memory that processes of the node itself use, not its guests
    allocated_memory_bytes: int = 0  #: configured memory of its guests and of the agent's creates in progress
    allocated_cores: int = 0  #: configured cores of the same guests and creates
    cpu_share: float = 0.0  #: share of the CPU in use, from 0 to 1
    creates_in_progress: int = 0  #: number of creates of this agent
    storages: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PlacementConstraints:
    """What a VM needs from its node."""

    memory_mib: int
    cores: int
    storage: str = ""
    bridge: str = ""
    templates: Mapping[str, int]  #: keys: nodes that can run the VM; values: VMID of the template to clone, or 0
    preferred_node: str = ""  #: chosen if scores are equal, or if no node's load can be read
    source: str = "the template"  #: for messages: what a node that is not in `templates` cannot reach


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The operator's settings for placement."""

    nodes: Sequence[str] = ()  #: the nodes that may be chosen; empty if every node may be chosen
    memory_overcommit: float = 1.0
    cpu_overcommit: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The chosen node, the VMID of the template to clone (0 if nothing is cloned), and the reason for the choice."""

    node: str
    template_vmid: int
    reason: str
    clone_target: str = ""  #: for CloneLimit: a shared storage or `<storage>@<node>`; '' for a migration

    def add_to_result(self, vm: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result `vm` of a run with this placement added. An empty result stays empty."""
        placement = {"node": self.node, "template_vmid": self.template_vmid, "reason": self.reason}
        return {**vm, "placement": placement} if vm else {}


def decide(constraints: PlacementConstraints, nodes: Sequence[NodeFacts], rules: Rules) -> Placement:
    """Choose the node for a new VM.

    Raises JobError when no node fits. The code is NODE_DOWN if a node that could clone the template is offline or in
    maintenance; else CAPACITY if a node has too little free memory or too few free cores; else NOT_FOUND: no node has
    the template, the bridge and the storage, or PROXMOX_NODES names no existing node.
    """
    fitting, rejected = _fitting(nodes, constraints, rules)
    best = _best(fitting, constraints, rules)
    if best.memory_bytes:
        why = _load_text(best, constraints, rules)
    else:
        why = LOAD_UNKNOWN
        best = next((node for node in fitting if node.name == constraints.preferred_node), best)
    return Placement(
        node=best.name,
        template_vmid=constraints.templates[best.name],
        reason=_reason_text(f"{best.name}: {why}", rejected),
    )


def decide_move(current: str, constraints: PlacementConstraints, nodes: Sequence[NodeFacts], rules: Rules) -> Placement:
    """Choose the node for a VM that is on the node `current`.

    Another node is chosen only if `current` does not fit, or if the score of the other node is higher by at least
    MIN_MOVE_GAIN. The memory and cores in `nodes` must not include those of the VM itself. Raises the same errors as
    `decide`.
    """
    fitting, rejected = _fitting(nodes, constraints, rules)
    best = _best(fitting, constraints, rules)
    stay = next((node for node in fitting if node.name == current), None)
    if stay is not None and _score(best, constraints, rules) - _score(stay, constraints, rules) < MIN_MOVE_GAIN:
        why = f"{current}: no other node is much better"
        return Placement(node=current, template_vmid=0, reason=_reason_text(why, rejected))
    why = _load_text(best, constraints, rules) if best.memory_bytes else "it fits"
    return Placement(node=best.name, template_vmid=0, reason=_reason_text(f"{best.name}: {why}", rejected))


# --- filter -------------------------------------------------------------------------------------------------------


def _fitting(
    nodes: Sequence[NodeFacts], constraints: PlacementConstraints, rules: Rules
) -> tuple[list[NodeFacts], dict[str, tuple[ErrorCode, str]]]:
    """Return the nodes that fit, and for each rejected node an error code and the reason.

    Raises JobError when no node fits.
    """
    allowed = [node for node in nodes if not rules.nodes or node.name in rules.nodes]
    rejections = {node.name: _rejection(node, constraints, allowed, rules) for node in allowed}
    rejected = {name: rejection for name, rejection in rejections.items() if rejection}
    fitting = [node for node in allowed if node.name not in rejected]
    if not fitting:
        raise _no_node_error(constraints, rejected)
    return fitting, rejected


def _rejection(
    node: NodeFacts, constraints: PlacementConstraints, others: Sequence[NodeFacts], rules: Rules
) -> tuple[ErrorCode, str] | None:
    """Return an error code and the reason why a node does not fit, None when the node fits."""
    memory_mib, cores, source = constraints.memory_mib, constraints.cores, constraints.source
    storage, bridge = constraints.storage, constraints.bridge
    is_usable = node.name in constraints.templates
    unavailable = ErrorCode.NODE_DOWN if is_usable else ErrorCode.NOT_FOUND
    free_bytes, free_cores = _free_memory_bytes(node, rules), node.cores * rules.cpu_overcommit - node.allocated_cores
    reasons = (
        (not node.is_online, unavailable, "is offline"),
        (node.in_maintenance, unavailable, "is in maintenance"),
        (not is_usable, ErrorCode.NOT_FOUND, f"has no access to {source}"),
        (_lacks(node, others, "storages", storage), ErrorCode.NOT_FOUND, f"has no storage {storage}"),
        (_lacks(node, others, "bridges", bridge), ErrorCode.NOT_FOUND, f"has no bridge {bridge}"),
        (
            bool(node.memory_bytes) and free_bytes < memory_mib * MIB,
            ErrorCode.CAPACITY,
            f"has {max(free_bytes, 0) / MIB:.0f} MiB of memory free, {memory_mib} requested",
        ),
        (
            bool(node.cores) and free_cores < cores,
            ErrorCode.CAPACITY,
            f"has {max(free_cores, 0):.0f} cores free, {cores} requested",
        ),
    )
    return next(((code, text) for is_true, code, text in reasons if is_true), None)


def _lacks(node: NodeFacts, others: Sequence[NodeFacts], kind: str, name: str) -> bool:
    """Return whether a node lacks a storage or bridge that another node has; `kind` is "storages" or "bridges".

    If no node has the storage or bridge, the token may lack the privilege to see it. Then no node is rejected.
    """
    return bool(name) and name not in getattr(node, kind) and any(name in getattr(each, kind) for each in others)


def _no_node_error(constraints: PlacementConstraints, rejected: Mapping[str, tuple[ErrorCode, str]]) -> JobError:
    if not rejected:
        return JobError(ErrorCode.NOT_FOUND, "none of PROXMOX_NODES is a node that the token may see")
    codes = {code for code, _text in rejected.values()}
    code = next(code for code in CODE_PRECEDENCE if code in codes)
    what = f"no node fits {constraints.memory_mib} MiB and {constraints.cores} cores"
    reasons = "; ".join(f"{name} {text}" for name, (_code, text) in sorted(rejected.items()))
    return JobError(code, f"{what}: {reasons}"[:MAX_ERROR_CHARS])


def _free_memory_bytes(node: NodeFacts, rules: Rules) -> float:
    return node.memory_bytes * rules.memory_overcommit - node.own_memory_bytes - node.allocated_memory_bytes


# --- score --------------------------------------------------------------------------------------------------------


def _best(fitting: Sequence[NodeFacts], constraints: PlacementConstraints, rules: Rules) -> NodeFacts:
    """Return the node with the highest score.

    If scores are equal, the preferred node is chosen, else the first node in alphabetical order.
    """

    def rank(node: NodeFacts) -> tuple[float, bool, tuple[int, ...]]:
        return _score(node, constraints, rules), node.name == constraints.preferred_node, _reversed_order(node.name)

    return max(fitting, key=rank)


def _score(node: NodeFacts, constraints: PlacementConstraints, rules: Rules) -> float:
    """Return the score of a node as it would be with the VM on it; a higher score is better."""
    memory, cores = _free_shares(node, constraints, rules) if node.memory_bytes else (0.0, 0.0)
    idle = 1 - min(max(node.cpu_share, 0.0), 1.0)
    free_score = MEMORY_WEIGHT * memory + CORES_WEIGHT * cores + IDLE_WEIGHT * idle
    return free_score - CREATE_COST * node.creates_in_progress


def _free_shares(node: NodeFacts, constraints: PlacementConstraints, rules: Rules) -> tuple[float, float]:
    """Return the shares of memory and of cores that would be free on the node if the VM were on it."""
    limit_bytes = max(node.memory_bytes * rules.memory_overcommit, 1)
    memory = (_free_memory_bytes(node, rules) - constraints.memory_mib * MIB) / limit_bytes
    cores = 1 - (node.allocated_cores + constraints.cores) / max(node.cores * rules.cpu_overcommit, 1)
    return memory, cores


def _reversed_order(name: str) -> tuple[int, ...]:
    """Return a sort key by which `max` chooses the first name in alphabetical order."""
    return tuple(-ord(char) for char in name)


# --- reason -------------------------------------------------------------------------------------------------------


def _load_text(node: NodeFacts, constraints: PlacementConstraints, rules: Rules) -> str:
    memory, cores = _free_shares(node, constraints, rules)
    text = f"{memory:.0%} of memory and {cores:.0%} of cores stay free, {node.cpu_share:.0%} of CPU in use"
    return text + (f", {node.creates_in_progress} other creates in progress" if node.creates_in_progress else "")


def _reason_text(why: str, rejected: Mapping[str, tuple[ErrorCode, str]]) -> str:
    others = [f"not {name}: {text}" for name, (_code, text) in sorted(rejected.items())]
    return "; ".join([why, *others])[:MAX_REASON_CHARS]
