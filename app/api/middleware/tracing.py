"""FastAPI's telemetry, adjusted: which requests have a span, what is said of them, and the spans of their stages."""

from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..paths import PROBES
from ..request_context import RequestContext, context_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from ...telemetry.pipeline import Telemetry


def of_fastapi(telemetry: "Telemetry | None", prefix: str) -> TelemetryConfig:
    """What FastAPI is to record: requests, but no probes, in our providers. `prefix`: see the middleware Prefix.

    Without `telemetry`, it is nothing, even if another library in this process has set global providers.
    """
    if telemetry is None:
        return TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)
    return TelemetryConfig(
        tracing=telemetry.tracer_provider is not None,
        tracer_provider=telemetry.tracer_provider,
        metrics=telemetry.meter_provider is not None,
        meter_provider=telemetry.meter_provider,
        logs=False,
        operation_spans=False,
        auto_configure=False,
        exclude=lambda scope: scope["path"].removeprefix(prefix) in PROBES,
    )


class Tracing:
    """Makes our id and FastAPI's trace known to each other, and adds the outcome and the stages to the trace."""

    def __init__(self, app: ASGIApp, telemetry: "Telemetry") -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = self.telemetry.current_span() if scope["type"] == "http" else None
        if span is None:
            await self.app(scope, receive, send)
            return
        context = context_of(scope)
        context.traceparent = self.telemetry.traceparent(span)

        async def describing(message: Message) -> None:
            if message["type"] == "http.response.start":  # FastAPI ends the span with the answer
                _describe(span, scope, context)
            await send(message)

        try:
            await self.app(scope, receive, describing)
        finally:
            if context.began is not None:
                error = None if context.outcome == "ok" else context.outcome
                self.telemetry.add_stages(span, context.began, context.read, context.results, error)


def _describe(span: "Span", scope: Scope, context: RequestContext) -> None:
    if context.route and not scope.get("route"):  # refused before routing
        span.update_name(f"{scope['method']} {context.route}")
        span.set_attribute("http.route", context.route)
    answer = {f"classifier.{name}": value for name, value in context.log.items() if value is not None}
    span.set_attributes(
        {"http.response.header.x-request-id": [context.request_id], "classifier.outcome": context.outcome, **answer}
    )
