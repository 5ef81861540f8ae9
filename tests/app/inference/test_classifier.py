import asyncio
import io
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from app.bundle.manifest import Abstention
from app.bundle.reader import Bundle
from app.errors import DeadlineExceeded
from app.inference.classifier import Classifier
from app.inference.decisions import prediction_set, probabilities, top_k
from app.inference.engine import Answer, Engine
from app.inference.sessions import Outputs, Session
from app.settings import Settings


def test_probabilities_are_a_softmax() -> None:
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    expected = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    np.testing.assert_allclose(probabilities(logits, 1.0), expected)


def test_views_are_averaged_as_logits_before_the_temperature() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 4.0]], np.float32)
    np.testing.assert_allclose(probabilities(logits, 2.0), probabilities(np.array([[0.5, 1.0]], np.float32), 1.0))


def test_a_higher_temperature_is_less_sure_and_ranks_the_same() -> None:
    logits = np.array([[3.0, -1.0, 0.5]], np.float32)
    sure, doubtful = probabilities(logits, 1.0), probabilities(logits, 3.0)
    assert max(sure) > max(doubtful)
    assert top_k(sure, 3) == top_k(doubtful, 3) == [0, 2, 1]


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_logits_do_not_overflow(value: float) -> None:
    result = probabilities(np.array([[value, 0.0]], np.float32), 1.0)
    assert sum(result) == pytest.approx(1)
    assert np.isfinite(result).all()


def test_equal_values_rank_by_index() -> None:
    assert top_k([0.25, 0.5, 0.25, 0.0], 3) == [1, 0, 2]


LOGITS = arrays(np.float32, (1, 10), elements=st.floats(-50, 50, width=32))
PROBABILITIES = LOGITS.map(lambda logits: probabilities(logits, 1.0))
FRACTIONS = st.floats(0, 1)


@given(LOGITS, st.floats(0.05, 20))
def test_a_temperature_never_changes_the_most_probable_class(logits: np.ndarray, temperature: float) -> None:
    values = probabilities(logits, temperature)
    assert sum(values) == pytest.approx(1)
    order = top_k(logits[0].tolist(), 10)
    assert (np.diff([values[index] for index in order]) <= 0).all()


def test_a_set_holds_the_classes_that_reach_the_threshold_most_probable_first() -> None:
    values = [0.1, 0.5, 0.3, 0.1]
    assert prediction_set(values, [0.3] * 4) == [1, 2]
    assert prediction_set(values, [0.1] * 4) == [1, 2, 0, 3]
    assert prediction_set(values, [0.6] * 4) == [1]
    assert prediction_set(values, [0.05, 0.6, 0.4, 0.2]) == [1, 0]


@given(PROBABILITIES, FRACTIONS)
def test_a_set_begins_with_the_most_probable_and_misses_nothing(values: list[float], threshold: float) -> None:
    indices = prediction_set(values, [threshold] * len(values))
    assert indices[0] == np.argmax(values)
    assert len(set(indices)) == len(indices)
    assert set(np.flatnonzero(np.array(values) >= threshold)) <= set(indices)
    assert all(values[index] >= threshold for index in indices[1:])
    assert (np.diff([values[index] for index in indices]) <= 0).all()


@given(PROBABILITIES, FRACTIONS, FRACTIONS)
def test_a_lower_threshold_which_is_a_higher_coverage_gives_a_superset(
    values: list[float], one: float, other: float
) -> None:
    low, high = sorted([one, other])
    larger, smaller = (prediction_set(values, [threshold] * len(values)) for threshold in (low, high))
    assert larger[: len(smaller)] == smaller


