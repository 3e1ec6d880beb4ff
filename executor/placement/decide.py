"""Chooses the node for a new VM or a migration: rejects the nodes that do not fit, and scores the nodes that fit.

All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.errors import JobError
from executor.shared.error_codes import ErrorCode

MIB = 1024**2
#: The value of `Placement.template_vmid` if no template is cloned.
NO_TEMPLATE = 0
#: The score of a node is MEMORY_WEIGHT * (share of the memory that is free)
#: + CORES_WEIGHT * (share of the cores that are free) + IDLE_WEIGHT * (share of the CPU that is idle).
MEMORY_WEIGHT, CORES_WEIGHT, IDLE_WEIGHT = 0.6, 0.25, 0.15
#: The decrease of a node's score for each job that `NodeFacts.in_progress_job_count` counts.
JOB_COST = 0.1
#: The precedence of the error codes of rejections. If nodes were rejected with different codes, the job gets the code
#: that comes first in this tuple. A retry is most likely to succeed after NODE_DOWN, and least likely after NOT_FOUND.
CODE_PRECEDENCE = (ErrorCode.NODE_DOWN, ErrorCode.CAPACITY, ErrorCode.NOT_FOUND)
#: Minimum gain of score for a migration: if a VM's current node fits, the VM migrates only to a node whose score is
#: higher by at least this number. Without this minimum, small changes of the scores would make VMs migrate back and
#: forth.
MIN_MIGRATION_GAIN = 0.1
#: A part of `Placement.reason` for a new VM if the API token lacks the privilege to read the load of the nodes.
LOAD_UNKNOWN_TEXT = "the token lacks Sys.Audit on /nodes, so the load of the nodes is unknown"
#: The maximum lengths of the reason for a placement and of the error text when no node fits. Longer texts are cut.
MAX_REASON_CHARS, MAX_ERROR_CHARS = 500, 400

#: An error code and the text of the reason why a node does not fit.
Rejection = tuple[ErrorCode, str]


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """The facts about one Proxmox node that the choice of a node depends on."""

    name: str
    is_online: bool = True
    is_in_maintenance: bool = False
    cores: int = 0  #: 0 if the token lacks the privilege to read this number
    total_memory_bytes: int = 0  #: 0 if the token lacks the privilege to read this number
    memory_bytes_used_by_host: int = 0  #: the used memory of the node, without the memory that its guests use
    #: The configured memory of the node's guests. A VM that a job is creating on the node, migrating to the node or
    #: making larger counts with its future memory.
    allocated_memory_bytes: int = 0
    allocated_cores: int = 0  #: the cores of the guests and VMs whose memory counts in `allocated_memory_bytes`
    cpu_usage: float = 0.0  #: the share of the CPU that is in use, from 0 to 1
    #: Number of jobs that are creating a VM on the node, migrating a VM to the node, or making a VM on the node larger.
    in_progress_job_count: int = 0
    storages: frozenset[str] = frozenset()  #: the names of the storages that are available on the node
    bridges: frozenset[str] = frozenset()  #: the names of the bridges; empty if they were not read

    @property
    def is_load_known(self) -> bool:
        """False if the token lacks the privilege to read the memory and cores of the node."""
        return self.total_memory_bytes > 0


@dataclass(frozen=True, kw_only=True)
class PlacementConstraints:
    """What a VM needs from its node."""

    memory_mib: int
    #: The number of cores. The node must have at least as many CPUs: a VM with more cores cannot start, and a container
    #: cannot use more.
    cores: int
    storage: str = ""  #: the name of the storage that the node must have; '' if no storage is required
    bridge: str = ""  #: the name of the bridge that the node must have; '' if no bridge is required
    #: Maps each node with access to the VM's source to the VMID of the template to clone for a VM on this node, or to
    #: NO_TEMPLATE. The source of a new VM is the template, or the volume of the ISO image or container template. The
    #: source of a migrating VM is its disks and bridges.
    template_vmid_by_candidate_node: Mapping[str, int]
    source_text: str = "the template"  #: the name of the source in messages
    #: The preferred node: for a clone, the node of the image's template with the lowest VMID; for a migration, the VM's
    #: present node; '' for a new VM without a template. If several nodes share the highest score, the preferred node
    #: is chosen if it is one of them. A new VM gets the preferred node, whatever its score, if this node fits and the
    #: token cannot read the load of the node with the highest score.
    preferred_node: str = ""


@dataclass(frozen=True, kw_only=True)
class PlacementRules:
    """The operator's settings for placement."""

    nodes: Sequence[str] = ()  #: the names of the nodes that may be chosen; empty if every node may be chosen
    memory_overcommit: float = 1.0  #: the usable memory of a node is its memory, multiplied by this number
    cpu_overcommit: float = 4.0  #: the usable cores of a node are its CPUs, multiplied by this number


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The chosen node, the VMID of the template to clone (or NO_TEMPLATE), and the reason for the choice."""

    node: str
    template_vmid: int
    reason: str
    #: The name of a shared storage, or `<storage>@<node>`. The number of clones that run at the same time is limited,
    #: and clones with the same `clone_target` share one limit. `choose_node` leaves this field empty. Its caller
    #: sets the field for a new VM. For a migration, the field stays empty.
    clone_target: str = ""

    def add_placement_to_result(self, vm_result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a run's result for a VM, with this placement added. An empty result stays empty."""
        placement = {"node": self.node, "template_vmid": self.template_vmid, "reason": self.reason}
        return {**vm_result, "placement": placement} if vm_result else {}


