"""The page with the list of VMs, and with the differences that the last drift check has found.

A drift check compares the mappings with Proxmox and FulcrumCore. If the last check is too old, its differences are not
shown.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from executor.database import mapping_queries
from executor.database.engine import read_only_session
from executor.model import MappingState
from executor.web.pages.parts import PageContext

#: The maximum number of shown VMs.
MAX_VM_COUNT = 500


def show(context: PageContext, request: Request) -> Response:
    """Return the page with the list of VMs. Deleted VMs are shown only if the request selects their state."""
    view = context.agent_view()  # gives access to the agent's database and to the result of its drift checks
    state = request.query_params.get("state", "")
    state = state if state in set(MappingState) else ""
    with read_only_session(view.engine) as session:
        # If `states` is empty, `list_mappings` omits the mappings of deleted VMs.
        vms = mapping_queries.list_mappings(session, states=[state] if state else (), limit=MAX_VM_COUNT)
    findings = view.list_drift_findings()  # one finding for each difference; None without a recent drift check
    # The row of a VM shows one finding, the last one of its service.
    last_finding_by_service_id = {finding.service_id: finding for finding in findings or ()}
    return context.renderer.render_page(
        request,
        "vms.html",
        vms=vms,
        state=state,
        states=list(MappingState),
        drift=last_finding_by_service_id,
        # `shown_values` are the values in `smith drift --json`.
        findings=[finding.shown_values for finding in findings or ()],
        has_recent_drift_check=findings is not None,
        max_vms=MAX_VM_COUNT,
    )
