"""The process that serves: uvicorn, started with our settings and ended in order.

SIGTERM turns readiness off at once. For GRACE_SECONDS the service still answers, and closes each connection after its
answer, so that balancers notice and clients connect elsewhere. Then it accepts no more connections, finishes requests
under way for at most DRAIN_SECONDS, and ends with exit code 0. SIGINT (Ctrl-C) skips the grace period.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from ..api.middleware.request_log import record_refused
from ..settings import Settings
from ..workers.board import CONNECTIONS
from ..workers.worker import Worker
from .acceptor import Acceptor
from .connection import BODY_READ_BYTES, Connection
from .connection_limit import ConnectionLimit, most_connections
from .listener import BACKLOG, BindError, place_of
from .logging import log_stray_error
from .lone_connection import LoneConnection
from .runtime import keep_giving_memory_back, spare_the_collector
from .turns import Turns

logger = logging.getLogger("app")

PUBLISH_SECONDS = 0.5  # of what a worker counts after that, nothing is known if it is killed
PATIENCE = 2  # deadlines; a request may take one


class Server(uvicorn.Server):
    """`worker`: if this process is one of several; then the others accept connections on the same sockets."""

    def __init__(self, app: FastAPI, settings: Settings, worker: Worker | None = None) -> None:
        self._app = app
        self._settings = settings
        self._worker = worker
        self._acceptor: Acceptor | None = None
        self._lifespan = AsyncExitStack()
        self._grace_seconds = settings.grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trimming: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._loads: set[asyncio.Task[None]] = set()
        self._limit = ConnectionLimit(self._most_connections(), worker.tally(CONNECTIONS) if worker else None)
        connection = partial(
            Connection,
            patience_seconds=PATIENCE * settings.deadline_seconds,
            buffer=memoryview(bytearray(BODY_READ_BYTES)),
            limit=self._limit,
            turns=Turns(),
            lone=LoneConnection(),
            on_refused=self._record_refused,
            prefix=settings.root_path,
        )
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=cast(Any, connection),
                ws="none",
                lifespan="off",  # `startup` and `shutdown` run it, so that its errors reach the caller of `run`
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
        await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        try:
            for one in sockets or []:
                one.listen(BACKLOG)  # uvloop would close one that cannot, and say nothing
            await super().startup([] if self._worker else sockets)
            if self._worker:
                self._acceptor = self._accept(sockets or [], self._worker)
        except OSError as error:  # another process began to listen on the port since it was bound
            await self._lifespan.aclose()
            raise BindError(place_of(self._settings), error) from None
        rpc = self._app.state.rpc
        # Now that all other descriptors are open.
        self._limit.most = max(1, self._most_connections() - (rpc.connections if rpc else 0))
        spare_the_collector()
        self._trimming = self._loop.create_task(keep_giving_memory_back())
        self._loop.run_in_executor(None, self._app.state.service.classifier.decoder.processes.check)
        log = partial(log_ready, self._app, self._settings, [_address(bound) for bound in sockets or []])
        if self._worker:
            self._serve_with_others(self._worker, log)
        else:
            self._load_models_on_sighup(self._loop)
            log()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in (self._trimming, self._publishing):
            if task:
                task.cancel()
        if self._acceptor and self._worker:
            self._worker.leave()
            self._acceptor.close()
        # Both protocols have the same time to finish; after a second signal nothing waits.
        rpc = self._app.state.rpc
        stopping = [asyncio.ensure_future(rpc.stop(self._settings.drain_seconds))] if rpc else []
        await super().shutdown(sockets)
        if not self.force_exit:
            await asyncio.gather(*stopping)
            await self._lifespan.aclose()

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

    def _most_connections(self) -> int:
        most = most_connections()
        return self._worker.share(most) if self._worker else most

    def _accept(self, sockets: list[socket.socket], worker: Worker) -> Acceptor:
        config = self.config
        protocol = partial(
            cast(Any, config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for one in sockets:
            one.setblocking(False)
        return Acceptor(sockets, protocol, self._limit, worker)

    def _serve_with_others(self, worker: Worker, log: Callable[[], None]) -> None:
        """`log` says that the service is ready, which is so when all workers have started."""
        worker.mail.on("begin", lambda _: log())
        self._publishing = asyncio.get_running_loop().create_task(self._publish())
        if worker.replaces is not None:
            fields = {"worker": worker.number, "ended": worker.replaces}
            logger.warning("a worker was replaced", extra={"fields": fields})
        worker.serve()

    async def _publish(self) -> None:
        """Tell the other workers every PUBLISH_SECONDS what this one has counted. It ends when it is cancelled."""
        published = -1
        while True:
            if published != (published := self.server_state.total_requests):
                self._app.state.service.publish_counts()
            await asyncio.sleep(PUBLISH_SECONDS)

    def _load_models_on_sighup(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a terminal, SIGHUP goes on to say that the terminal is gone; under nohup it stays ignored."""

        def load() -> None:
            task = loop.create_task(self._app.state.service.load_all())
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)

        terminal = sys.stderr is not None and sys.stderr.isatty()
        if not terminal and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            loop.add_signal_handler(signal.SIGHUP, load)

    def _record_refused(self, request_id: str, client: str) -> None:
        record_refused(self._app.state.service.metrics, request_id, client)


def log_ready(app: FastAPI, settings: Settings, addresses: list[str]) -> None:
    """Log that the application has started. `addresses` are URLs, or `unix:` and a path.

    They are empty if another program listens for it.
    """
    workers = {"workers": settings.workers} if settings.workers > 1 else {}
    fields = {
        "model": app.state.service.bundle.manifest.version,
        **workers,
        "threads": settings.workers * settings.inference_threads,
        "authentication": "API keys" if settings.api_keys else "open",
        "addresses": addresses,
    }
    if app.state.rpc:
        fields["grpc_port"] = app.state.rpc.port
    logger.info("ready", extra={"fields": fields})


def _address(bound: socket.socket) -> str:
    if bound.family == socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
