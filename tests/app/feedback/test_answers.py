import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.errors import NotFound
from app.feedback import answers
from app.feedback.answers import RecentAnswer, RecentAnswers
from app.feedback.feedback import Feedback
from app.inference.answers import PredictionSet
from app.settings import Settings


def answer(label: str) -> RecentAnswer:
    return RecentAnswer(label, abstain=False, coverage=None, in_set=None, picture=None, classes=["cat"])


def test_an_answer_is_taken_once() -> None:
    recent = RecentAnswers()
    recent.add("a", answer("cat"))
    assert recent.take("a").label == "cat"
    with pytest.raises(NotFound, match="was given its label before"):
        recent.take("a")


def test_a_newer_answer_takes_the_place_of_one_with_the_same_id() -> None:
    recent = RecentAnswers(most=2)
    for request_id, label in (("a", "cat"), ("b", "dog"), ("a", "ship"), ("c", "frog")):
        recent.add(request_id, answer(label))
    assert recent.take("a").label == "ship"
    with pytest.raises(NotFound):
        recent.take("b")  # the oldest, where there is room for two


def test_what_is_remembered_of_a_thousand_classes_is_small() -> None:
    classes = [f"class {number}" for number in range(1000)]
    answer = SimpleNamespace(prediction_set=PredictionSet(coverage=0.95, labels=classes[:900]), abstain=False)
    feedback = Feedback(Settings(_env_file=None, feedback_sample=0), Path("unused"))
    tracemalloc.start()
    for number in range(20):
        feedback.remember(str(number), answer, SimpleNamespace(label="class 0"), classes)  # type: ignore[arg-type]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 20 < 2000
    assert [feedback.judge(str(number), f"class {number * 100}").covered for number in (8, 9)] == [True, False]


def test_an_answer_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: clock.now))
    recent = RecentAnswers(seconds=10)
    recent.add("a", answer("cat"))
    clock.now = 6
    recent.add("b", answer("dog"))
    clock.now = 11
    with pytest.raises(NotFound, match="older than 10 s"):
        recent.take("a")
    assert recent.take("b").label == "dog"
