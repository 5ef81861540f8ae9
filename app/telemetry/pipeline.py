"""Where traces and metrics go: OpenTelemetry's providers and exporters, made from the variables OTEL_*."""

import os
import threading
import time
from collections.abc import Collection, Sequence
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from prometheus_client import CollectorRegistry

from .. import __version__
from ..inference.answers import Classification
from . import SCOPE, TelemetryError, collector
from .prometheus import WithPrometheus
from .stages import add_spans, stages_of

FLUSH_SECONDS = 2.0  # for what is not sent yet when the service ends
# An address and a header may have 64 KiB, and thousands of spans wait while the collector is away.
MAX_ATTRIBUTE_CHARACTERS = 1024
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
KINDS: dict[str, type] = {"traces": SpanExporter, "metrics": MetricExporter}


class Telemetry:
    """The providers for the signals that are asked for; None for a signal that is not.

    They are this application's own, never the process's global ones. Raises TelemetryError, ImportError, or the
    ValueError of a variable that OpenTelemetry's SDK cannot use.
    """

    def __init__(self, signals: Collection[str], registry: CollectorRegistry) -> None:
        self.tracer_provider: TracerProvider | None = None
        self.meter_provider: MeterProvider | None = None
        exporters = {signal: _exporter(signal) for signal in signals}  # all, before any thread is started
        ours = Resource({"service.name": SCOPE, "service.version": __version__})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        if "traces" in exporters:
            self.tracer_provider = TracerProvider(resource=resource, span_limits=_limits(), shutdown_on_exit=False)
            self.tracer_provider.add_span_processor(BatchSpanProcessor(exporters["traces"]))
            self._tracer = self.tracer_provider.get_tracer(SCOPE, __version__)
        if "metrics" in exporters:
            reader = PeriodicExportingMetricReader(WithPrometheus(exporters["metrics"], registry))
            self.meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
            # Without any instrument the SDK exports nothing, and Prometheus's metrics would wait for a first request.
            started = time.monotonic()
            self.meter_provider.get_meter(SCOPE, __version__).create_observable_gauge(
                "process.uptime", [lambda _: [Observation(time.monotonic() - started)]], "s"
            )

    def current_span(self) -> trace.Span | None:
        """The span of the request that is being answered; None if it has none."""
        span = trace.get_current_span()
        return span if self.tracer_provider and span.get_span_context().is_valid else None

    def traceparent(self, span: trace.Span) -> str:
        """The span as W3C Trace Context's header."""
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def add_stages(
        self,
        parent: trace.Span,
        began: float,
        read: float | None,
        results: Sequence[Classification],
        error: str | None,
    ) -> None:
        """Make a span of each stage of a request that has just ended, inside its own; see stages_of."""
        if parent.get_span_context().trace_flags.sampled:
            add_spans(self._tracer, parent, stages_of(began, read, results, error, time.monotonic()))

    def close(self) -> None:
        """Send what is not sent yet, for at most FLUSH_SECONDS: the collector may be away."""
        closing = threading.Thread(target=self._close, name="telemetry-close", daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)

    def _close(self) -> None:
        for provider in (self.tracer_provider, self.meter_provider):
            if provider:
                provider.shutdown()


def _exporter(signal: str) -> Any:
    """The exporter that the environment names, from the installed packages. Raises TelemetryError."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    name = value = os.environ.get(variable, "").strip() or "otlp"
    if name == "otlp":
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
        variable = own if os.environ.get(own) else "OTEL_EXPORTER_OTLP_PROTOCOL"
        value = os.environ.get(variable) or "http/protobuf"
        name = PROTOCOLS.get(value, "")
    over_http = name == PROTOCOLS["http/protobuf"]
    if over_http:
        collector.check(signal)
    for point in _installed(signal).select(name=name):
        kind = point.load()
        if issubclass(kind, KINDS[signal]):
            return kind(session=collector.session()) if over_http and not _has_credentials() else kind()
    raise TelemetryError(
        f"{variable}: no exporter for {value[:40]!r} is installed: the extra 'otel' brings OTLP over http/protobuf, and"
        " other packages of OpenTelemetry add theirs"
    )


def _has_credentials() -> bool:
    """Whether another package of OpenTelemetry is asked for the session."""
    return any(name.startswith("OTEL_PYTHON_EXPORTER_OTLP_HTTP_") and value for name, value in os.environ.items())


@cache
def _installed(signal: str) -> EntryPoints:
    """The exporters of all installed packages. To look for them takes a tenth of a second."""
    return entry_points(group=f"opentelemetry_{signal}_exporter")


def _limits() -> SpanLimits:
    limits = SpanLimits()
    if limits.max_span_attribute_length is None:
        return SpanLimits(max_span_attribute_length=MAX_ATTRIBUTE_CHARACTERS)
    return limits
