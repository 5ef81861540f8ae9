"""The running service: what the routes take from the application."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Depends, Query, Request
from prometheus_client import Metric

from ..bundle.reader import Bundle
from ..errors import InvalidParameter, LoadFailed, Problem, Unavailable
from ..feedback.feedback import Feedback
from ..inference.answers import Classification
from ..inference.classifier import Classifier
from ..inference.engine import Engine
from ..inference.loaded_model import LoadedModel
from ..inference.places import Places
from ..inference.repository import Repository
from ..inference.sessions import Session
from ..settings import Settings
from .metrics import Metrics
from .open_inference.models import ServedModel, served_models
from .open_inference.parser import Parser
from .request_context import RequestContext

logger = logging.getLogger("app")


class Service:
    """`bundle`, `classifier` and `engine` are the default model's; `models` has all, by their names in /v2.

    `default` is what its folder holds, where that is loaded already.

    Raises BundleError, SessionError, ThreadsError, or SettingsError if FEEDBACK_DIR cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        default: tuple[Bundle, Session] | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        folder = settings.feedback_dir
        self.feedback = Feedback(settings, folder) if folder else None
        self.places = Places(settings.queue_images)
        self.repository = Repository(
            settings,
            default,
            on_batch=lambda name, images: metrics.models[name].batch_images.observe(images),
            on_death=on_death,
            on_kill=metrics.killed,
            on_load=self._describe,
        )
        self.models: dict[str, ServedModel] = {}
        for model in self.repository.models.values():
            self._describe(model)
        self.parser = Parser()
        # Read when it is asked for, over HTTP or by an exporter of app.telemetry.
        metrics.queue_images.set_function(lambda: self.places.reserved)

    @property
    def bundle(self) -> Bundle:
        return self.repository.default.bundle

    @property
    def classifier(self) -> Classifier:
        return self.repository.default.classifier

    @property
    def engine(self) -> Engine:
        return self.classifier.engine

    def model(self, name: str | None) -> LoadedModel:
        """The model of a name, by default the one in MODEL_DIR. Raises InvalidParameter."""
        if name is None:
            return self.repository.default
        models = self.repository.models
        if name not in models:
            raise InvalidParameter(f"model: there is no {name[:40]!r}: there are {', '.join(models)}")
        return models[name]

    async def load(self, name: str, deadline: float) -> LoadedModel:
        """Load the folder of a model anew; see Repository.load, also for errors."""
        if self.draining:
            raise Unavailable("the service is shutting down")
        return await self.repository.load(name, deadline)

    async def load_all(self) -> None:
        """Load the folders of all models anew, one after the other. The log says what was loaded and what was not."""
        for name in self.settings.folders:
            try:
                await self.load(name, math.inf)
            except LoadFailed:
                pass  # logged already
            except Problem as problem:
                logger.warning("not loaded", extra={"fields": {"model": name, "reason": problem.detail}})

    def close(self) -> None:
        """Kill all processes, fail what is still under way, and write what is kept of images."""
        self.parser.close()
        self.repository.close()
        if self.feedback:
            self.feedback.close()

    def check_ready(self) -> None:
        """Raises Unavailable when no request should be sent here."""
        if self.draining:
            raise Unavailable("the service is shutting down")
        if not self.repository.alive:
            raise Unavailable("the engine has died")

    def collect(self) -> list[Metric]:
        """All metrics."""
        return list(self.metrics.registry.collect())

    def render_metrics(self) -> bytes:
        """The same, in the Prometheus text format."""
        return self.metrics.render()

    def observe(self, context: RequestContext, model: LoadedModel, results: Sequence[Classification]) -> float:
        """Add a request's times, and its images' times and answers, to the metrics. Returns its seconds up to now.

        `context` must say when the request's body was begun to be read, and when it was whole.
        """
        assert context.began is not None and context.read is not None
        context.results = results
        total_seconds = time.monotonic() - context.began
        read_seconds = context.read - context.began
        self.metrics.models[model.name].observe(results, read_seconds=read_seconds, total_seconds=total_seconds)
        if model.drift:
            for result in results:
                model.drift.add(result.rules.measured_on, result.class_id, result.confidence)
        return total_seconds

    def _describe(self, model: LoadedModel) -> None:
        """Let metrics and /v2 follow a model's bundle."""
        self.metrics.models[model.name].describe(model)
        others = {name: served for name, served in self.models.items() if served.of != model.name}
        self.models = others | served_models(self.settings, model.bundle.manifest, model.name)


# FastAPI would run a plain function on a thread of its pool, which costs more than the function does.
async def _running(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


RunningService = Annotated[Service, Depends(_running)]
ModelQuery = Annotated[str | None, Query(alias="model", description="Which model answers; by default MODEL_DIR's.")]


async def _asked(service: RunningService, name: ModelQuery = None) -> LoadedModel:
    return service.model(name)


AskedModel = Annotated[LoadedModel, Depends(_asked)]
