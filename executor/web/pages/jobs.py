"""The page with the list of jobs, the newest first, 50 at once. Operators can filter and search the list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from executor.database import mapping_queries, queries
from executor.database.engine import read_only_session
from executor.database.times import utc_now
from executor.model import JobStatus
from executor.views.job_rows import service_and_vm_fields, summary_fields
from executor.views.text import elapsed_text
from executor.web.pages.forms import replace_unprintable
from executor.web.pages.parts import PageContext

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session

#: The maximum number of jobs on one page.
PAGE_SIZE = 50
#: A longer text in a filter is cut to this length.
MAX_FILTER_LENGTH = 100
#: The filter `before` (a job's number) is ignored if it has this many digits or more.
JOB_NUMBER_DIGIT_LIMIT = 18


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The filters that the operator has selected."""

    status: str = ""
    action: str = ""
    search: str = ""  #: a job's number or its id at FulcrumCore, a service's id, a VMID, or a VM's name
    selects_unreported_only: bool = False  #: only ended jobs whose result FulcrumCore has not acknowledged
    before_job_id: int | None = None  #: only jobs with a lower number

    def url_query(self, *, before_job_id: int | None = None) -> str:
        """Return the filters as the query of a URL, without the filter `self.before_job_id`.

        With `before_job_id`, the page at this URL lists only jobs with a lower number.
        """
        values = {"status": self.status, "action": self.action, "q": self.search}
        values |= {"unreported": "1" if self.selects_unreported_only else "", "before": str(before_job_id or "")}
        return urlencode({name: value for name, value in values.items() if value})


def show(context: PageContext, request: Request) -> Response:
    """Return the page with the list of jobs. `agent_view()` returns the parts of the agent that web pages read."""
    filters = filters_from_query(request.query_params)
    with read_only_session(context.agent_view().engine) as session:
        service_ids = _find_service_ids(session, filters.search) if filters.search else None
        job = queries.find_job(session, filters.search) if filters.search else None
        jobs = [job] if job is not None else []
        if job is None:
            # () and None do not restrict the jobs. If `service_ids` is an empty set, no job is returned.
            jobs = list(
                queries.list_jobs(
                    session,
                    statuses=[filters.status] if filters.status else (),
                    action=filters.action or None,
                    service_ids=service_ids,
                    only_unreported=filters.selects_unreported_only,
                    before_id=filters.before_job_id,
                    limit=PAGE_SIZE + 1,
                )
            )
        mapping_by_service = mapping_queries.current_mappings_by_service(
            session, {job.service_id for job in jobs if job.service_id}
        )
    now, shown_jobs = utc_now(), jobs[:PAGE_SIZE]
    rows = [
        summary_fields(job)
        | service_and_vm_fields(job, mapping_by_service)
        | {"age": elapsed_text(job.received_at, now)}
        for job in shown_jobs
    ]
    # If `older_query` is "", the page has no link to older jobs. If `newest_query` is None, the page shows the newest
    # jobs, and has no link to them. If `newest_query` is "", the link to the newest jobs selects no filter.
    older_query = filters.url_query(before_job_id=shown_jobs[-1].id) if len(jobs) > PAGE_SIZE else ""
    return context.renderer.render_page(
        request,
        "jobs.html",
        rows=rows,
        filters=filters,
        statuses=list(JobStatus),
        older_query=older_query,
        newest_query=filters.url_query() if filters.before_job_id else None,
    )


def filters_from_query(values: Mapping[str, str]) -> Filters:
    """Return the filters in the query of a URL. An invalid value is ignored."""
    before = values.get("before", "")
    status = values.get("status", "")
    return Filters(
        status=status if status in set(JobStatus) else "",
        action=replace_unprintable(values.get("action", "")).strip()[:MAX_FILTER_LENGTH],
        search=replace_unprintable(values.get("q", "")).strip()[:MAX_FILTER_LENGTH],
        selects_unreported_only=bool(values.get("unreported")),
        before_job_id=int(before)
        if before.isascii() and before.isdecimal() and len(before) < JOB_NUMBER_DIGIT_LIMIT
        else None,
    )


def _find_service_ids(session: Session, search: str) -> Collection[str]:
    """Return the ids of the services whose id begins with `search`, or whose VM has this VMID or name."""
    service_ids = {mapping.service_id for mapping in mapping_queries.find_mappings_by_vm_or_service(session, search)}
    return service_ids | set(queries.service_ids_with_prefix(session, search))
