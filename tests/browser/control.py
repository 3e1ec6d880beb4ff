"""A small HTTP server on this machine, with which the tests in the browser change the state that the pages show."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

#: The functions that a test can call, by path: each gets the JSON of the request, and returns the JSON of the answer.
ControlFunctions = Mapping[str, Callable[..., Any]]
#: The page of a foreign site, which sends a form to the pages of the agent.
FOREIGN_PAGE = """<!doctype html><title>Foreign</title>
<form method="post" action="{action}"><input name="reason" value="foreign"><input name="confirmed" value="yes">
<input name="form_token" value="{token}"><button>Win a prize</button></form>"""


class _Handler(BaseHTTPRequestHandler):
    functions: ClassVar[ControlFunctions] = {}

    def do_POST(self) -> None:
        """Call the function that the path names. If it raises, the answer has status 500, and the test fails."""
        values = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        try:
            status, answer = 200, self.functions[self.path.strip("/")](**values)
        except Exception as error:
            status, answer = 500, f"{type(error).__name__}: {error}"
        self._send(status, "application/json", json.dumps(answer))

    def do_GET(self) -> None:
        """Show the page of a foreign site. The path is /foreign/TOKEN/ADDRESS: the token and the target of its form."""
        token, _, action = self.path.removeprefix("/foreign/").partition("/")
        self._send(200, "text/html", FOREIGN_PAGE.format(action=action, token=token))

    def _send(self, status: int, content_type: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def running_control(functions: ControlFunctions) -> Iterator[str]:
    """Serve these functions while the block runs, and yield the URL."""
    handler = type("_Handler", (_Handler,), {"functions": functions})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
