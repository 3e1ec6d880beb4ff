"""The pages for operators: what each shows and filters, and that text from outside is always escaped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.web_jobs import HOSTILE, Filled, fill
from support.web_world import TOKEN, Browser, PagesSite, running_pages

from executor.database import operator_changes
from executor.database.engine import transaction
from executor.drift.facts import DriftKind, Finding
from executor.redaction import MASK

PATHS = ("/", "/jobs", "/vms", "/executors", "/settings", "/audit", "/doctor")


@pytest.fixture(scope="module")
def shown_pages(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, database_settings: dict[str, str]
) -> Iterator[tuple[PagesSite, Browser, Filled]]:
    """The pages of a filled database, and a browser that has logged in."""
    folder = tmp_path_factory.mktemp("pages")
    with running_pages(folder, empty_database, **database_settings) as site:
        filled = fill(site.engine, folder)
        finding = Finding(kind=DriftKind.VM_GONE, service_id="5", vmid=100123, text=f"gone {HOSTILE}", name=HOSTILE)
        object.__setattr__(site.view, "list_drift_findings", lambda: [finding])
        with transaction(site.engine) as session:
            operator_changes.retry_job(session, filled.pending, who=f"eve {HOSTILE}"[:90])
        yield site, site.logged_in(), filled


ShownPages = tuple[PagesSite, Browser, Filled]


def test_every_page_is_shown_and_escapes_every_text(shown_pages: ShownPages) -> None:
    _site, browser, filled = shown_pages
    jobs = [f"/jobs/{number}" for number in (filled.completed, filled.failed, filled.running, filled.pending)]
    hostile_pages = 0
    for path in (*PATHS, *jobs):
        answer = browser.get(path)
        assert answer.status == 200, path
        assert "<script>window" not in answer.text, path
        assert "<img" not in answer.text, path
        assert not any(char in answer.text for char in "\x1b\u202e"), path
        assert TOKEN not in answer.text, path
        hostile_pages += "&lt;script&gt;window.hacked" in answer.text
    assert hostile_pages >= 8


def test_the_overview_names_what_is_wrong_first(shown_pages: ShownPages) -> None:
    text = shown_pages[1].get("/").text
    assert text.index("What is wrong") < text.index("Running")
    assert "fulcrum: FulcrumCore has not answered yet" in text
    assert "Mappings, Proxmox and FulcrumCore differ" in text
    assert "cloning" in text


def test_jobs_are_filtered_and_found_by_number_service_and_vm(shown_pages: ShownPages) -> None:
    _site, browser, filled = shown_pages

    def list_linked_jobs(query: str) -> set[int]:
        text = browser.get(f"/jobs?{query}").text
        numbers = (filled.completed, filled.failed, filled.running, filled.pending)
        return {number for number in numbers if f'href="jobs/{number}"' in text}

    assert list_linked_jobs("") == {filled.completed, filled.failed, filled.running, filled.pending}
    assert list_linked_jobs("status=failed") == {filled.failed}
    assert list_linked_jobs("action=stop") == {filled.pending}
    assert list_linked_jobs("unreported=1") == {filled.completed, filled.failed}
    assert list_linked_jobs(f"q={filled.running}") == {filled.running}
    assert list_linked_jobs("q=no-such-vm") == set()
    assert list_linked_jobs(f"before={filled.running}") == {filled.completed, filled.failed}
    assert list_linked_jobs("status=<b>&before=-1&q=%00") is not None


def test_a_job_has_its_timeline_and_masked_properties(shown_pages: ShownPages) -> None:
    _site, browser, filled = shown_pages
    text = browser.get(f"/jobs/{filled.running}").text
    assert "received from FulcrumCore" in text
    assert "attempt 1: create.yml starts (create-1)" in text
    assert "hunter22" not in text
    assert MASK in text
    assert "CAPACITY" in browser.get(f"/jobs/{filled.failed}").text
    assert browser.get("/jobs/999999").status == 404


def test_the_page_of_settings_shows_their_origin_and_no_secret(shown_pages: ShownPages) -> None:
    text = shown_pages[1].get("/settings").text
    assert "SMITH_HTTP_TOKEN" in text
    assert "environment" in text
    assert "not-a-secret" not in text


def test_vms_show_drift_and_states(shown_pages: ShownPages) -> None:
    text = shown_pages[1].get("/vms").text
    assert "100123" in text
    assert DriftKind.VM_GONE in text
    assert "No VMs match" in shown_pages[1].get("/vms?state=deleted").text


def test_the_audit_page_shows_the_changes_of_operators(shown_pages: ShownPages) -> None:
    assert "retry" in shown_pages[1].get("/audit").text
    assert "No changes match" in shown_pages[1].get("/audit?verb=forget").text
