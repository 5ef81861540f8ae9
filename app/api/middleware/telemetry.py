"""What an operator sees: Prometheus metrics, one JSON log line a request, request ids.

Labels are route templates, outcomes, stages and classes: all of them bounded, whatever clients send.
"""

import asyncio
import json
import logging
import random
import re
import sys
import time
import warnings
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...bundle.reader import Manifest
from .prefix import route_path
from .security import PROBES

access = logging.getLogger("app.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# W3C Trace Context, 3.2: version, trace, parent, flags; neither version ff nor zeros for ids.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
STAGES = ("read", "decode", "queue", "inference", "total")
OOD_SCORE = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Telemetry:
    """The service's metrics, in a registry of their own: an application made twice counts twice, not together."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("predict_requests", "Requests by how they ended.", ["route", "outcome"], **own)
        stage_seconds = Histogram(
            "predict_stage_seconds", "Where a prediction's time went.", ["stage"], buckets=SECONDS, **own
        )
        self.stages = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self.batch_images = Histogram(
            "predict_batch_images", "Images a worker computed at once.", buckets=(1, 2, 3, 4, 6, 8, 16, 32, 64), **own
        )
        self.queue_images = Gauge("predict_queue_images", "Images that requests under way hold a place for.", **own)
        self.inflight = Gauge("predict_inflight_requests", "Requests under way, probes aside.", **own)
        self.rejected = Counter("predict_rejected", "Requests refused for lack of room or time.", ["reason"], **own)
        self.predictions = Counter("predictions", "Most probable classes.", ["label"], **own)
        self.confidence = Histogram(
            "prediction_confidence", "Probability of the most probable class.", buckets=CONFIDENCE, **own
        )
        self.abstentions = Counter("prediction_abstentions", "Images unlike the training images.", **own)
        self.ood_score = Histogram(
            "prediction_ood_score", "How unlike the training images an image is.", buckets=OOD_SCORE, **own
        )
        self.drift = Gauge(
            "prediction_drift",
            "Population stability index of the last DRIFT_WINDOW_IMAGES answers; NaN until there are so many.",
            ["of"],
            **own,
        )
        self.model = Gauge("model_info", "The model that answers.", ["name", "version"], **own)

    def describe(self, manifest: Manifest) -> None:
        """Name the model, and show every class from the start, at zero."""
        self.model.labels(manifest.name, manifest.version).set(1)
        for label in manifest.classes:
            self.predictions.labels(label)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class TelemetryMiddleware:
    """Gives every request an id and a place in its trace, counts it, and writes its line in the log; probes pass."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        state["request_id"] = request_id = _request_id(headers)
        state["traceparent"] = traceparent = _traceparent(headers)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-ID"] = request_id
                answered["traceparent"] = traceparent
            await send(message)

        if route_path(scope) in PROBES:
            await self.app(scope, receive, send_with_id)
            return
        started = time.monotonic()
        self.telemetry.inflight.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # DRAIN_SECONDS are over
            state["outcome"] = "unavailable"
            raise
        finally:
            self.telemetry.inflight.dec()
            self._account(scope, status, time.monotonic() - started)

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        outcome = state.get("outcome", "ok")
        route = getattr(scope.get("route"), "path", None) or state.get("route", "unmatched")
        self.telemetry.requests.labels(route, outcome).inc()
        if status in (429, 503, 504):
            self.telemetry.rejected.labels(outcome).inc()
        fields = {
            "request_id": state["request_id"],
            "trace_id": state["traceparent"].split("-")[1],
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "route": route,
            "status": status,
            "outcome": outcome,
            "ms": round(seconds * 1000, 2),
        }
        access.info("request", extra={"fields": fields | state.get("log", {})})


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            # The kind and the place, for whoever mends it; values stay out of logs.
            kind, _, trace = record.exc_info
            line["error"] = getattr(kind, "__name__", "")
            while trace is not None:
                line["at"] = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
                trace = trace.tb_next
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Logs and warnings of the process as JSON lines on standard error; uvicorn's access log is replaced by ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("PIL").setLevel(logging.INFO)  # below that it quotes images
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("app").warning("%s: %s", category.__name__, message)


def log_stray_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For the event loop: an error that nobody waited for. asyncio's own handler names files of this machine."""
    message = context["message"].partition("\n")[0]
    logging.getLogger("app").error(message, exc_info=context.get("exception"))


def _traceparent(headers: Headers) -> str:
    """That of this request: in the caller's trace, or in one of its own that nobody samples."""
    found = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    trace, flags = found.groups() if found else (_random_hex(32), "00")
    return f"00-{trace}-{_random_hex(16)}-{flags}"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else _random_hex(32)


def _random_hex(digits: int) -> str:
    """Not from the system's entropy, which costs a call each: these ids tell requests apart, and protect nothing."""
    return f"{random.getrandbits(4 * digits):0{digits}x}"