def choose_node(constraints: PlacementConstraints, nodes: Sequence[NodeFacts], rules: PlacementRules) -> Placement:
    """Choose the node for a new VM.

    Raises JobError when no node fits, with one of these codes. If several codes apply, the first in this list is used.

    - NODE_DOWN: a node with access to the VM's source is offline or in maintenance.
    - CAPACITY: a node has too little free memory or too few free cores.
    - NOT_FOUND: no node has access to the VM's source, or the nodes with access lack the storage or the bridge. Or no
      node in PROXMOX_NODES exists.
    """
    fitting_nodes, rejections = _fitting_nodes(nodes, constraints, rules)
    chosen_node = _best_node(fitting_nodes, constraints, rules)
    if chosen_node.is_load_known:
        reason = _load_text(chosen_node, constraints, rules)
    else:
        preferred_node = _node_with_name(constraints.preferred_node, fitting_nodes)
        chosen_node = preferred_node or chosen_node
        reason = f"{'the template is on this node' if preferred_node else 'the VM fits'}; {LOAD_UNKNOWN_TEXT}"
    return Placement(
        node=chosen_node.name,
        template_vmid=constraints.template_vmid_by_candidate_node[chosen_node.name],
        reason=_reason_text(chosen_node.name, reason, rejections),
    )


def choose_migration_node(
    current_node_name: str, constraints: PlacementConstraints, nodes: Sequence[NodeFacts], rules: PlacementRules
) -> Placement:
    """Choose the node for a VM that is on the node with the name `current_node_name`.

    Another node is chosen only if the current node does not fit, or if the other node's score is higher by at least
    MIN_MIGRATION_GAIN. The allocated memory and cores in `nodes` must not include the memory and cores of the VM
    itself. Raises the same errors as `choose_node`.
    """
    fitting_nodes, rejections = _fitting_nodes(nodes, constraints, rules)
    chosen_node = _best_node(fitting_nodes, constraints, rules)
    reason = _load_text(chosen_node, constraints, rules) if chosen_node.is_load_known else "the VM fits"
    current_node = _node_with_name(current_node_name, fitting_nodes)
    if current_node is not None:
        score_gain = _score(chosen_node, constraints, rules) - _score(current_node, constraints, rules)
        if score_gain < MIN_MIGRATION_GAIN:
            chosen_node, reason = current_node, "no other node has a much higher score"
    reason_text = _reason_text(chosen_node.name, reason, rejections)
    return Placement(node=chosen_node.name, template_vmid=NO_TEMPLATE, reason=reason_text)


