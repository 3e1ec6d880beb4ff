"""Requests to FulcrumCore on raw sockets: token, body, retries, TLS, clock and connections."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from smith_lab.proxmox.certificates import make_certificates
from support.wire_server import Serve, WireServer, reply

from executor.errors import FulcrumAuthError, FulcrumNotFound, FulcrumRefused, FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient

TOKEN = "tok-8c1f0c77e5"
JOB_ID = "1d6c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"
AGENT_ID = "6f0c2a52-8d0e-4d0b-9a3c-0d9a5b1f7e11"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a WireServer with these replies. The server ends with the test."""
    with ExitStack() as stack:
        yield lambda *replies, **more: stack.enter_context(WireServer(*replies, **more))


def client_of(server: WireServer, **more: Any) -> FulcrumClient:
    more = {"connect_timeout_s": 5, "read_timeout_s": 5} | more
    return FulcrumClient(server.url, lambda: TOKEN, **more)


# Requests


def test_the_token_and_the_limit_are_sent_to_the_api_path(serve: Serve) -> None:
    server = serve(reply(200, []))
    client_of(server).pending_jobs(limit=50)
    assert server.calls == ["GET /api/v1/jobs/pending?limit=50"]
    assert server.requests[0][1]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("suffix", ["", "/", "/api/v1", "/api/v1/"])
def test_the_url_may_have_the_api_path_or_not(serve: Serve, suffix: str) -> None:
    server = serve(reply(200, []))
    FulcrumClient(server.url + suffix, lambda: TOKEN).pending_jobs()
    assert server.calls == ["GET /api/v1/jobs/pending?limit=100"]


def test_each_call_sends_the_body_of_fulcrumcores_api(serve: Serve) -> None:
    server = serve(reply(204))
    client = client_of(server)
    client.claim_job(JOB_ID)
    client.complete_job(JOB_ID)
    client.complete_job(
        JOB_ID,
        agent_instance_id=f"{AGENT_ID}/100",
        agent_instance_data={"vmid": 100},
        properties={"node": "pve1"},
    )
    client.fail_job(JOB_ID, "VM_NOT_FOUND: 100")
    client.post_metric(agent_instance_id="a/100", resource_id="cpu", type_name="vm.cpu.usage", value=0.25)
    bodies = [json.loads(body) if body else None for _, _, body in server.requests]
    assert server.calls == [
        f"POST /api/v1/jobs/{JOB_ID}/claim",
        f"POST /api/v1/jobs/{JOB_ID}/complete",
        f"POST /api/v1/jobs/{JOB_ID}/complete",
        f"POST /api/v1/jobs/{JOB_ID}/fail",
        "POST /api/v1/metric-entries",
    ]
    assert bodies == [
        None,
        {},
        {
            "agentInstanceId": f"{AGENT_ID}/100",
            "agentInstanceData": {"vmid": 100},
            "properties": {"node": "pve1"},
        },
        {"errorMessage": "VM_NOT_FOUND: 100"},
        {"agentInstanceId": "a/100", "resourceId": "cpu", "typeName": "vm.cpu.usage", "value": 0.25},
    ]


def test_nul_characters_are_removed_from_bodies(serve: Serve) -> None:
    """FulcrumCore answers 500 to a body with NUL, so the report would be retried for ever."""
    server = serve(reply(204))
    client_of(server).fail_job(JOB_ID, "TASK_FAILED: a\x00b \\u0000")
    client_of(server).complete_job(JOB_ID, agent_instance_data={"a\x00": ["b\x00"]})
    assert [json.loads(body) for _, _, body in server.requests] == [
        {"errorMessage": "TASK_FAILED: ab \\u0000"},
        {"agentInstanceData": {"a": ["b"]}},
    ]


def test_a_body_that_cannot_be_written_as_json_is_refused_and_not_sent(serve: Serve) -> None:
    server = serve(reply(204))
    endless: list[Any] = []
    endless.append(endless)
    for value in (float("nan"), object(), endless):
        with pytest.raises(FulcrumRefused, match="cannot be written as JSON"):
            client_of(server).complete_job(JOB_ID, agent_instance_data={"x": value})
    assert server.requests == []


@pytest.mark.parametrize("ident", ["", "..", "../agents/me", "7", JOB_ID + "/claim", JOB_ID + "?x", JOB_ID + "\n"])
def test_an_id_that_is_not_a_uuid_never_becomes_part_of_a_path(serve: Serve, ident: str) -> None:
    server = serve(reply(200, {}))
    client = client_of(server)
    for call in (client.claim_job, client.get_job, client.get_service, client.get_service_type):
        with pytest.raises(FulcrumRefused):
            call(ident)
    for reference in (ident, f"vault://{ident}"):
        with pytest.raises(FulcrumNotFound):
            client.get_secret(reference)
    assert server.requests == []


