"""The service's metrics, for Prometheus.

Labels are route templates, outcomes, stages and classes: each has a bounded number of values, whatever clients send.
What concerns one model has its name as the label `model` if the service has several.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ..feedback.feedback import Verdict
from ..inference.answers import Classification
from ..inference.loaded_model import LoadedModel
from ..sandbox.conversation import REASONS
from ..settings import DEFAULT_MODEL

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
STAGES = ("read", "decode", "queue", "inference", "total")
OOD_SCORE = (-2, -1, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 3, 4, 6, 8, 12, 16, 32)
CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics of one application, in a registry of their own: two applications in one process count separately.

    `models`: by name.
    """

    def __init__(self, models: Sequence[str] = (DEFAULT_MODEL,)) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        model = ["model"] if len(models) > 1 else []
        self.requests = Counter("predict_requests", "Requests by how they ended.", ["route", "outcome"], **own)
        self.stage_seconds = Histogram(
            "predict_stage_seconds", "Where a prediction's time went.", [*model, "stage"], buckets=SECONDS, **own
        )
        self.batch_images = Histogram(
            "predict_batch_images",
            "Images a worker computed at once.",
            model,
            buckets=(1, 2, 3, 4, 6, 8, 16, 32, 64),
            **own,
        )
        self.queue_images = Gauge("predict_queue_images", "Images that requests under way hold a place for.", **own)
        self.inflight = Gauge("predict_inflight_requests", "Requests under way, probes aside.", **own)
        self.rejected = Counter("predict_rejected", "Requests refused for lack of room or time.", ["reason"], **own)
        self.predictions = Counter("predictions", "Most probable classes.", [*model, "label"], **own)
        self.confidence = Histogram(
            "prediction_confidence", "Probability of the most probable class.", model, buckets=CONFIDENCE, **own
        )
        self.abstentions = Counter("prediction_abstentions", "Images unlike the training images.", model, **own)
        self.ood_score = Histogram(
            "prediction_ood_score", "How unlike the training images an image is.", model, buckets=OOD_SCORE, **own
        )
        self.drift = Gauge(
            "prediction_drift",
            "Population stability index of the last DRIFT_WINDOW_IMAGES answers; NaN until there are so many.",
            [*model, "of"],
            **own,
        )
        self.decoders_killed = Counter(
            "predict_decoders_killed", "Decoding processes that were ended, by reason.", ["reason"], **own
        )
        for reason in REASONS:
            self.decoders_killed.labels(reason)
        self.model_info = Gauge("model_info", "The model that answers.", [*model, "name", "version"], **own)
        self.models = {name: ModelMetrics(self, (name,) if model else ()) for name in models}

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
        """The metrics of this process in the Prometheus text format."""
        return generate_latest(self.registry)


def _word(true: bool) -> str:
    return str(true).lower()


Measure = TypeVar("Measure", Counter, Histogram)
Series = TypeVar("Series", Counter, Gauge)


class ModelMetrics:
    """The metrics of one model, for all bundles that it has been. `labels`: its name, if there are several models."""

    def __init__(self, metrics: Metrics, labels: tuple[str, ...]) -> None:
        def own(measure: Measure) -> Measure:
            return measure.labels(*labels) if labels else measure

        self._metrics = metrics
        self._labels = labels
        self._shown = list[tuple[Counter | Gauge, tuple[str, ...]]]()  # series of the bundle that answers now
        self._stages = {stage: metrics.stage_seconds.labels(*labels, stage) for stage in STAGES}
        self.batch_images = own(metrics.batch_images)
        self._confidence = own(metrics.confidence)
        self._abstentions = own(metrics.abstentions)
        self._ood_score = own(metrics.ood_score)

    def describe(self, model: LoadedModel) -> None:
        """Name the bundle, show every class from the start, and drop what only the bundle before it had."""
        metrics, manifest = self._metrics, model.bundle.manifest
        former, self._shown = self._shown, []
        self._show(metrics.model_info, manifest.name, manifest.version).set(1)
        for label in manifest.classes:
            self._show(metrics.predictions, label)
        if model.drift:
            self._show(metrics.drift, "labels").set_function(model.drift.labels)
            self._show(metrics.drift, "confidences").set_function(model.drift.confidences)
        for measure, labels in former:
            if (measure, labels) not in self._shown:
                measure.remove(*labels)

    def observe(self, results: Sequence[Classification], *, read_seconds: float, total_seconds: float) -> None:
        """Add a request's times, and its images' times and answers."""
        stages = self._stages
        stages["read"].observe(read_seconds)
        stages["total"].observe(total_seconds)
        for result in results:
            stages["decode"].observe(result.decode_seconds)
            stages["queue"].observe(result.queue_seconds)
            stages["inference"].observe(result.inference_seconds)
            self._metrics.predictions.labels(*self._labels, result.label).inc()
            self._confidence.observe(result.confidence)
            if result.ood_score is not None:
                self._ood_score.observe(result.ood_score)
            if result.abstain:
                self._abstentions.inc()

    def _show(self, measure: Series, *labels: str) -> Series:
        labels = (*self._labels, *labels)
        self._shown.append((measure, labels))
        return measure.labels(*labels)


@dataclass(frozen=True)
class _Count(Collector):
    name: str
    documentation: str
    read: Callable[[], int]

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self.name, self.documentation, self.read())
