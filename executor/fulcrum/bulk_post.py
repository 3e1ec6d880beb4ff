"""Sends many small POST requests, such as metric entries, to one path, and uses little CPU time for each request.

The library `requests` prepares each request separately, which takes most of the CPU time of a small request. A
PreparedPost lets `requests` prepare one request only, with the proxy and the TLS settings of the session. The
PreparedPost then sends this request many times, each time with another body. For this it uses urllib3, the library
that `requests` itself uses.
"""

from __future__ import annotations

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry


class PreparedPost:
    """One POST request without a body, and the connection over which it is sent. Each thread needs its own object."""

    def __init__(self, session: requests.Session, url: str, verify: bool | str, retry_rules: Retry) -> None:
        """Prepare the request. Raises OSError if `verify` is the path of a CA bundle that does not exist."""
        request = requests.Request("POST", url, headers={"Content-Type": "application/json"})
        prepared_request = session.prepare_request(request)
        adapter = session.get_adapter(url)
        if not isinstance(adapter, HTTPAdapter):
            raise TypeError("the adapter of the `requests` session is not an HTTPAdapter")
        connection_pool = adapter.get_connection_with_tls_context(prepared_request, verify, proxies=session.proxies)
        if not isinstance(connection_pool, urllib3.HTTPConnectionPool):
            raise TypeError("the adapter has no HTTPConnectionPool")
        # None: there is no client certificate.
        adapter.cert_verify(connection_pool, url, verify, None)  # type: ignore[no-untyped-call]
        self._connection_pool = connection_pool
        # A path, or a URL if there is a proxy.
        self._request_target = adapter.request_url(prepared_request, session.proxies)
        self._headers = {name: value for name, value in prepared_request.headers.items() if name != "Content-Length"}
        self._retry_rules = retry_rules

    def send(self, data: bytes, token: str, timeouts_s: tuple[float, float]) -> urllib3.BaseHTTPResponse:
        """Send the request with this body. Return the response, whose body is not read yet.

        If the server has closed the connection, a new one is opened. Redirects are not followed. Raises urllib3's
        HTTPError.
        """
        connect_timeout_s, read_timeout_s = timeouts_s
        headers = {**self._headers, "Content-Length": str(len(data)), "Authorization": f"Bearer {token}"}
        return self._connection_pool.urlopen(
            "POST",
            self._request_target,
            body=data,
            headers=headers,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            retries=self._retry_rules,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
        )
