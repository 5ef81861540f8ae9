import numpy as np
import pytest
import torch

from training.evaluate.network_outputs import Predictions
from training.evaluate.selective import selective_report, selective_risks


def test_risks_are_the_errors_among_the_most_confident() -> None:
    confidence, wrong = np.array([0.9, 0.5, 0.8, 0.7]), np.array([0.0, 1.0, 1.0, 0.0])
    assert selective_risks(confidence, wrong).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


def test_equal_confidences_have_no_order() -> None:
    wrong = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    shuffled = wrong[np.random.default_rng(0).permutation(5)]
    assert selective_risks(np.ones(5), wrong) == pytest.approx(np.full(5, 0.4))
    assert selective_risks(np.ones(5), shuffled) == pytest.approx(np.full(5, 0.4))


def test_risks_agree_with_a_loop() -> None:
    random = np.random.default_rng(1)
    confidence, wrong = random.random(200), (random.random(200) < 0.3).astype(float)
    by_hand = []
    for count in range(1, 201):
        limit = np.sort(confidence)[::-1][count - 1]
        by_hand.append(wrong[confidence >= limit].mean())
    assert selective_risks(confidence, wrong) == pytest.approx(np.array(by_hand))


@pytest.mark.parametrize("right", [0, 300, 190])
def test_the_selective_report_agrees_with_a_perfect_ranking(right: int) -> None:
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(1)
    labels[right:] = (labels[right:] + 1) % 10
    report = selective_report(Predictions(logits, labels), 1.2)
    errors = (300 - right) / 300
    assert report.curve[-1].coverage == 1 and report.curve[-1].accuracy == pytest.approx(1 - errors)
    assert [one.coverage for one in report.curve] == sorted({one.coverage for one in report.curve})
    # Every mistake last: nothing is wrong until the right ones are through.
    best = sum(max(0, count - right) / count for count in range(1, 301)) / 300
    assert report.optimal_aurc == pytest.approx(best)
    assert report.optimal_aurc <= report.aurc.value <= 1
    assert report.aurc.ci95[0] <= report.aurc.value <= report.aurc.ci95[1]


def test_one_image_has_a_curve_of_one_point() -> None:
    report = selective_report(Predictions(torch.eye(10)[:1], torch.tensor([0])), 1.0)
    assert [(one.coverage, one.accuracy) for one in report.curve] == [(1.0, 1.0)]
