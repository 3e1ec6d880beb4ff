"""The texts of Python's libraries about a failed connection are replaced by texts for operators."""

from __future__ import annotations

import pytest

from executor.shared.connection_failures import text_for_operators

POOL = "HTTPSConnectionPool(host='pve1.example.net', port=8006): Max retries exceeded with url: /api2/json/version"
NEW_CONNECTION_ERROR = "(Caused by NewConnectionError('Failed to establish a new connection: {}'))"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (f"{POOL} {NEW_CONNECTION_ERROR.format('[Errno 111] Connection refused')}", "the connection is refused"),
        (f"{POOL} {NEW_CONNECTION_ERROR.format('[Errno 113] No route to host')}", "there is no route to the host"),
        (f'{POOL} (Caused by NameResolutionError("Failed to resolve ..."))', "the host name cannot be resolved"),
        (f"{POOL} (Caused by ConnectTimeoutError('... timed out. (connect timeout=5)'))", "the host does not answer"),
        ("HTTPSConnectionPool(host='pve1.example.net', port=8006): Read timed out.", "has not answered in time"),
    ],
)
def test_the_cause_and_the_address_replace_the_text_of_a_library(raw: str, plain: str) -> None:
    shown = text_for_operators(raw)
    assert shown.startswith("pve1.example.net:8006: ")
    assert plain in shown
    assert "Errno" not in shown
    assert "Caused by" not in shown


def test_a_text_without_an_address_has_the_cause_only() -> None:
    assert text_for_operators("[Errno 111] Connection refused").startswith("the connection is refused")
    assert (
        text_for_operators("('Connection aborted.', RemoteDisconnected('...'))")
        == "the server has closed the connection"
    )


def test_a_text_about_another_problem_loses_only_the_error_number() -> None:
    text = "SSLError(SSLCertVerificationError(1, 'certificate verify failed: certificate has expired'))"
    assert text_for_operators(text) == text
    assert text_for_operators("[Errno 28] No space left on device") == "No space left on device"