def require_capacity(node: NodeFacts, constraints: PlacementConstraints, rules: PlacementRules) -> None:
    """Raise JobError CAPACITY if a VM that grows does not fit on its node.

    `constraints` has the new memory and cores of the VM, and 0 for what does not grow. The allocated memory and cores
    in `node` must not include the memory and cores of the VM itself.
    """
    if rejection := _capacity_rejection(node, constraints, rules):
        code, text = rejection
        customer_text = "the VM's node lacks the memory or cores for the VM's new size"
        raise JobError(code, customer_text, operator_detail=f"{node.name} {text}")


def _node_with_name(name: str, nodes: Sequence[NodeFacts]) -> NodeFacts | None:
    return next((node for node in nodes if node.name == name), None)


# --- filter -------------------------------------------------------------------------------------------------------


def _fitting_nodes(
    nodes: Sequence[NodeFacts], constraints: PlacementConstraints, rules: PlacementRules
) -> tuple[list[NodeFacts], dict[str, Rejection]]:
    """Return the nodes that fit, and the rejections of the other nodes. The keys are the names of the nodes.

    Raises JobError when no node fits.
    """
    allowed_nodes = [node for node in nodes if not rules.nodes or node.name in rules.nodes]
    fitting_nodes: list[NodeFacts] = []
    rejections: dict[str, Rejection] = {}
    for node in allowed_nodes:
        rejection = _rejection(node, constraints, allowed_nodes, rules)
        if rejection is None:
            fitting_nodes.append(node)
        else:
            rejections[node.name] = rejection
    if not fitting_nodes:
        raise _no_node_error(constraints, rejections)
    return fitting_nodes, rejections


def _rejection(
    node: NodeFacts, constraints: PlacementConstraints, allowed_nodes: Sequence[NodeFacts], rules: PlacementRules
) -> Rejection | None:
    """Return why a node does not fit, or None if the node fits."""
    has_access_to_source = node.name in constraints.template_vmid_by_candidate_node
    if not node.is_online or node.is_in_maintenance:
        code = ErrorCode.NODE_DOWN if has_access_to_source else ErrorCode.NOT_FOUND
        text = "is in maintenance" if node.is_online else "is offline"
        return code, text
    if not has_access_to_source:
        return ErrorCode.NOT_FOUND, f"has no access to {constraints.source_text}"
    # A node without the storage or the bridge is rejected only if another node has this storage or bridge. If no node
    # has it, the token may lack the privilege to see it.
    storages_only_on_others = _union(other_node.storages for other_node in allowed_nodes) - node.storages
    if constraints.storage in storages_only_on_others:
        return ErrorCode.NOT_FOUND, f"has no storage {constraints.storage}"
    bridges_only_on_others = _union(other_node.bridges for other_node in allowed_nodes) - node.bridges
    if constraints.bridge in bridges_only_on_others:
        return ErrorCode.NOT_FOUND, f"has no bridge {constraints.bridge}"
    return _capacity_rejection(node, constraints, rules)


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)


def _capacity_rejection(node: NodeFacts, constraints: PlacementConstraints, rules: PlacementRules) -> Rejection | None:
    """Return the rejection of a node with too little free memory or too few free cores; None if the node has enough.

    Memory (or cores) are not checked if the token cannot read them, or if the VM needs 0 of them.
    """
    free_bytes = _free_memory_bytes(node, rules)
    if node.total_memory_bytes and constraints.memory_mib and free_bytes < constraints.memory_mib * MIB:
        free_mib = max(free_bytes, 0) / MIB
        return ErrorCode.CAPACITY, f"has {free_mib:.0f} MiB of memory free, {constraints.memory_mib} requested"
    if node.cores and constraints.cores > node.cores:
        return ErrorCode.CAPACITY, f"has only {node.cores} CPUs, and the guest needs {constraints.cores} cores"
    free_cores = node.cores * rules.cpu_overcommit - node.allocated_cores
    if node.cores and constraints.cores and free_cores < constraints.cores:
        return ErrorCode.CAPACITY, f"has {max(free_cores, 0):.0f} cores free, {constraints.cores} requested"
    return None


