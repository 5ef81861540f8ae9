"""The service's metrics, for Prometheus.

Labels are route templates, outcomes, stages and classes: each has a bounded number of values, whatever clients send.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ..bundle.manifest import Manifest
from ..feedback.feedback import Verdict

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
STAGES = ("read", "decode", "queue", "inference", "total")
OOD_SCORE = (-2, -1, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 3, 4, 6, 8, 12, 16, 32)
CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics of one application, in a registry of their own: two applications in one process count separately."""

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
        self.decoders_killed = Counter(
            "predict_decoders_killed", "Decoding processes that were ended, by reason.", ["reason"], **own
        )
        for reason in ("cpu", "memory", "time", "crash"):
            self.decoders_killed.labels(reason)
        self.model = Gauge("model_info", "The model that answers.", ["name", "version"], **own)

    def describe(self, manifest: Manifest) -> None:
        """Name the model, and show every class from the start, at zero."""
        self.model.labels(manifest.name, manifest.version).set(1)
        for label in manifest.classes:
            self.predictions.labels(label)

    def expect_feedback(self) -> None:
        """Show metrics of feedback. Without this there are none."""
        own: dict[str, Any] = {"registry": self.registry}
        self._feedback = Counter("feedback", "Answers whose true class was told.", ["correct", "abstained"], **own)
        self._feedback_sets = Counter(
            "feedback_sets", "Prediction sets of answers whose true class was told.", ["coverage", "covered"], **own
        )

    def count_feedback(self, verdict: Verdict) -> None:
        """Count the true class of one answer."""
        self._feedback.labels(_word(verdict.correct), _word(verdict.abstained)).inc()
        if verdict.covered is not None:
            self._feedback_sets.labels(verdict.coverage, _word(verdict.covered)).inc()

    def killed(self, reason: str) -> None:
        """Count a decoding process that was ended."""
        self.decoders_killed.labels(reason).inc()

    def count(self, name: str, documentation: str, read: Callable[[], int]) -> None:
        """Add a counter that is kept elsewhere."""
        self.registry.register(_Count(name, documentation, read))

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


def _word(true: bool) -> str:
    return str(true).lower()


@dataclass(frozen=True)
class _Count(Collector):
    name: str
    documentation: str
    read: Callable[[], int]

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.documentation, self.read())
