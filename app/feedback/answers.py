"""Answers of the recent past, by the ids of their requests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import NotFound

MOST = 1 << 16  # some 30 MB; of a model with a thousand classes 100 MB
SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RecentAnswer:
    """label: the most probable class; in_set: whether each class is in the prediction set, a byte a class.

    coverage: of the prediction set; it and `in_set` are None without one. picture: the name of the copy that is kept of
    the image, None without one. classes: those of the model.
    """

    label: str
    abstain: bool | None
    coverage: float | None
    in_set: bytes | None
    picture: str | None
    classes: Sequence[str]


class RecentAnswers:
    """At most `most` answers of at most the last `seconds`; older ones are forgotten. For one thread."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._answers: dict[str, tuple[float, RecentAnswer]] = {}  # the oldest first

    def add(self, request_id: str, answer: RecentAnswer) -> None:
        """Remember it, instead of an older answer to a request of the same id."""
        self._answers.pop(request_id, None)
        self._answers[request_id] = time.monotonic(), answer
        self._forget()

    def take(self, request_id: str) -> RecentAnswer:
        """The answer, which is forgotten with that. Raises NotFound."""
        answer = self.find(request_id)
        del self._answers[request_id]
        return answer

    def find(self, request_id: str) -> RecentAnswer:
        """The answer. Raises NotFound."""
        self._forget()
        found = self._answers.get(request_id)
        if found is None:
            raise NotFound(
                f"no answer of /predict with this id waits for its label: it is unknown, was given its label before, "
                f"is older than {self._seconds:g} s, or {self._most} newer ones wait"
            )
        return found[1]

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._answers:
            request_id, (added, _) = next(iter(self._answers.items()))
            if added >= oldest and len(self._answers) <= self._most:
                break
            del self._answers[request_id]
