"""The process that serves: uvicorn, started with our settings and ended in order.

SIGTERM turns readiness off at once. For GRACE_SECONDS the service goes on answering, and closes every connection with
its answer, so that balancers see it leave and clients come back elsewhere. Then nothing more is accepted, what is under
way is answered for at most DRAIN_SECONDS, and the process ends with exit code 0. SIGINT, a person's, skips the grace.
"""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api.middleware.telemetry import log_stray_error
from ..settings import Settings
from .connection import Connection

PATIENCE = 2  # deadlines; a request may take one
M_MMAP_THRESHOLD = -3  # malloc.h


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


class CloseWhenDraining:
    """Middleware that closes connections with their answers once the service drains. Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = getattr(scope["app"].state, "service", None)
        if scope["type"] != "http" or service is None or not service.draining:
            await self.app(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close)


def spare_the_collector() -> None:
    """Keep what is there for good out of Python's garbage collections, and make them rarer.

    Under load a full one would stop the process for 100 ms every two seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def give_memory_back() -> None:
    """Have glibc return large blocks to the system as soon as they are free; elsewhere it does nothing.

    By default it learns from the first large picture to keep blocks of that size for the next one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


class SeveralProcesses(RuntimeError):
    """This process was, or would be, one of several that share a port."""

    def __init__(self) -> None:
        super().__init__(
            "several worker processes would count metrics and hold limits each for itself: "
            "run one (--workers 1, WEB_CONCURRENCY unset), and more containers for more load"
        )


def refuse_several_processes() -> None:
    """Raises SeveralProcesses. uvicorn's --workers start children; WEB_CONCURRENCY is what it and gunicorn read."""
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    child = multiprocessing.parent_process() is not None and "--reload" not in sys.argv
    if child or (workers.isdecimal() and int(workers) > 1):
        raise SeveralProcesses
