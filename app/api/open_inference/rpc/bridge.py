"""From a call to a request of the ASGI application, and from its answer to the call's.

    bridge = Bridge(app, settings)
    content = await bridge.call("/inference.GRPCInferenceService/ModelInfer", context)

Errors are problem documents there; here they are status codes with the same text, and the problem's code is in the
trailing metadata.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

from grpc import StatusCode
from starlette.types import ASGIApp, Message, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ....settings import Settings
from ...request_context import context_of
from .arrivals import Arrivals
from .routes import EXTENSION

# By the status of the problem document; any other is INTERNAL.
CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
# Metadata that become headers of the request; others are ignored.
READ = frozenset({"authorization", "x-request-id", "traceparent", "tracestate", "x-forwarded-for", "x-forwarded-proto"})
KEY = "x-api-key"  # the same as `authorization: Bearer`
TOLD = frozenset({"x-request-id", "traceparent", "retry-after"})  # headers of the answer that become metadata
PROBLEM = "problem-code"
BUG = "the service met a bug"

Read = Callable[[], Awaitable[bytes | None]]


@dataclass
class Answer:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""

    def tell(self, context: Any) -> bytes:
        """Set the call's status and metadata. Returns the message, which is empty for an error."""
        metadata = [(name, value) for name, value in self.headers.items() if name in TOLD]
        if self.status == 200:
            context.set_trailing_metadata(tuple(metadata))
            return self.content
        problem = _problem(self.content)
        context.set_code(CODES.get(self.status, StatusCode.INTERNAL))
        context.set_details(problem.get("detail", BUG))
        context.set_trailing_metadata((*metadata, (PROBLEM, problem.get("code", "internal"))))
        return b""


class Bridge:
    """For one event loop."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        # uvicorn's server does the same with requests over HTTP.
        trusted = list(settings.trusted_proxies)
        self._app: Any = ProxyHeadersMiddleware(cast(Any, app), trusted) if trusted else app
        self._running: set[asyncio.Task[None]] = set()
        self.arrivals = Arrivals.within(settings)

    async def call(self, path: str, context: Any) -> bytes:
        """Answer a call that has one message."""
        scope = self._scope(path, context)
        known = context_of(scope)
        answer = await self._answer(scope, context, lambda: self.arrivals.receive(context, known.client))
        return answer.tell(context)

    async def ask(self, path: str, context: Any, message: bytes) -> Answer:
        """The answer to one message of a call that may have several."""

        async def read() -> bytes:
            return message

        return await self._answer(self._scope(path, context), context, read)

    def cancel(self) -> None:
        """End all requests. If the service is shutting down, they are answered so."""
        for task in self._running:
            task.cancel()

    async def _answer(self, scope: Scope, context: Any, read: Read) -> Answer:
        exchange = _Exchange(read)
        task: asyncio.Task[None] = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            # The client has left, or its deadline has passed, at which the request ends by itself.
            if context.time_remaining() != 0:
                exchange.gone.set()
            await asyncio.wait({task})
            raise
        finally:
            if task.done() and not task.cancelled():
                task.exception()  # it is logged
        return exchange.answer

    def _scope(self, path: str, context: Any) -> Scope:
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": _headers(context.invocation_metadata() or ()),
            "client": client_of(context.peer()),
            "server": None,
            "extensions": {EXTENSION: {}},
        }
        remaining = context.time_remaining()
        if remaining is not None:
            context_of(scope).deadline = time.monotonic() + remaining
        return scope


class _Exchange:
    """One request's way in and its answer's way out, as ASGI has them."""

    def __init__(self, read: Read) -> None:
        self.answer = Answer()
        self.gone = asyncio.Event()
        self._read: Read | None = read

    async def receive(self) -> Message:
        if self._read:
            read, self._read = self._read, None
            body = await read()
            if body is not None:
                return {"type": "http.request", "body": body, "more_body": False}
            self.gone.set()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]
            }
        else:
            self.answer.content += message.get("body", b"")


def client_of(peer: str) -> tuple[str, int] | None:
    """Address and port of `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") and port.isdecimal() else None


def _headers(metadata: Any) -> list[tuple[bytes, bytes]]:
    given = {name: value for name, value in reversed([*metadata]) if isinstance(value, str)}  # the first of each name
    if KEY in given:
        given.setdefault("authorization", f"Bearer {given[KEY]}")
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in given.items() if name in READ]


def _problem(content: bytes) -> dict[str, str]:
    try:
        problem = json.loads(content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}
