"""Decides whether a drift check can rely on the answers of Proxmox and FulcrumCore. All functions are pure.

If the check cannot rely on them, it is inconclusive: it reports the reason, but no differences between the VMs, the
services and the mappings. A mapping says which VM serves which service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from executor.drift.facts import ClusterState, MappingFacts
from executor.model import MappingState

#: If too many mapped VMs are missing in Proxmox's list of guests, the list is probably incomplete. The permitted number
#: is the larger of two numbers: MAX_MISSING_COUNT, and the share MAX_MISSING_SHARE of all mapped VMs. The same rule
#: applies to mapped services that are missing in FulcrumCore's list.
MAX_MISSING_COUNT = 3
MAX_MISSING_SHARE = 0.3


def why_proxmox_is_inconclusive(
    cluster: ClusterState, mappings: Sequence[MappingFacts], *, may_many_vms_be_missing: bool = False
) -> str:
    """Return why nothing can be concluded from Proxmox's answers, or '' when the check can rely on the answers.

    `may_many_vms_be_missing` is True when the operator has said (`--believe-list`) that Proxmox's list is right, even
    if many VMs are missing in it.
    """
    if not cluster.is_quorate:
        return "the cluster has no quorum"
    if not cluster.may_see_all_vms:
        return "the token lacks VM.Audit on /vms, so Proxmox's list may lack VMs"
    if nodes := _offline_nodes_with_vms(cluster, mappings):
        return "; ".join(f"node {node} is offline and has mapped VMs" for node in sorted(nodes))
    if may_many_vms_be_missing:
        return ""
    expected_vmids = {mapping.vmid for mapping in mappings if mapping.state == MappingState.ACTIVE}
    missing_vmids = expected_vmids - cluster.node_by_vmid.keys()
    hint = "if they are gone, run `smith drift --believe-list`"
    if expected_vmids and not cluster.node_by_vmid:
        return f"Proxmox lists no guest at all, although {len(expected_vmids)} VMs are mapped: {hint}"
    return _missing_text(len(missing_vmids), len(expected_vmids), f"mapped VMs are not in Proxmox's list: {hint}")


def why_fulcrum_is_inconclusive(mappings: Sequence[MappingFacts], listed_ids: Collection[str]) -> str:
    """Return why nothing can be concluded from FulcrumCore's list of services.

    `listed_ids` are the ids of all services in the list, including services of other agents. Returns '' when the check
    can rely on the list.
    """
    expected_ids = {mapping.service_id for mapping in mappings if mapping.state == MappingState.ACTIVE}
    missing_ids = expected_ids - set(listed_ids)
    problem = "mapped services are not in FulcrumCore's list, which is probably incomplete"
    return _missing_text(len(missing_ids), len(expected_ids), problem)


def _offline_nodes_with_vms(cluster: ClusterState, mappings: Sequence[MappingFacts]) -> set[str]:
    """Return the offline nodes on which there is a mapped VM, according to the mappings or to Proxmox's list."""
    # `may_have_vm` is true if the mapping is active, pending deletion or reserved.
    mappings_with_vm = [mapping for mapping in mappings if mapping.may_have_vm]
    stored_nodes = {mapping.node for mapping in mappings_with_vm}
    listed_nodes = {cluster.node_by_vmid.get(mapping.vmid, "") for mapping in mappings_with_vm}
    return (stored_nodes | listed_nodes) & cluster.offline_nodes


def _missing_text(missing_count: int, expected_count: int, problem: str) -> str:
    """Return a text about the missing VMs or services, or '' when their number is at most the maximum."""
    max_missing = max(MAX_MISSING_COUNT, expected_count * MAX_MISSING_SHARE)
    return f"{missing_count} of {expected_count} {problem}" if missing_count > max_missing else ""
