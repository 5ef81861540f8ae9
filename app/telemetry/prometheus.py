"""The metrics of a Prometheus registry, as OpenTelemetry's.

They are read when they are exported, so that counting costs a request nothing more. They are cumulative, whatever
temporality the exporter prefers, and have the names of /metrics without `_total`.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family

from .. import __version__
from . import SCOPE

CUMULATIVE = AggregationTemporality.CUMULATIVE
OF_PROMETHEUS = f"{SCOPE}.prometheus"  # exporters take one list of metrics for each scope
Key = tuple[tuple[str, str], ...]


class WithPrometheus(MetricExporter):
    """Exports what it is given, and the registry's metrics with it."""

    def __init__(self, exporter: MetricExporter, registry: CollectorRegistry) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._registry = registry
        self._start = time.time_ns()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        metrics = list(metrics_of(self._registry, self._start, time.time_ns()))
        ours = ScopeMetrics(InstrumentationScope(OF_PROMETHEUS, __version__), metrics, "")
        (given,) = metrics_data.resource_metrics  # a provider has one resource
        more = replace(given, scope_metrics=[*given.scope_metrics, ours])
        return self._exporter.export(MetricsData([more]), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)


def metrics_of(registry: CollectorRegistry, start: int, now: int) -> Iterator[Metric]:
    """The registry's metrics. Times are in nanoseconds since 1970."""
    for family in registry.collect():
        data: Gauge | Histogram | Sum
        if family.type == "histogram":
            data = Histogram(list(_histograms(family, start, now)), CUMULATIVE)
        else:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            points = [
                NumberDataPoint(sample.labels, start, now, sample.value)
                for sample in family.samples
                if sample.name == name and not math.isnan(sample.value)
            ]
            data = Sum(points, CUMULATIVE, True) if family.type == "counter" else Gauge(points)
        if data.data_points:
            yield Metric(family.name, family.documentation, "", data)


def _histograms(family: Family, start: int, now: int) -> Iterator[HistogramDataPoint]:
    """Prometheus has a sample a bucket, which counts those below it, too."""
    found: dict[Key, dict[str, float]] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        name = sample.labels.get("le") or sample.name.removeprefix(family.name)
        found.setdefault(tuple(labels.items()), {})[name] = sample.value
    for key, values in found.items():
        bounds, counts = _buckets(values)
        point = partial(HistogramDataPoint, dict(key), start, now, bucket_counts=counts, explicit_bounds=bounds)
        # OTLP needs none of these: Prometheus keeps no least and no largest value, and no sum of what can be negative.
        yield point(sum(counts), sum=values.get("_sum"), min=None, max=None)  # type: ignore[arg-type]


def _buckets(values: Mapping[str, float]) -> tuple[list[float], list[int]]:
    """The finite upper bounds, and the number in each bucket, the one without a bound included."""
    totals = {float(bound): int(value) for bound, value in values.items() if not bound.startswith("_")}
    counts = [total - before for total, before in zip(totals.values(), [0, *totals.values()], strict=False)]
    return [bound for bound in totals if bound != math.inf], counts
