"""gRPC's server: its port, its limits, its end, and the calls that are streams.

It runs in the service's event loop (grpc.aio), so that a call is a request like any other; only HTTP/2 is done by
threads of gRPC's own. TLS belongs to a proxy, as with HTTP.
"""

import asyncio
import logging
import os
import resource
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would be no JSON; it reads this when it is imported

import grpc
from fastapi import FastAPI
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ....errors import Problem
from ....settings import Settings, SettingsError
from ...paths import GRPC
from ...request_context import network_of
from .bridge import CODES, Bridge, client_of
from .messages import read
from .routes import health_of, router

CALLS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection"

MAX_CALLS = 1024  # at once, those that only watch included
MAX_CONNECTIONS = 512
MAX_STREAMS = 128  # calls of one connection
MAX_WATCHES = 64
IDLE_SECONDS = 300  # then a connection without a call is closed
PING_SECONDS = 30  # after which a client that says nothing is asked whether it is there
WATCH_SECONDS = 0.25  # between two looks at whether the service is ready
GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")
ABORT_SECONDS = 1.0  # to answer what is under way after its time to finish


class Rpc:
    """`port`: where it listens. `connections`: how many it takes."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.port = 0
        self.connections = _connections()
        self._app = app
        self._settings = settings
        self._bridge = Bridge(app, settings)
        self._watches = 0
        self._ending = asyncio.Event()
        self._server = grpc.aio.server(
            handlers=_handlers(self._call, self._watch, self._reflect),
            options=_options(settings, self.connections),
            maximum_concurrent_rpcs=MAX_CALLS,
        )

    async def start(self) -> None:
        """Raises SettingsError."""
        GRPC_LOG.addFilter(_is_no_leaver)
        host, port = self._settings.host, self._settings.grpc_port
        try:
            self.port = self._server.add_insecure_port(_address(host, port or 0))
        except RuntimeError:
            raise SettingsError(f"HOST, GRPC_PORT: cannot serve at {host[:80]!r}, port {port}") from None
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and wait that long for those under way. What is not answered then is UNAVAILABLE."""
        self._ending.set()
        stopping = asyncio.ensure_future(self._server.stop(seconds + ABORT_SECONDS))
        done, _ = await asyncio.wait({stopping}, timeout=seconds)
        if not done:
            self._bridge.cancel()
            await stopping

    async def _call(self, path: str, _: Any, context: Any) -> bytes:
        return await self._bridge.call(path, context)

    async def _watch(self, _: Any, context: Any) -> None:
        """Say whether the service is ready, now and whenever that changes."""
        if self._watches >= MAX_WATCHES:
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(f"at most {MAX_WATCHES} may watch")
            return
        self._watches += 1
        try:
            if (message := await self._next(context)) is not None:
                await self._tell_health(read(HealthCheckRequest, message).service, context)
        except Problem as problem:
            context.set_code(CODES[problem.status])
            context.set_details(problem.detail)
        finally:
            self._watches -= 1

    async def _tell_health(self, name: str, context: Any) -> None:
        told = None
        while True:
            health = health_of(self._app.state.service, name)
            if health != told:
                await context.write(HealthCheckResponse(status=health).SerializeToString())
                told = health
            if await self._ends_within(WATCH_SECONDS):
                return

    async def _reflect(self, _: Any, context: Any) -> None:
        """Say what the services' messages are, one answer for each question."""
        try:
            while (message := await self._next(context)) is not None:
                answer = await self._bridge.ask(f"{REFLECTION}/ServerReflectionInfo", context, message)
                content = answer.tell(context)
                if answer.status != 200:
                    return
                await context.write(content)
        except Problem as problem:
            context.set_code(CODES[problem.status])
            context.set_details(problem.detail)

    async def _next(self, context: Any) -> bytes | None:
        """The next message of a stream; None if none comes in time. Raises Overloaded."""
        host, _ = client_of(context.peer()) or ("", 0)
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await self._bridge.arrivals.receive(context, network_of(host))
        except TimeoutError:
            return None

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._ending.wait()
        except TimeoutError:
            return False


async def start(app: FastAPI, settings: Settings) -> Rpc:
    """The server, listening. Raises SettingsError if its port cannot be had."""
    rpc = Rpc(app, settings)
    await rpc.start()
    return rpc


def install(app: FastAPI) -> None:
    """Add the routes of the calls."""
    app.include_router(router)


Handler = Callable[..., Awaitable[Any]]


def _is_no_leaver(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC's is not about a client that left at the moment of its answer, which is nobody's fault."""
    return not record.getMessage().startswith("ExecuteBatchError")


def _handlers(call: Handler, watch: Handler, reflect: Handler) -> list[grpc.GenericRpcHandler]:
    """A call with one message is served as a stream, too, so that it is checked before its message has come."""
    one, several = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    services = {
        GRPC: {name: one(partial(call, f"{GRPC}/{name}")) for name in CALLS},
        HEALTH: {"Check": one(partial(call, f"{HEALTH}/Check")), "Watch": several(watch)},
        REFLECTION: {"ServerReflectionInfo": several(reflect)},
    }
    return [grpc.method_handlers_generic_handler(name.strip("/"), methods) for name, methods in services.items()]


def _options(settings: Settings, connections: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        # gRPC unpacks without a limit, so nothing that is packed is accepted.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.http2.bdp_probe", 0),  # else what nobody reads yet may be megabytes
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.server_handshake_timeout_ms", round(settings.deadline_seconds * 1000)),
        ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", round(settings.deadline_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),  # of clients' pings; tritonclient can send some
    ]


def _connections() -> int:
    """At most a quarter of the descriptors that the process may have."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if allowed == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, allowed // 4))


def _address(host: str, port: int) -> str:
    """As gRPC takes it; an empty host stands for all addresses, as with HTTP."""
    host = host or "::"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
