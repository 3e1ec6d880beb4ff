"""Opens a TCP connection to a server, through a proxy if the environment variable HTTPS_PROXY names one.

HTTPS_PROXY and NO_PROXY have the same meaning as in `requests`, which our clients of FulcrumCore and Proxmox use.
"""

from __future__ import annotations

import base64
import http.client
import socket
from urllib.parse import unquote, urlsplit

from requests.utils import get_environ_proxies, select_proxy


def proxy_of(host: str, port: int) -> str:
    """Return the URL of the proxy for TLS connections to a server, or '' if there is none."""
    url = f"https://{host_in_url(host)}:{port}"
    proxy = str(select_proxy(url, get_environ_proxies(url)) or "")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def open_connection(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a TCP connection to the server. The host may be an IPv6 address, with or without brackets.

    Raises OSError, also if the proxy refuses the connection.
    """
    name = host.strip("[]")
    proxy = urlsplit(proxy_of(name, port))
    if not proxy.hostname:
        return socket.create_connection((name, port), timeout_s)
    kind = http.client.HTTPSConnection if proxy.scheme == "https" else http.client.HTTPConnection
    tunnel = kind(proxy.hostname, proxy.port or kind.default_port, timeout=timeout_s)
    tunnel.set_tunnel(host_in_url(name), port, proxy_headers(proxy.geturl()))
    tunnel.connect()
    return tunnel.sock


def proxy_headers(proxy: str) -> dict[str, str]:
    """Return the header that authenticates the client at the proxy, or {} if the proxy's URL contains no user."""
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def host_in_url(host: str) -> str:
    """Return the host in the form for a URL: with brackets around an IPv6 address."""
    name = host.strip("[]")
    return f"[{name}]" if ":" in name else name
