"""No HTTP request to a running agent causes a server error or a change, and pages need the token.

Schemathesis generates requests from the OpenAPI description that the agent serves.
"""

from __future__ import annotations

import copy
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smith_lab.system import run_lab_system, wait_for

TOKEN = "a-token-of-more-than-sixteen"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Api:
    """A running agent's port and OpenAPI description."""

    folder: Path
    port: int
    log: Path
    description: dict[str, Any] = field(default_factory=dict)

    def send_request(
        self, method: str, path: str, headers: dict[str, str], *, source: str = "127.0.0.1"
    ) -> tuple[int, bytes]:
        """Send a request from a source address; the agent limits wrong tokens per address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, TIMEOUT_S, source_address=(source, 0))
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def compare_with_schemathesis(
        self, description: dict[str, Any], *options: str, token: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run Schemathesis: compare the responses of the agent with a description."""
        config, file = self.folder / "schemathesis.toml", self.folder / "openapi.json"
        config.write_text(f'[headers]\nAuthorization = "Bearer {token}"\n' if token else "")
        file.write_text(json.dumps(description))
        command = [SCHEMATHESIS, "--config-file", config, "run", file, "--url", f"http://127.0.0.1:{self.port}"]
        command += ["--no-color", "--seed", "1", *options]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A ready agent with a token."""
    folder = tmp_path_factory.mktemp("http-api")
    with run_lab_system(folder, settings={"SMITH_HTTP_TOKEN": TOKEN}) as lab:
        lab.start_executor()
        served = wait_for(lambda: lab.log_events("http_served"), TIMEOUT_S, "the port")
        api_without_description = Api(folder, served[-1]["port"], lab.log_file)
        wait_for(
            lambda: api_without_description.send_request("GET", "/readyz", {})[0] == 200,
            TIMEOUT_S,
            "the agent to be ready",
        )
        status, body = api_without_description.send_request(
            "GET", "/openapi.json", {"Authorization": f"Bearer {TOKEN}"}
        )
        assert status == 200
        yield replace(api_without_description, description=json.loads(body))


def test_every_response_matches_the_openapi_description(api: Api) -> None:
    """Statuses, content types, headers and bodies; methods that are not described are refused."""
    done = api.compare_with_schemathesis(api.description, "--exclude-checks", "ignored_auth", token=TOKEN)
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout
    assert "page_crashed" not in api.log.read_text()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE", "X"]
    ),
    path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40),
    headers=st.dictionaries(
        st.sampled_from(["Accept", "Authorization", "Cookie", "X-Forwarded-User", "X-HTTP-Method-Override", "Range"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40),
        max_size=3,
    ),
    path_prefix=st.sampled_from(["", "livez", "readyz", "metrics", "openapi.json"]),
)
def test_arbitrary_requests_cause_no_server_error_and_no_change(
    api: Api, method: str, path: str, headers: dict[str, str], path_prefix: str
) -> None:
    status, _body = api.send_request(method, f"/{path_prefix}{path}", headers, source="127.0.0.2")
    assert status < 500
    if method not in ("GET", "HEAD"):
        assert status in (400, 405)
    elif path_prefix not in ("livez", "readyz"):
        assert status in (400, 401, 429)


def test_a_wrong_openapi_description_is_detected(api: Api) -> None:
    """Without this, the success of the other tests would prove nothing."""
    wrong_description = copy.deepcopy(api.description)
    wrong_description["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"application/json": {"schema": {}}}
    wrong_description["paths"]["/livez"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "array"
    }
    del wrong_description["paths"]["/readyz"]["get"]["responses"]["200"]
    done = api.compare_with_schemathesis(
        wrong_description, "--exclude-checks", "ignored_auth", "--continue-on-failure", token=TOKEN
    )
    assert done.returncode == 1, done.stdout
    for code in ("ST103 Undocumented status", "ST105 Undocumented Content-Type", "ST108 Response violates schema"):
        assert code in done.stdout


# --- last: these tests send wrong tokens, in the end so many that the agent refuses their address ------------------


def test_a_page_that_needs_no_token_is_detected(api: Api) -> None:
    wrong_description = copy.deepcopy(api.description)
    wrong_description["paths"]["/livez"]["get"]["security"] = [{"token": []}]  # this page needs no token
    done = api.compare_with_schemathesis(
        wrong_description, "--checks", "ignored_auth", "--include-path", "/livez", token=TOKEN
    )
    assert done.returncode == 1, done.stdout
    assert "API accepts requests without authentication" in done.stdout


def test_only_the_health_pages_are_readable_without_the_token(api: Api) -> None:
    done = api.compare_with_schemathesis(
        api.description, "--checks", "ignored_auth", "--phases", "coverage", token=TOKEN
    )
    assert done.returncode == 0, done.stdout
    assert api.send_request("GET", "/metrics", {"Authorization": f"Bearer {TOKEN}"})[0] == 200, (
        "the wrong tokens exceeded the rate limit: the test shows nothing"
    )


def test_requests_without_the_token_cause_no_server_error_and_no_change(api: Api) -> None:
    """Hundreds of requests, most with wrong tokens."""
    done = api.compare_with_schemathesis(api.description, "--exclude-checks", "ignored_auth")
    assert done.returncode == 0, done.stdout
    assert "page_crashed" not in api.log.read_text()
    assert api.send_request("GET", "/metrics", {"Authorization": "Bearer wrong-wrong-wrong"})[0] == 429
    assert api.send_request("GET", "/metrics", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