class Said:
    """An engine that gives the same outputs, whatever the images."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs

    def submit(self, *_: object, **__: object) -> Future[Answer]:
        answer: Future[Answer] = Future()
        answer.set_result(Answer(self.outputs, 0, 0))
        return answer

    async def infer(self, *_: object, **__: object) -> Answer:
        return Answer(self.outputs, 0, 0)

    def close(self) -> None:
        pass


def classifier_of(loaded: tuple[Bundle, Session], outputs: Outputs, **manifest: object) -> Classifier:
    settings = Settings(inference_threads=1)
    return Classifier(loaded[0].manifest.model_copy(update=manifest), Said(outputs), settings)


async def test_the_score_is_the_mean_over_views_and_abstains_only_above_the_threshold(
    loaded: tuple[Bundle, Session], cat: bytes
) -> None:
    outputs = Outputs(np.zeros((3, 10), np.float32), np.array([0, 1, 5], np.float32))
    for threshold, expected in [(1.99, True), (2, False), (2.01, False)]:
        abstention = Abstention(method="energy", threshold=threshold, kept=0.95)
        classifier = classifier_of(loaded, outputs, abstention=abstention)
        result = await classifier.classify(cat, time.monotonic() + 30)
        assert (result.ood_score, result.abstain, result.views) == (2, expected, 3)
        answer = result.answer(1)
        assert (answer.ood_score, answer.ood_threshold, answer.abstain) == (2, threshold, expected)
        classifier.close()


@pytest.mark.parametrize("score", [1.0000004, 1.0000001, 0.9999996])
async def test_abstaining_agrees_with_the_score_and_threshold_in_the_answer(
    loaded: tuple[Bundle, Session], cat: bytes, score: float
) -> None:
    outputs = Outputs(np.zeros((1, 10), np.float32), np.array([score], np.float64))
    classifier = classifier_of(loaded, outputs, abstention=Abstention(method="energy", threshold=1.00000024, kept=0.95))
    answer = (await classifier.classify(cat, time.monotonic() + 30)).answer(1)
    assert answer.abstain is (answer.ood_score > answer.ood_threshold) is False
    classifier.close()


async def test_each_image_of_a_tensor_has_its_own_score(loaded: tuple[Bundle, Session]) -> None:
    outputs = Outputs(np.eye(2, 10, dtype=np.float32), np.array([-9, 9], np.float32))
    classifier = classifier_of(loaded, outputs, abstention=Abstention(method="energy", threshold=0, kept=0.95))
    results = await classifier.classify_pixels(np.zeros((2, 32, 32, 3), np.uint8), time.monotonic() + 30)
    assert [(result.ood_score, result.abstain) for result in results] == [(-9, False), (9, True)]
    assert [result.class_id for result in results] == [0, 1]
    classifier.close()


async def test_a_bundle_without_calibration_gives_none(loaded: tuple[Bundle, Session], cat: bytes) -> None:
    outputs = Outputs(np.zeros((1, 10), np.float32))
    classifier = classifier_of(loaded, outputs, abstention=None, calibration=None)
    answer = (await classifier.classify(cat, time.monotonic() + 30)).answer(3)
    assert answer.prediction_set is answer.abstain is answer.ood_score is answer.ood_threshold is None
    assert len(answer.predictions) == 3
    classifier.close()


async def test_waiting_for_an_answer_ends_at_the_deadline(loaded: tuple[Bundle, Session], cat: bytes) -> None:
    submitted: Future[Answer] = Future()
    engine = SimpleNamespace(submit=lambda *_, **__: submitted, close=lambda: None)
    classifier = Classifier(loaded[0].manifest, engine, Settings(inference_threads=1))
    with pytest.raises(DeadlineExceeded):
        await classifier.classify(cat, time.monotonic() + 0.05)
    assert submitted.cancelled()
    classifier.close()


@pytest.mark.parametrize("here", [True, False])
async def test_a_minute_picture_is_answered_without_another_thread_where_nobody_else_waits(
    loaded: tuple[Bundle, Session], cat: bytes, here: bool
) -> None:
    threads: list[int] = []

    def run(images: np.ndarray, maps: bool) -> Outputs:
        threads.append(threading.get_ident())
        return loaded[1].run(images, maps)

    engine = Engine(run, threads=1, max_batch_images=8)
    classifier = Classifier(loaded[0].manifest, engine, Settings(inference_threads=1))
    assert (await classifier.classify(cat, time.monotonic() + 30, here=here)).label == "cat"
    assert (threads == [threading.get_ident()]) is here
    classifier.close()


async def test_concurrent_and_sequential_requests_have_the_same_answers(loaded: tuple[Bundle, Session]) -> None:
    noise = np.random.default_rng(0)
    contents = []
    for _ in range(60):
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(out, "PNG")
        contents.append(out.getvalue())
    engine = Engine(loaded[1].run, threads=3, max_batch_images=8)
    classifier = Classifier(loaded[0].manifest, engine, Settings(inference_threads=3))
    deadline = time.monotonic() + 60
    alone = [(await classifier.classify(content, deadline)).probabilities for content in contents]
    together = await asyncio.gather(*(classifier.classify(content, deadline) for content in contents))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.probabilities, one, atol=1e-5)
    assert len({tuple(np.round(values, 4)) for values in alone}) == len(contents)  # so that none could be another's
    classifier.close()