def test_the_token_function_is_called_for_every_request(serve: Serve) -> None:
    server = serve(reply(200, []))
    tokens = iter(["first-token", "second-token\n"])
    client = FulcrumClient(server.url, lambda: next(tokens))
    client.pending_jobs()
    client.pending_jobs()
    assert [headers["authorization"] for _, headers, _ in server.requests] == [
        "Bearer first-token",
        "Bearer second-token",
    ]


@pytest.mark.parametrize("token", ["", " \n", "tok\r\nX-Evil: 1", "tok en", "tök", "tok\x00"])
def test_a_token_that_is_invalid_in_a_header_is_refused_and_not_shown(serve: Serve, token: str) -> None:
    server = serve(reply(200, []))
    with pytest.raises(FulcrumAuthError) as caught:
        FulcrumClient(server.url, lambda: token).pending_jobs()
    assert server.requests == []
    assert not token.strip() or token not in str(caught.value)


def test_a_netrc_entry_does_not_replace_the_token(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(reply(200, []))
    client_of(server).pending_jobs()
    assert server.requests[0][1]["authorization"] == f"Bearer {TOKEN}"


def test_a_proxy_from_the_environment_is_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(reply(200, []))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    FulcrumClient("http://core.invalid:3000", lambda: TOKEN).pending_jobs()
    assert proxy.calls == ["GET http://core.invalid:3000/api/v1/jobs/pending?limit=100"]


def test_each_thread_reuses_one_connection_of_its_own(serve: Serve) -> None:
    server = serve(reply(200, []))
    client = client_of(server)

    def poll() -> None:
        for _ in range(3):
            client.pending_jobs()

    poll()
    assert server.connections == 1
    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.requests), server.connections) == (9, 3)


def test_the_connection_is_reused_after_a_chunked_response_and_after_an_error(serve: Serve) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n"
    server = serve(chunked, reply(400, {"status": "Invalid request"}), reply(200, []))
    client = client_of(server)
    client.pending_jobs()
    with pytest.raises(FulcrumRefused):
        client.claim_job(JOB_ID)
    client.pending_jobs()
    assert server.connections == 1


# Retries


def test_a_get_is_retried_after_a_dropped_connection_and_a_503(serve: Serve) -> None:
    server = serve(b"", reply(503), reply(200, []))
    client_of(server).pending_jobs()
    assert len(server.requests) == 3


def test_the_error_after_the_last_retry_contains_the_http_status(serve: Serve) -> None:
    server = serve(reply(502, b"<html>Bad gateway</html>", kind="text/html"))
    with pytest.raises(FulcrumUnavailable, match=r"HTTP 502$"):
        client_of(server).pending_jobs()
    assert len(server.requests) == 3


def test_a_claim_whose_response_is_lost_is_not_retried(serve: Serve) -> None:
    """The caller finds out with `get_job` whether the claim took effect."""
    server = serve(b"")
    with pytest.raises(FulcrumUnavailable):
        client_of(server).claim_job(JOB_ID)
    assert len(server.requests) == 1


# Clock


def test_the_clock_offset_ignores_responses_of_gateways_and_caches(serve: Serve) -> None:
    ahead = formatdate(time.time() + 1000, usegmt=True)
    server = serve(
        reply(502, b"", Date=formatdate(0)), reply(204, b"", Date=ahead), reply(204, b"", Age="900", Date="x")
    )
    client = client_of(server)
    with pytest.raises(FulcrumUnavailable):
        client.claim_job(JOB_ID)
    assert client.clock_offset_s == 0.0
    client.claim_job(JOB_ID)
    client.claim_job(JOB_ID)
    assert abs(client.clock_offset_s - 1000) < 60


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Return the TLS context of a server, and the CA bundle that verifies it."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = make_certificates(folder, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, folder / "ca.pem"


def test_tls_is_verified_unless_verify_tls_is_false(serve: Serve, certificates: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_bundle = certificates
    server = serve(reply(200, []), tls=context)
    with pytest.raises(FulcrumUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        client_of(server).pending_jobs()
    assert server.requests == []
    client_of(server, ca_bundle=ca_bundle).pending_jobs()
    client_of(server, verify_tls=False).pending_jobs()
    assert len(server.requests) == 2


def test_a_ca_bundle_in_the_environment_does_not_override_the_setting(
    serve: Serve, certificates: tuple[ssl.SSLContext, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle that the environment names is used only if the settings name none."""
    context, ca_bundle = certificates
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other, "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "ca.pem"))
    server = serve(reply(200, []), tls=context)
    client_of(server, ca_bundle=ca_bundle).pending_jobs()
    client_of(server, verify_tls=False).pending_jobs()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_bundle))
    client_of(server).pending_jobs()
    assert len(server.requests) == 3


def test_a_missing_ca_bundle_raises_fulcrum_unavailable(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(FulcrumUnavailable, match="CA certificate bundle"):
        FulcrumClient("https://127.0.0.1:1", lambda: TOKEN, ca_bundle=tmp_path / "none.pem").pending_jobs()


def test_no_log_line_contains_the_token(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client_of(serve(b"", reply(200, []))).pending_jobs()
    assert TOKEN not in caplog.text
