# SPDX-License-Identifier: AGPL-3.0-or-later
"""Listens with TLS, and lets a test replace the certificate."""

from __future__ import annotations

import ssl

from aiohttp import web
from fakepve.server import FakePve


class Listener(FakePve):
    """Listens as fakepve does, and keeps the TLS context, whose certificate the verb `certificate` replaces."""

    tls: ssl.SSLContext

    async def start(self, certfile: str, keyfile: str) -> None:
        """Listen with this certificate and its key. If the port is 0, the operating system chooses one."""
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.tls.load_cert_chain(certfile, keyfile)
        self.runner = web.AppRunner(self._build_app())
        await self.runner.setup()
        await web.TCPSite(self.runner, self.host, self.port, ssl_context=self.tls).start()
        if not self.port:
            self.port = self.runner.addresses[0][1]
