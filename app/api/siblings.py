"""What a service and the other workers ask of each other: counts, true labels of answers, and the load of a model."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry

from ..errors import DeadlineExceeded, Internal, InvalidParameter, LoadFailed, LoadInProgress, NotFound, Problem
from ..feedback.feedback import Feedback, Verdict
from ..inference.loaded_model import LoadedModel
from ..inference.repository import Repository
from ..workers.worker import Worker
from .summed_metrics import Summed, counts_of

PATIENCE_SECONDS = 1.0  # for a worker to answer; without it, what it has published before counts
PROBLEMS = {problem.code: problem for problem in (Internal, InvalidParameter, LoadFailed, LoadInProgress)}
logger = logging.getLogger("app.repository")


class Siblings:
    """Of one worker, for one event loop. `statistics` gives what counts_of takes."""

    def __init__(
        self,
        worker: Worker,
        registry: CollectorRegistry,
        repository: Repository,
        feedback: Feedback | None,
        statistics: Callable[[], dict[str, Any]],
    ) -> None:
        self.worker = worker
        self._registry = registry
        self._repository = repository
        self._feedback = feedback
        self._statistics = statistics
        self._loaded_since: dict[str, float] = {}
        on = worker.mail.on
        on("publish", lambda _: self.publish())
        on("judge", self._judge)
        on("loading", self._announce)
        on("prepare", lambda asked: repository.prepare(asked["name"], asked["digest"]))
        on("loaded", self._end_load)

    def publish(self) -> None:
        """Show the others what this worker has counted."""
        try:
            self.worker.part.publish(counts_of(self._registry, self._statistics()))
        except ValueError as error:
            logger.error("counts cannot be published: %s", error)

    async def counts(self) -> list[bytes]:
        """What the others have counted up to now."""
        self.publish()  # what is shown once must not be lost: see app.workers.supervisor
        await self.worker.mail.ask(self.worker.siblings, "publish", None, PATIENCE_SECONDS)
        return self.worker.counts()

    async def metrics(self) -> Summed:
        """The metrics of all workers, those that have ended included."""
        return Summed(self._registry, await self.counts())

    async def judge(self, request_id: str, label: str) -> Verdict | None:
        """What the true label says of an answer that another worker gave. Raises InvalidParameter."""
        asked = {"request_id": request_id, "label": label}
        answers = await self.worker.mail.ask(self.worker.siblings, "judge", asked, PATIENCE_SECONDS)
        for answer in answers.values():
            if "code" in answer:
                raise PROBLEMS[answer["code"]](answer["detail"])
            if answer:
                return Verdict(**answer)
        return None

    async def load(self, name: str, deadline: float) -> LoadedModel:
        """Have all workers load a model anew; see Repository.load."""
        mail = self.worker.mail
        answers = await mail.ask([mail.supervisor], "load", name, deadline - time.monotonic())
        if not answers:
            raise DeadlineExceeded("the load goes on: the repository's index says when it ends")
        if refused := answers[mail.supervisor]:
            code, detail = refused
            raise PROBLEMS.get(code, Internal)(detail)
        return self._repository.models[name]

    def _judge(self, asked: dict[str, str]) -> dict[str, Any]:
        try:
            return asdict(self._feedback.judge(asked["request_id"], asked["label"])) if self._feedback else {}
        except NotFound:
            return {}
        except Problem as problem:
            return {"code": problem.code, "detail": problem.detail}

    def _announce(self, name: str) -> None:
        self._loaded_since[name] = time.monotonic()
        self._repository.announce(name)

    async def _end_load(self, ended: dict[str, Any]) -> None:
        name, reason = ended["name"], ended["reason"]
        model = await self._repository.end_load(name, reason)
        if self.worker.number != min([self.worker.number, *self.worker.siblings]):
            return  # one line is enough
        if model is None:
            logger.warning("not loaded", extra={"fields": {"model": name, "reason": reason}})
            return
        seconds = round(time.monotonic() - self._loaded_since.pop(name, time.monotonic()), 2)
        fields = {"model": name, "version": model.bundle.manifest.version, "seconds": seconds}
        logger.info("loaded", extra={"fields": fields})
