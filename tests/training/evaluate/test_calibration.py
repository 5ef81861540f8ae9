import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from app.inference.decisions import probabilities, top_k
from training.evaluate.calibration import (
    brier_score,
    calibration_report,
    error_by_chance,
    expected_calibration_error,
    fit_temperature,
    scores,
)
from training.evaluate.network_outputs import Predictions


def drawn(n: int, temperature: float, seed: int = 0) -> Predictions:
    """n images with labels drawn from softmax(logits / temperature), so the right temperature is known."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 10)) * 4
    scaled = np.exp(logits / temperature)
    cumulative = (scaled / scaled.sum(1, keepdims=True)).cumsum(1)
    labels = (random.random((n, 1)) > cumulative).sum(1).clip(0, 9)
    return Predictions(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_right_temperature_is_found(temperature: float) -> None:
    assert fit_temperature(drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_where_the_likelihood_is_highest() -> None:
    some = drawn(2000, 1.7)
    best = fit_temperature(some)

    def loss(temperature: float) -> float:
        return log_loss(some.labels.numpy(), (some.logits.double() / temperature).softmax(1).numpy(), labels=range(10))

    assert all(loss(best) < loss(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_labels_that_are_always_right_or_always_wrong_stay_within_bounds() -> None:
    some = drawn(100, 1.0)
    right = Predictions(some.logits, some.logits.argmax(1))
    wrong = Predictions(some.logits, some.logits.argmin(1))
    assert fit_temperature(right) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(wrong) == pytest.approx(20, rel=0.01)


def test_a_fitted_temperature_mends_overconfidence() -> None:
    report = calibration_report(drawn(5000, 2.0, seed=1), drawn(5000, 2.0, seed=2))
    assert report.fitted_on == 5000
    assert report.temperature == pytest.approx(2.0, rel=0.1)
    for name in ("ece", "nll", "brier"):
        before, after = getattr(report.before, name), getattr(report.after, name)
        assert after.value < before.value
        assert before.ci95[0] < before.ci95[1]
    assert report.after.ece.value < 0.02 < report.before.ece.value


def test_scores_agree_with_scikit_learn() -> None:
    some = drawn(500, 1.0)
    probabilities = some.logits.double().softmax(1).numpy()
    assert scores(some, 1.0).nll.value == pytest.approx(log_loss(some.labels.numpy(), probabilities, labels=range(10)))
    truth = np.eye(10)[some.labels.numpy()]
    assert scores(some, 1.0).brier.value == pytest.approx(((probabilities - truth) ** 2).sum(1).mean())


def test_reliability_bins_hold_every_image_once() -> None:
    some = drawn(500, 1.0)
    bins = scores(some, 2.0).bins
    assert sum(one.images for one in bins) == 500
    assert sum(one.images * one.accuracy for one in bins) == pytest.approx(some.correct().sum())
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)
    confidence = some.probabilities(2.0).max(1)
    assert sum(one.images * one.confidence for one in bins) == pytest.approx(confidence.sum(dtype=float))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    correct = np.array([1.0, 1.0, 0.0, 1.0])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(0.0)
    assert expected_calibration_error(np.array([0.7]), np.array([1.0])) == pytest.approx(0.3)


@given(
    confidences=st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0.1, 1), min_size=1, max_size=60),
    bins=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_calibration_error_agrees_with_a_loop_over_bins(confidences: list[float], bins: int, seed: int) -> None:
    correct = np.random.default_rng(seed).integers(0, 2, len(confidences)).astype(float)
    ranked = sorted(zip(confidences, correct.tolist(), strict=True), key=lambda one: one[0])
    error, begun = 0.0, 0
    count = min(bins, len(ranked))
    for place in range(count):
        # The first bins are one larger where there is a remainder.
        part = ranked[begun : (begun := begun + len(ranked) // count + (place < len(ranked) % count))]
        confidence, accuracy = (sum(values) / len(part) for values in zip(*part, strict=True))
        error += len(part) / len(ranked) * abs(confidence - accuracy)
    assert begun == len(ranked)
    assert expected_calibration_error(np.array(confidences), correct, bins) == pytest.approx(error, abs=1e-12)


def test_the_brier_score_is_from_zero_to_two() -> None:
    sure = np.eye(10)[[3, 4]]
    assert brier_score(sure, np.array([3, 5])).tolist() == [0, 2]


@given(st.floats(0.1, 20), st.integers(0, 100))
def test_a_temperature_keeps_the_ranking(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, 10)).astype(np.float32) * 5
    assert top_k(probabilities(logits, temperature), 10) == top_k(probabilities(logits, 1.0), 10)


def test_exact_probabilities_have_an_error_within_the_range_of_chance() -> None:
    exact, wrong = scores(drawn(4000, 1.3, seed=1), 1.3), scores(drawn(4000, 1.3, seed=1), 0.5)
    assert exact.ece_by_chance and exact.ece_by_chance[0] <= exact.ece.value <= exact.ece_by_chance[1]
    assert wrong.ece_by_chance and wrong.ece.value > wrong.ece_by_chance[1]
    assert error_by_chance(np.ones(50)) == (0, 0)