def _no_node_error(constraints: PlacementConstraints, rejections: Mapping[str, Rejection]) -> JobError:
    if not rejections:
        text = "Proxmox lists none of the nodes in PROXMOX_NODES: correct this setting"
        return JobError(ErrorCode.NOT_FOUND, "there is no node for the VM", operator_detail=text)
    codes = {code for code, _text in rejections.values()}
    first_code = next(code for code in CODE_PRECEDENCE if code in codes)
    customer_text = f"no node fits a VM with {constraints.memory_mib} MiB and {constraints.cores} cores"
    reasons = "; ".join(f"{name} {text}" for name, (_code, text) in sorted(rejections.items()))
    return JobError(first_code, customer_text, operator_detail=f"{customer_text}: {reasons}"[:MAX_ERROR_CHARS])


def _free_memory_bytes(node: NodeFacts, rules: PlacementRules) -> float:
    """Return how much memory of the node may still be allocated. The number may be negative."""
    return (
        node.total_memory_bytes * rules.memory_overcommit - node.memory_bytes_used_by_host - node.allocated_memory_bytes
    )


# --- score --------------------------------------------------------------------------------------------------------


def _best_node(
    fitting_nodes: Sequence[NodeFacts], constraints: PlacementConstraints, rules: PlacementRules
) -> NodeFacts:
    """Return the node with the highest score.

    If several nodes have this score, return the preferred node. If it is not one of them, return the first in
    alphabetical order.
    """

    def rank(node: NodeFacts) -> tuple[float, bool, str]:
        return -_score(node, constraints, rules), node.name != constraints.preferred_node, node.name

    return min(fitting_nodes, key=rank)


def _score(node: NodeFacts, constraints: PlacementConstraints, rules: PlacementRules) -> float:
    """Return the score that a node would have with the VM on it. A higher score is better."""
    free_memory_share, free_cores_share = _free_shares(node, constraints, rules) if node.is_load_known else (0.0, 0.0)
    idle_cpu = 1 - min(max(node.cpu_usage, 0.0), 1.0)
    weighted_sum = MEMORY_WEIGHT * free_memory_share + CORES_WEIGHT * free_cores_share + IDLE_WEIGHT * idle_cpu
    return weighted_sum - JOB_COST * node.in_progress_job_count


def _free_shares(node: NodeFacts, constraints: PlacementConstraints, rules: PlacementRules) -> tuple[float, float]:
    """Return the shares of memory and of cores that would be free on the node if the VM were on it."""
    usable_memory_bytes = max(node.total_memory_bytes * rules.memory_overcommit, 1)
    free_memory_share = (_free_memory_bytes(node, rules) - constraints.memory_mib * MIB) / usable_memory_bytes
    usable_cores = max(node.cores * rules.cpu_overcommit, 1)
    free_cores_share = 1 - (node.allocated_cores + constraints.cores) / usable_cores
    return free_memory_share, free_cores_share


# --- reason -------------------------------------------------------------------------------------------------------


def _load_text(node: NodeFacts, constraints: PlacementConstraints, rules: PlacementRules) -> str:
    """Return the reason for a placement on a node: which part of the node stays free with the VM on it."""
    free_memory_share, free_cores_share = _free_shares(node, constraints, rules)
    text = (
        f"{free_memory_share:.0%} of memory and {free_cores_share:.0%} of cores stay free, "
        f"{node.cpu_usage:.0%} of CPU in use"
    )
    if node.in_progress_job_count:
        text += f", {node.in_progress_job_count} other jobs in progress"
    return text


def _reason_text(chosen_name: str, reason: str, rejections: Mapping[str, Rejection]) -> str:
    """Return a text with the reason for the chosen node, and the reason against each rejected node."""
    rejection_texts = [f"not {name}: {text}" for name, (_code, text) in sorted(rejections.items())]
    return "; ".join([f"{chosen_name}: {reason}", *rejection_texts])[:MAX_REASON_CHARS]
