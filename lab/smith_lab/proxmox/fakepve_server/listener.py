# SPDX-License-Identifier: AGPL-3.0-or-later
"""Opens the HTTPS port. Tests can replace the port's certificate and shift the time in the header `Date` of answers."""

from __future__ import annotations

import ssl
import time
from email.utils import formatdate

from aiohttp import hdrs, web
from fakepve.server import FakePve


class HttpsPort(FakePve):
    """Opens the port as fakepve does, and keeps the TLS context, in which a test can replace the certificate.

    fakepve is the simulation of Proxmox that this package extends.
    """

    tls_context: ssl.SSLContext
    #: The seconds by which the header `Date` of answers differs from this machine's clock.
    clock_shift_s = 0.0

    async def start(self, certfile: str, keyfile: str) -> None:
        """Open the port with this certificate and its key. If the port is 0, the operating system chooses one."""
        self.tls_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.tls_context.load_cert_chain(certfile, keyfile)
        app = self._build_app()
        app.on_response_prepare.append(self._set_date)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, self.host, self.port, ssl_context=self.tls_context).start()
        if not self.port:
            self.port = self.runner.addresses[0][1]

    async def _set_date(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.DATE] = formatdate(time.time() + self.clock_shift_s, usegmt=True)
