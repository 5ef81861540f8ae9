"""Gives each request an id and a trace, counts it, and logs one line."""

import asyncio
import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import MalformedRequest
from ..metrics import Metrics
from ..paths import PROBES, route_path
from ..request_context import RequestContext, client_address, context_of, network_of

access = logging.getLogger("app.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# W3C Trace Context, 3.2: version, trace, parent, flags; the version is not ff, and the ids are not zero.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


class RequestLog:
    """Gives every request an id and a place in its trace, counts it and logs it. Probes are not counted or logged."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = context_of(scope)
        context.client = network_of(client_address(scope))
        context.request_id = _request_id(headers)
        context.traceparent = context.traceparent or _traceparent(headers)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-ID"] = context.request_id
                answered["traceparent"] = context.traceparent
            await send(message)

        if route_path(scope) in PROBES:
            await self.app(scope, receive, send_with_id)
            return
        started = time.monotonic()
        self.metrics.inflight.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # DRAIN_SECONDS are over
            context.outcome = "unavailable"
            raise
        finally:
            self.metrics.inflight.dec()
            self._account(scope, context, status, time.monotonic() - started)

    def _account(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or context.route or "unmatched"
        self.metrics.requests.labels(route, context.outcome).inc()
        if status in (429, 503, 504):
            self.metrics.rejected.labels(context.outcome).inc()
        fields = {
            "request_id": context.request_id,
            "trace_id": context.traceparent.split("-")[1],
            "client": client_address(scope),
            "method": scope["method"],
            "route": route,
            "status": status,
            "outcome": context.outcome,
            "ms": round(seconds * 1000, 2),
        }
        access.info("request", extra={"fields": fields | context.log})


def record_refused(metrics: Metrics, request_id: str, client: str) -> None:
    """Count and log a request that the connection answered 400 because it could not be parsed."""
    metrics.requests.labels("unmatched", MalformedRequest.code).inc()
    fields = {
        "request_id": request_id,
        "client": client,
        "route": "unmatched",
        "status": MalformedRequest.status,
        "outcome": MalformedRequest.code,
    }
    access.info("request", extra={"fields": fields})


def _traceparent(headers: Headers) -> str:
    """The request's traceparent: in the caller's trace, or in a new one that is not sampled."""
    found = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    trace, flags = found.groups() if found else (_random_hex(32), "00")
    return f"00-{trace}-{_random_hex(16)}-{flags}"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else _random_hex(32)


def _random_hex(digits: int) -> str:
    """Not from the system's entropy, which costs a system call: these ids need not be secret."""
    return f"{random.getrandbits(4 * digits):0{digits}x}"
