import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from app.bundle.report import Epoch
from training.data.cifar10 import CLASSES
from training.evaluate.metrics import (
    build_report,
    confidence_bins,
    f1_intervals,
    report_text,
    wilson,
)
from training.evaluate.network_outputs import Predictions

HISTORY = [
    Epoch(epoch=1, lr=0.1, train_loss=1, train_accuracy=0.5, validation_loss=1, validation_accuracy=0.5, seconds=1)
]


def scored(n: int = 500, seed: int = 0, skill: float = 2.0) -> Predictions:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=random)
    logits = torch.randn(n, 10, generator=random)
    logits[torch.arange(n), labels] += skill
    return Predictions(logits, labels)


def test_the_report_is_scikit_learn_s() -> None:
    some = scored()
    truth, predicted = some.labels.numpy(), some.predicted()
    report = build_report(some, HISTORY)
    assert (report.split, report.n, report.history) == ("test", 500, HISTORY)
    assert report.accuracy.value == pytest.approx(reference.accuracy_score(truth, predicted))
    assert report.confusion_matrix == reference.confusion_matrix(truth, predicted).tolist()
    expected = reference.classification_report(truth, predicted, target_names=CLASSES, output_dict=True)
    for row in [*report.per_class]:
        theirs = expected[row.label]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
        assert row.f1_ci95[0] < row.f1 < row.f1_ci95[1]
    for ours, name in ((report.macro_avg, "macro avg"), (report.weighted_avg, "weighted avg")):
        theirs = expected[name]
        assert (ours.precision, ours.recall, ours.f1, ours.support) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert [row.class_id for row in report.per_class] == list(range(10))


def test_rows_of_the_confusion_matrix_are_the_true_classes() -> None:
    one = Predictions(torch.nn.functional.one_hot(torch.tensor([3]), 10).float(), torch.tensor([5]))
    assert build_report(one, HISTORY).confusion_matrix[5][3] == 1


def test_a_class_that_never_occurs_has_zeros_and_no_warning() -> None:
    report = build_report(Predictions(torch.eye(10)[:9], torch.arange(9)), HISTORY)
    assert report.per_class[9].model_dump(exclude={"class_id", "label"}) == {
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "support": 0,
        "f1_ci95": (0, 1),
    }


def test_the_report_s_text_has_two_digits() -> None:
    text = report_text(scored())
    assert text == reference.classification_report(
        scored().labels.numpy(), scored().predicted(), target_names=list(CLASSES), digits=2
    )
    assert "airplane" in text and "macro avg" in text


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I; and statsmodels' proportion_confint
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (50, 100, 0.4038, 0.5962),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_against_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("hits", [0, 4])
def test_four_images_of_a_class_make_nothing_certain(hits: int) -> None:
    counts = np.array([[hits, 4 - hits], [0, 100]])
    (low, high), _ = f1_intervals(counts)
    # statsmodels' proportion_confint(hits, 4, method="wilson") is 0 to 0.4899, and 0.5101 to 1
    assert (low, high) == pytest.approx((0, 0.6576) if hits == 0 else (0.6756, 1), abs=1e-4)


def test_with_many_images_the_intervals_are_those_of_resampled_images() -> None:
    some = scored(n=2000, seed=4)
    truth, predicted = some.labels.numpy(), some.predicted()
    random = np.random.default_rng(1)
    draws = []
    for _ in range(400):
        chosen = random.integers(0, 2000, 2000)
        draws.append(
            reference.f1_score(truth[chosen], predicted[chosen], labels=range(10), average=None, zero_division=0)
        )
    expected = np.quantile(draws, [0.025, 0.975], axis=0).T
    ours = f1_intervals(reference.confusion_matrix(truth, predicted))
    assert ours == pytest.approx(expected, abs=0.02)


def test_bins_against_a_slow_reference() -> None:
    some = scored(n=400)
    confidence, correct = some.probabilities().max(1), some.correct()
    bins = confidence_bins(some, bins=15)
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        assert bins.counts[index] == inside.sum()
        if inside.any():
            assert bins.confidence[index] == pytest.approx(confidence[inside].mean())
            assert bins.accuracy[index] == pytest.approx(correct[inside].mean())
        else:
            assert np.isnan(bins.accuracy[index])
    assert bins.counts.sum() == 400


def test_full_confidence_falls_into_the_last_bin() -> None:
    sure = Predictions(torch.eye(10) * 1000, torch.arange(10))
    assert confidence_bins(sure).counts.tolist() == [0] * 14 + [10]
