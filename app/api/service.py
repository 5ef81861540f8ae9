"""What a running service holds; routes take it from the application."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import Metric

from ..bundle.reader import Bundle
from ..errors import Unavailable
from ..inference.classifier import Classification, Classifier
from ..inference.drift import Drift
from ..inference.engine import Engine
from ..settings import Settings
from .middleware.telemetry import Telemetry
from .open_inference.models import ServedModel, served_models


@dataclass
class ServiceState:
    settings: Settings
    bundle: Bundle
    engine: Engine
    classifier: Classifier
    telemetry: Telemetry
    draining: bool = False
    models: dict[str, ServedModel] = field(init=False)  # as Open Inference Protocol clients know them
    drift: Drift | None = field(init=False, default=None)  # where the bundle says what is usual

    def __post_init__(self) -> None:
        self.models = served_models(self.settings, self.bundle.manifest)
        if reference := self.bundle.manifest.reference:
            self.drift = Drift(reference, self.settings.drift_window_images)
            for of, index in (("labels", self.drift.labels), ("confidences", self.drift.confidences)):
                self.telemetry.drift.labels(of).set_function(index)

    def check_ready(self) -> None:
        """Raises Unavailable when no request should be sent here."""
        if self.draining:
            raise Unavailable("the service is shutting down")
        if not self.engine.alive:
            raise Unavailable("the engine has died")

    def metrics(self) -> list[Metric]:
        self.telemetry.queue_images.set(self.engine.reserved_images)
        return list(self.telemetry.registry.collect())

    def observe(self, results: Sequence[Classification], *, read_seconds: float, total_seconds: float) -> None:
        """Add a request's times, and its images' times and answers, to the metrics."""
        telemetry, stages = self.telemetry, self.telemetry.stages
        stages["read"].observe(read_seconds)
        stages["total"].observe(total_seconds)
        for result in results:
            stages["decode"].observe(result.decode_seconds)
            stages["queue"].observe(result.queue_seconds)
            stages["inference"].observe(result.inference_seconds)
            telemetry.predictions.labels(self.classifier.classes[result.class_id]).inc()
            telemetry.confidence.observe(result.confidence)
            if result.ood_score is not None:
                telemetry.ood_score.observe(result.ood_score)
            if result.abstain:
                telemetry.abstentions.inc()
            if self.drift:
                self.drift.add(result.class_id, result.confidence)


# Plain functions are called on a thread of FastAPI's pool; this one would spend more on the way there than at work.
async def _service(request: Request) -> ServiceState:
    return request.app.state.service  # type: ignore[no-any-return]


Service = Annotated[ServiceState, Depends(_service)]
