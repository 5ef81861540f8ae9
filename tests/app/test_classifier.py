import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from app.bundle import Bundle
from app.classifier import Classifier, probabilities, top_k
from app.images import EncodedImage
from app.sessions import Session
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
    assert sure.max() > doubtful.max()
    assert top_k(sure, 3) == top_k(doubtful, 3) == [0, 2, 1]


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_logits_do_not_overflow(value: float) -> None:
    result = probabilities(np.array([[value, 0.0]], np.float32), 1.0)
    assert result.sum() == pytest.approx(1)
    assert np.isfinite(result).all()


def test_equal_values_rank_by_index() -> None:
    assert top_k(np.array([0.25, 0.5, 0.25, 0.0]), 3) == [1, 0, 2]


async def test_a_decode_holds_its_pixels_until_its_thread_is_done(
    loaded: tuple[Bundle, Session], cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(*_: object) -> np.ndarray:
        begun.set()
        assert end.wait(30)
        return np.zeros((1, 32, 32, 3), np.uint8)

    monkeypatch.setattr(EncodedImage, "thumbnails", slow)
    classifier = Classifier(loaded[0].manifest, SimpleNamespace(), Settings(inference_threads=1))
    call = asyncio.create_task(classifier.classify(cat, time.monotonic() + 30))
    await asyncio.to_thread(begun.wait, 30)
    call.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert classifier._pixels.used > 0
    end.set()
    await asyncio.wait({call})
    assert call.cancelled()
    assert classifier._pixels.used == 0
    classifier.close()
