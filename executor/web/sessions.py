"""Starts, finds and ends the sessions of operators who have logged in at the web pages.

The browser keeps the session's key, a random text, in a cookie. The database contains only an HMAC, which is computed
from this key and the configured token (SMITH_HTTP_TOKEN). So a copy of the database is not enough to use a session, and
a new token ends all sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers

from executor.database import web_sessions
from executor.database.engine import read_only_session, transaction
from executor.web.access import Access
from executor.web.agent_view import AgentHandle

COOKIE_NAME = "smith_session"
LIFETIME = timedelta(hours=12)
#: The number of random bytes of a session's key, and the length of the key as text.
KEY_BYTE_COUNT, KEY_TEXT_LENGTH = 32, 43


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """The person or program that requests a web page."""

    name: str = ""  #: the name given at the login, or the user that a reverse proxy names; '' if neither is known
    session_key: str = field(default="", repr=False)  #: '' if the visitor has no session, and so may only read

    @property
    def may_act(self) -> bool:
        """Whether the visitor may change something."""
        return bool(self.session_key)

    @property
    def form_token(self) -> str:
        """The token in each form of the session. Another site does not know this token, which prevents CSRF."""
        return hmac.new(self.session_key.encode(), b"form", hashlib.sha256).hexdigest() if self.session_key else ""

    def is_form_token_of_session(self, token: str) -> bool:
        """Return whether `token` is the form token of the session; False without a session."""
        return self.may_act and hmac.compare_digest(token.encode(), self.form_token.encode())


class Sessions:
    """Starts, finds and ends sessions in the agent's database.

    `access` has the configured token. `handle.view_and_prober` is None until the agent has started. Then it is a pair:
    the AgentView, which has the engine of the database, and a prober, which this class does not use.
    """

    def __init__(self, handle: AgentHandle, access: Access) -> None:
        self._handle = handle
        self._access = access

    def start(self, name: str) -> str:
        """Store a new session and return its key. Raises DatabaseError. The agent must have started."""
        key = secrets.token_urlsafe(KEY_BYTE_COUNT)
        assert self._handle.view_and_prober is not None  # noqa: S101 (the caller has checked this)
        with transaction(self._handle.view_and_prober[0].engine) as database_session:
            web_sessions.add(database_session, digest=self._digest(key), name=name, lifetime=LIFETIME)
        return key

    def find(self, key: str) -> Visitor | None:
        """Return the visitor whose session has this key; None if there is no valid session. Raises DatabaseError."""
        if not key or self._handle.view_and_prober is None:
            return None
        with read_only_session(self._handle.view_and_prober[0].engine) as database_session:
            stored_session = web_sessions.find(database_session, self._digest(key))
        return None if stored_session is None else Visitor(name=stored_session.name, session_key=key)

    def end(self, key: str) -> None:
        """Delete the session. Raises DatabaseError."""
        if key and self._handle.view_and_prober is not None:
            with transaction(self._handle.view_and_prober[0].engine) as database_session:
                web_sessions.end(database_session, self._digest(key))

    def _digest(self, key: str) -> str:
        return hmac.new(key.encode(), self._access.token.encode(), hashlib.sha256).hexdigest()


def session_key_in(headers: Headers) -> str:
    """Return the session's key in the Cookie header; '' if the header contains no text that could be a key."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE_NAME)
    except CookieError:
        return ""
    return (
        cookie.value if cookie is not None and len(cookie.value) == KEY_TEXT_LENGTH and cookie.value.isascii() else ""
    )
