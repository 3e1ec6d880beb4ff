"""Defines who may read the pages, and determines the sender of a request from the request's headers and address.

There are pages for programs (health, metrics, the OpenAPI document) and HTML pages for operators.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from executor.settings.types import is_local_address

#: Matches the port at the end of a Host header, as in `localhost:9642`.
_PORT_AT_END = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Defines who may read the pages for programs and the pages for operators.

    Callers with the token and users that a trusted reverse proxy has authenticated may read both kinds of pages.
    If neither a token nor a proxy is configured, every caller may read the pages for programs.
    """

    token: str = field(default="", repr=False)
    proxies: tuple[str, ...] = ()  #: addresses and networks of trusted reverse proxies
    proxy_user_header: str = ""  #: name of the header in which the proxies send the name of the user
    #: Whether only callers on this machine can connect to the server. Always True if no login is required, because
    #: SMITH_HTTP_ADDR must then be a local address.
    can_only_local_callers_connect: bool = True
    #: Whether users of this machine may read the pages for operators without a login. Ignored if `needs_login`.
    may_local_users_read_pages: bool = False

    @property
    def needs_login(self) -> bool:
        """Whether a caller must log in: True if a token or a proxy is configured."""
        return bool(self.token or self.proxies)

    def is_correct_token(self, token: bytes) -> bool:
        """Return whether `token` is the configured token. The comparison takes the same time for every wrong token."""
        return bool(self.token) and hmac.compare_digest(token, self.token.encode())

    def proxy_user(self, scope: Scope) -> str:
        """Return the user that a trusted reverse proxy names; '' if no user is named or the sender is not trusted."""
        user = Headers(scope=scope).get(self.proxy_user_header, "").strip() if self.proxies else ""
        sender = parse_ip(sender_address(scope))
        if not user or sender is None:
            return ""
        return user if any(sender in ipaddress.ip_network(proxy) for proxy in self.proxies) else ""


def sender_address(scope: Scope) -> str:
    """Return the IP address that has sent the request; '' if the server does not know the address."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def parse_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; return None if the text is not an IP address.

    A socket for IPv6 and IPv4 shows the IPv4 address 192.0.2.1 as ::ffff:192.0.2.1. For such an address, this function
    returns the IPv4 address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def is_local_host_header(headers: Headers) -> bool:
    """Return whether the Host header names this machine, or is missing.

    The check prevents DNS rebinding: an attacker's web page makes a browser send requests to this machine. In these
    requests, the Host header contains the attacker's host name. The caller makes this check only if no login is
    required.
    """
    host = headers.get("host", "")
    if not host:
        return True
    # `is_local_address` expects host:port. It checks only the host.
    host_and_port = host if _PORT_AT_END.search(host) else f"{host}:0"
    return is_local_address(host_and_port)


def is_same_origin(headers: Headers) -> bool:
    """Return whether a browser sent the request from one of our own pages.

    If the request has the header Sec-Fetch-Site, only this header counts. Its value does not depend on the host name
    that a reverse proxy passes on. Browsers send Sec-Fetch-Site only over TLS and on localhost. Without Sec-Fetch-Site,
    the header Origin must name our host. Every browser sends Origin with a POST.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(headers.get("origin", ""))
    return origin.scheme in ("http", "https") and bool(origin.netloc) and origin.netloc == headers.get("host", "")


def is_cross_site_navigation(headers: Headers) -> bool:
    """Return whether a link on another site led to this request.

    The browser sends no session cookie with this request, because the cookie has the attribute SameSite=Strict. So a
    logged-in user looks logged out. Instead of the login page, the server sends a page that reloads itself. With the
    second request, the browser sends the cookie.
    """
    return headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") == "navigate"


def accepts_html(headers: Headers) -> bool:
    """Return whether the caller accepts HTML, as browsers do."""
    return "text/html" in headers.get("accept", "")


def bearer_token(headers: Headers) -> bytes | None:
    """Return the token in the Authorization header; None if the header has no bearer token."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return token.strip().encode("latin-1", "replace")
