"""The process that serves: uvicorn, started with our settings and ended in order.

SIGTERM turns readiness off at once. For GRACE_SECONDS the service goes on answering, and closes every connection with
its answer, so that balancers see it leave and clients come back elsewhere. Then nothing more is accepted, what is under
way is answered for at most DRAIN_SECONDS, and the process ends with exit code 0. SIGINT, a person's, skips the grace.
"""

import asyncio
import signal
import socket
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from ..settings import Settings
from .connection import Connection
from .logging import log_stray_error
from .runtime import spare_the_collector

PATIENCE = 2  # deadlines; a request may take one


class Server(uvicorn.Server):
    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        self._grace_seconds = settings.grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        patience = PATIENCE * settings.deadline_seconds
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=cast(Any, partial(Connection, patience_seconds=patience, prefix=settings.root_path)),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(log_stray_error)
        await super().startup(sockets)
        service = getattr(self._app.state, "service", None)
        if service is not None:
            self._loop.run_in_executor(None, service.classifier.decoder.start_one)
        spare_the_collector()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        service = getattr(self._app.state, "service", None)
        serving = service is not None and service.engine.alive and not service.draining
        if service is not None:
            service.draining = True
        if sig == signal.SIGTERM and serving and self._loop is not None and self._grace_seconds:
            # From a signal handler the loop must be woken, too.
            self._loop.call_soon_threadsafe(self._loop.call_later, self._grace_seconds, super().handle_exit, sig, frame)
        else:
            super().handle_exit(sig, frame)
