"""The running service: what the routes take from the application."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from prometheus_client import Metric, generate_latest

from ..bundle.reader import Bundle
from ..errors import InvalidParameter, LoadFailed, NotFound, Problem, Unavailable
from ..feedback.feedback import Feedback, Verdict
from ..inference.answers import Classification
from ..inference.classifier import Classifier
from ..inference.engine import Engine
from ..inference.loaded_model import LoadedModel
from ..inference.places import Places
from ..inference.repository import Loaded, Repository
from ..settings import Settings
from ..workers.board import PLACES
from ..workers.worker import Worker
from .metrics import Metrics
from .open_inference.models import ServedModel, served_models
from .open_inference.parser import Parser
from .query import check_query
from .request_context import RequestContext
from .siblings import Siblings
from .summed_metrics import statistics_in

logger = logging.getLogger("app")


class Service:
    """`bundle`, `classifier` and `engine` are the default model's; `models` has all, by their names in /v2.

    `loaded`: models that are loaded already; see Repository. `worker`: if this process is one of several.

    Raises BundleError, SessionError, ThreadsError, or SettingsError if FEEDBACK_DIR cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        loaded: Loaded | None = None,
        on_death: Callable[[], None] = lambda: None,
        worker: Worker | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        folder = settings.feedback_dir
        place = (worker.number, worker.count) if worker else (0, 1)
        self.feedback = Feedback(settings, folder, *place) if folder else None
        self.places = Places(settings.queue_images, worker.tally(PLACES) if worker else None)
        self.repository = Repository(
            settings,
            loaded,
            worker=worker,
            on_batch=lambda name, images: metrics.models[name].batch_images.observe(images),
            on_death=on_death,
            on_kill=metrics.killed,
            on_load=self._describe,
        )
        self.models: dict[str, ServedModel] = {}
        for model in self.repository.models.values():
            self._describe(model)
        self.parser = Parser()
        self._siblings = (
            Siblings(worker, metrics.registry, self.repository, self.feedback, self._counts) if worker else None
        )
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
            raise InvalidParameter(f"model: there is no {name[:40]!r}: {there_are(models)}")
        return models[name]

    async def load(self, name: str, deadline: float) -> LoadedModel:
        """Load the folder of a model anew; see Repository.load, also for errors."""
        if self.draining:
            raise Unavailable("the service is shutting down")
        if self._siblings:
            return await self._siblings.load(name, deadline)
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
        self.publish_counts()
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
        if self._siblings and not self._siblings.worker.begun:
            raise Unavailable("other workers are starting")

    def collect(self) -> list[Metric]:
        """All metrics of this process."""
        return list(self.metrics.registry.collect())

    async def render_metrics(self) -> bytes:
        """All metrics, of all workers, in the Prometheus text format."""
        return generate_latest(await self._siblings.metrics()) if self._siblings else self.metrics.render()

    def publish_counts(self) -> None:
        """Show other workers, if there are any, what this one has counted."""
        if self._siblings:
            self._siblings.publish()

    async def statistics(self, models: Iterable[ServedModel]) -> list[dict[str, Any]]:
        """The statistics of models of /v2, in all workers."""
        others = await self._siblings.counts() if self._siblings else []
        return [
            model.statistics_document(statistics_in(others, model.name, self._digest(model)) if others else ())
            for model in models
        ]

    async def judge(self, request_id: str, label: str) -> Verdict:
        """What the true label says of an answer, once. Raises InvalidParameter and NotFound."""
        assert self.feedback is not None
        try:
            return self.feedback.judge(request_id, label)
        except NotFound:
            verdict = await self._siblings.judge(request_id, label) if self._siblings else None
            if verdict is None:
                raise
            return verdict

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

    def _counts(self) -> dict[str, Any]:
        return {
            name: {"digest": self._digest(model), "document": model.statistics.document()}
            for name, model in self.models.items()
        }

    def _digest(self, model: ServedModel) -> str:
        return self.repository.models[model.of].bundle.manifest.digest

    def _describe(self, model: LoadedModel) -> None:
        """Let metrics and /v2 follow a model's bundle."""
        self.metrics.models[model.name].describe(model)
        others = {name: served for name, served in self.models.items() if served.of != model.name}
        self.models = others | served_models(self.settings, model.bundle.manifest, model.name)


def there_are(models: Iterable[str]) -> str:
    """The models that there are, in words."""
    names = list(models)
    return f"there {'are' if names[1:] else 'is'} {', '.join(names)}"


# FastAPI would run a plain function on a thread of its pool, which costs more than the function does.
async def _running(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


RunningService = Annotated[Service, Depends(_running)]
ModelQuery = Annotated[str | None, Query(alias="model", description="Which model answers; by default MODEL_DIR's.")]


async def _asked(request: Request, service: RunningService, name: ModelQuery = None) -> LoadedModel:
    check_query(request)
    return service.model(name)


AskedModel = Annotated[LoadedModel, Depends(_asked)]
