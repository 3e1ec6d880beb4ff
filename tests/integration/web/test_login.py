"""The login to the pages: sessions, cookies, wrong tokens, forms of other sites, and who may read without a login."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from support.web_world import TOKEN, PagesSite

from executor.database.engine import read_only_session, transaction
from executor.database.tables.web_sessions import WebSession
from executor.database.times import utc_now
from executor.errors import SettingsError
from executor.settings.settings import load_settings
from executor.web.wrong_tokens import MAX_WRONG_TOKENS

MakePages = Callable[..., PagesSite]


def test_without_a_session_a_browser_is_redirected_to_the_login(pages: PagesSite) -> None:
    for path, target in {"/": "login?next=", "/jobs": "login?next=jobs", "/jobs/17": "../login?next=jobs/17"}.items():
        answer = pages.browser().get(path)
        assert (answer.status, answer.headers["location"]) == (303, target)


def test_a_login_opens_the_page_that_was_requested(pages: PagesSite) -> None:
    browser = pages.browser()
    assert 'name="next" value="jobs/17"' in browser.get("/login?next=jobs/17").text
    answer = browser.post("/login", {"name": "Ada", "token": TOKEN, "next": "jobs/17"})
    assert (answer.status, answer.headers["location"]) == (303, "jobs/17")
    assert browser.get("/").status == 200


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "jobs/../../x", "\\evil", "javascript:1"])
def test_a_login_never_redirects_to_another_site(pages: PagesSite, target: str) -> None:
    answer = pages.browser().post("/login", {"name": "Ada", "token": TOKEN, "next": target})
    assert answer.headers["location"] == "./"


def test_the_cookie_is_bound_to_the_site_and_hidden_from_scripts(pages: PagesSite) -> None:
    cookie = pages.browser().log_in().headers["set-cookie"]
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {"httponly", "max-age=43200", "samesite=strict"}


def test_after_a_login_from_an_https_origin_the_cookie_is_sent_over_tls_only(pages: PagesSite) -> None:
    cookie = pages.browser().log_in(Origin="https://smith.example", Sec_Fetch_Site="same-origin").headers["set-cookie"]
    assert "secure" in cookie.lower()


def test_the_database_has_no_key_that_opens_a_session(pages: PagesSite) -> None:
    browser = pages.logged_in()
    with read_only_session(pages.engine) as session:
        row = session.scalars(select(WebSession).order_by(WebSession.created_at.desc())).first()
    assert row is not None
    assert browser.cookie.partition("=")[2] not in row.digest
    forged = pages.browser()
    forged.cookie = f"smith_session={row.digest[:43]}"
    assert forged.get("/").status == 303


def test_a_session_ends_when_it_expires(pages: PagesSite) -> None:
    browser = pages.logged_in()
    with transaction(pages.engine) as session:
        session.execute(update(WebSession).values(expires_at=utc_now() - timedelta(seconds=1)))
    assert browser.get("/").status == 303
    pages.logged_in()
    with read_only_session(pages.engine) as session:
        assert len(session.scalars(select(WebSession)).all()) == 1


def test_a_logout_ends_the_session_for_every_copy_of_its_cookie(pages: PagesSite) -> None:
    browser = pages.logged_in()
    copied = pages.browser()
    copied.cookie = browser.cookie
    assert browser.post("/logout", {"form_token": "wrong"}).status == 403
    page = browser.get("/").text
    token = page.partition('name="form_token" value="')[2].partition('"')[0]
    assert browser.post("/logout", {"form_token": token}).headers["location"] == "login"
    assert copied.get("/").status == 303


def test_a_new_token_ends_all_sessions(make_pages: MakePages) -> None:
    browser = make_pages().logged_in()
    browser_after_the_change = make_pages(SMITH_HTTP_TOKEN="another-token-of-sixteen").browser()
    browser_after_the_change.cookie = browser.cookie
    assert browser_after_the_change.get("/").status == 303


def test_wrong_tokens_are_limited_and_never_shut_out_the_right_one(pages: PagesSite) -> None:
    browser = pages.browser()
    statuses = [browser.log_in(token="wrong-wrong-wrong").status for _ in range(MAX_WRONG_TOKENS + 1)]
    assert statuses == [401] * MAX_WRONG_TOKENS + [429]
    refused = browser.log_in(token="wrong-wrong-wrong")
    assert 0 < int(refused.headers["retry-after"]) <= 61
    assert browser.log_in().status == 303


def test_a_login_needs_a_name_for_the_audit_log(pages: PagesSite) -> None:
    assert pages.browser().log_in(name="  ").status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_a_form_of_another_site_is_refused(pages: PagesSite, headers: dict[str, str]) -> None:
    assert pages.browser().log_in(**headers).status == 403


def test_a_form_that_is_too_large_is_refused(pages: PagesSite) -> None:
    assert pages.browser().log_in(name="x" * 20_000).status == 413


def test_a_link_on_another_site_is_followed_with_the_session(pages: PagesSite) -> None:
    """The first response reloads the page, because only then does the browser send the cookie."""
    answer = pages.browser(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").get("/jobs")
    assert answer.status == 200
    assert 'http-equiv="refresh"' in answer.text


def test_a_program_without_a_token_gets_json(pages: PagesSite) -> None:
    answer = pages.browser().get("/jobs", Accept="application/json")
    assert (answer.status, answer.headers["content-type"]) == (401, "application/json")
    assert pages.browser(Authorization=f"Bearer {TOKEN}").get("/").status == 200


def test_pages_allow_only_scripts_and_styles_of_this_server(pages: PagesSite) -> None:
    policy = pages.browser().get("/login").headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_without_a_login_the_pages_are_shown_only_if_the_settings_say_so(make_pages: MakePages) -> None:
    browser_without_login = make_pages(SMITH_HTTP_TOKEN="").browser()
    assert (browser_without_login.get("/").status, browser_without_login.get("/jobs").status) == (403, 403)
    assert browser_without_login.get("/metrics").status == 200
    site_with_local_pages = make_pages(SMITH_HTTP_TOKEN="", SMITH_HTTP_LOCAL_PAGES="true")
    assert site_with_local_pages.browser().get("/").status == 200
    assert site_with_local_pages.browser().get("/", Host="evil.example").status == 421
    assert site_with_local_pages.browser().post("/actions/pause", {"reason": "x"}).status == 403


def test_local_pages_cannot_be_combined_with_a_login() -> None:
    with pytest.raises(SettingsError, match="SMITH_HTTP_LOCAL_PAGES is wrong, it cannot be combined"):
        load_settings(env_file=None, environ={"SMITH_HTTP_LOCAL_PAGES": "true", "SMITH_HTTP_TOKEN": TOKEN})


def test_a_user_of_a_trusted_proxy_reads_at_once_and_logs_in_by_name(make_pages: MakePages) -> None:
    site = make_pages(SMITH_HTTP_TOKEN="", SMITH_HTTP_PROXIES="127.0.0.1")
    assert site.browser().get("/").status == 403
    browser = site.browser(X_Forwarded_User="ada")
    assert browser.get("/").status == 200
    assert "Continue as ada" in browser.get("/login").text
    assert browser.post("/login", {}).status == 303
    assert "Log out" in browser.get("/").text
    browser.headers["X_Forwarded_User"] = "grace"
    assert "Log out" not in browser.get("/").text, "the session is that of another user"


def test_before_the_agent_runs_the_pages_say_that_it_is_starting(make_pages: MakePages) -> None:
    site = make_pages(attached=False)
    answer = site.browser(Authorization=f"Bearer {TOKEN}").get("/")
    assert answer.status == 503
    assert "The agent is starting" in answer.text
    assert site.browser().log_in().status == 503


def test_only_static_files_may_be_cached(pages: PagesSite) -> None:
    browser = pages.browser()
    assert "max-age" in browser.get("/static/smith.css").headers["cache-control"]
    assert browser.get("/login").headers["cache-control"] == "no-store"
    assert browser.get("/static/../app.py").status in (303, 404)
    assert browser.get("/static/%2e%2e/app.py").status == 404
