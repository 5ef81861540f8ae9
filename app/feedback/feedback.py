"""Recent answers and pictures together: what is remembered of an answer, and what its true label says of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidParameter
from ..inference.answers import Classification, ImageResult
from ..settings import Settings
from .answers import MOST, RecentAnswer, RecentAnswers
from .pictures import Pictures

LARGE_SET = 3  # labels


@dataclass(frozen=True)
class Verdict:
    """Whether the most probable class was right, and whether the prediction set held the true one (None without).

    abstained, coverage: those of the answer.
    """

    correct: bool
    covered: bool | None
    abstained: bool
    coverage: float | None


class Feedback:
    """Of all models. For one thread; close it when done. Raises SettingsError; see Pictures.

    `worker`: which of `workers` this process is; each remembers its own answers, and a part of what all together may.
    """

    def __init__(self, settings: Settings, folder: Path, worker: int = 0, workers: int = 1) -> None:
        self._sample = settings.feedback_sample
        self._recent = RecentAnswers(MOST // workers)
        most_bytes = settings.feedback_max_bytes // workers
        self._pictures = Pictures(folder, settings.feedback_days, most_bytes, worker, workers) if self._sample else None

    def remember(self, request_id: str, answer: ImageResult, result: Classification, classes: Sequence[str]) -> None:
        """Remember an answer that waits for its label, and perhaps keep a copy of the image if it is an unsure one.

        `classes`: of the model that answered.
        """
        found = answer.prediction_set
        labels = frozenset(found.labels if found else ())
        unsure = answer.abstain or len(labels) >= LARGE_SET
        chosen = unsure and random.random() < self._sample  # noqa: S311  # no secret
        picture = None
        if chosen and self._pictures and result.thumbnail is not None:
            picture = self._pictures.keep(result.thumbnail)
        in_set = bytes(label in labels for label in classes) if found else None
        coverage = found.coverage if found else None
        self._recent.add(request_id, RecentAnswer(result.label, answer.abstain, coverage, in_set, picture, classes))

    def judge(self, request_id: str, label: str) -> Verdict:
        """What the true label says of the answer to that request, once. Raises InvalidParameter and NotFound."""
        if label not in self._recent.find(request_id).classes:
            raise InvalidParameter(f"label: {label[:40]!r} is no class of this model; GET /model lists them")
        answer = self._recent.take(request_id)
        if self._pictures and answer.picture:
            self._pictures.label(answer.picture, label)
        return Verdict(
            correct=answer.label == label,
            covered=None if answer.in_set is None else bool(answer.in_set[answer.classes.index(label)]),
            abstained=bool(answer.abstain),
            coverage=answer.coverage,
        )

    def close(self) -> None:
        """Write the pictures that wait."""
        if self._pictures:
            self._pictures.close()
