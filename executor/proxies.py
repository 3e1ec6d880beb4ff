"""Opens a TCP connection to a server, through a proxy if the environment variable HTTPS_PROXY names one.

HTTPS_PROXY and NO_PROXY have the same meaning as in `requests`, which our clients of FulcrumCore and Proxmox use.
"""

from __future__ import annotations

import base64
import http.client
import socket
from urllib.parse import unquote, urlsplit

from requests.utils import get_environ_proxies, select_proxy


def proxy_url_for(host: str, port: int) -> str:
    """Return the URL of the proxy for TLS connections to a server, or '' if there is none."""
    url = f"https://{format_host_for_url(host)}:{port}"
    proxy_url = str(select_proxy(url, get_environ_proxies(url)) or "")
    return proxy_url if not proxy_url or "://" in proxy_url else f"http://{proxy_url}"


def open_connection(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a TCP connection to the server. The host may be an IPv6 address, with or without brackets.

    Raises OSError if the server cannot be reached, or if the proxy refuses the connection.
    """
    bare_host = host.strip("[]")
    proxy = urlsplit(proxy_url_for(bare_host, port))
    if not proxy.hostname:
        return socket.create_connection((bare_host, port), timeout_s)
    connection_class = http.client.HTTPSConnection if proxy.scheme == "https" else http.client.HTTPConnection
    connection = connection_class(proxy.hostname, proxy.port or connection_class.default_port, timeout=timeout_s)
    connection.set_tunnel(format_host_for_url(bare_host), port, proxy_headers(proxy.geturl()))
    connection.connect()
    return connection.sock


def proxy_headers(proxy_url: str) -> dict[str, str]:
    """Return the header that authenticates the client at the proxy, or {} if the proxy's URL contains no user."""
    parts = urlsplit(proxy_url)
    if not parts.username:
        return {}
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


def format_host_for_url(host: str) -> str:
    """Return the host in the form for a URL: with brackets around an IPv6 address."""
    bare_host = host.strip("[]")
    return f"[{bare_host}]" if ":" in bare_host else bare_host
