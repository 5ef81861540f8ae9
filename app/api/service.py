"""The running service: what the routes take from the application."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import Metric

from ..bundle.reader import Bundle
from ..errors import Unavailable
from ..feedback.feedback import Feedback
from ..inference.answers import Classification
from ..inference.classifier import Classifier
from ..inference.drift import Drift, references_of
from ..inference.engine import Engine
from ..settings import Settings
from .metrics import Metrics
from .open_inference.models import ServedModel, served_models
from .open_inference.parser import Parser
from .request_context import RequestContext


@dataclass
class Service:
    settings: Settings
    bundle: Bundle
    classifier: Classifier
    metrics: Metrics
    feedback: Feedback | None = None  # None where it is off
    draining: bool = False
    parser: Parser = field(init=False, default_factory=Parser)
    models: dict[str, ServedModel] = field(init=False)  # by the names that Open Inference Protocol clients use
    drift: Drift | None = field(init=False, default=None)  # None if the bundle has no reference

    def __post_init__(self) -> None:
        self.models = served_models(self.settings, self.bundle.manifest)
        # Read when it is asked for, over HTTP or by an exporter of app.telemetry.
        self.metrics.queue_images.set_function(lambda: self.engine.reserved_images)
        if references := references_of(self.bundle.manifest):
            self.drift = Drift(references, self.settings.drift_window_images)
            for of, index in (("labels", self.drift.labels), ("confidences", self.drift.confidences)):
                self.metrics.drift.labels(of).set_function(index)

    @property
    def engine(self) -> Engine:
        return self.classifier.engine

    def close(self) -> None:
        """Kill all processes, fail what is still under way, and write what is kept of images."""
        self.parser.close()
        self.classifier.close()
        if self.feedback:
            self.feedback.close()

    def check_ready(self) -> None:
        """Raises Unavailable when no request should be sent here."""
        if self.draining:
            raise Unavailable("the service is shutting down")
        if not self.engine.alive:
            raise Unavailable("the engine has died")

    def collect(self) -> list[Metric]:
        """All metrics."""
        return list(self.metrics.registry.collect())

    def render_metrics(self) -> bytes:
        """The same, in the Prometheus text format."""
        return self.metrics.render()

    def observe(self, context: RequestContext, results: Sequence[Classification]) -> float:
        """Add a request's times, and its images' times and answers, to the metrics. Returns its seconds up to now.

        `context` must say when the request's body was begun to be read, and when it was whole.
        """
        assert context.began is not None and context.read is not None
        context.results = results
        total_seconds = time.monotonic() - context.began
        metrics, stages = self.metrics, self.metrics.stages
        stages["read"].observe(context.read - context.began)
        stages["total"].observe(total_seconds)
        for result in results:
            stages["decode"].observe(result.decode_seconds)
            stages["queue"].observe(result.queue_seconds)
            stages["inference"].observe(result.inference_seconds)
            metrics.predictions.labels(result.label).inc()
            metrics.confidence.observe(result.confidence)
            if result.ood_score is not None:
                metrics.ood_score.observe(result.ood_score)
            if result.abstain:
                metrics.abstentions.inc()
            if self.drift:
                self.drift.add(result.rules.measured_on, result.class_id, result.confidence)
        return total_seconds


# FastAPI would run a plain function on a thread of its pool, which costs more than the function does.
async def _running(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


RunningService = Annotated[Service, Depends(_running)]
