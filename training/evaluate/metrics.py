"""Metrics from saved logits: pure functions that need neither the network nor the images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from app.bundle.report import CalibrationReport, ClassScores, Epoch, Interval, Report, Scores
from training.data.cifar10 import CLASSES
from training.evaluate.network_outputs import Predictions

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def build_report(
    scored: Predictions,
    history: Sequence[Epoch],
    calibration: CalibrationReport | None = None,
    split: str = "test",
    classes: Sequence[str] = CLASSES,
) -> Report:
    """The report without its sections on trust, except `calibration`."""
    truth, predicted = scored.labels.numpy(), scored.predicted()
    ids = range(len(classes))
    counts = confusion_matrix(truth, predicted, labels=ids)
    columns = precision_recall_fscore_support(truth, predicted, labels=ids, zero_division=0)
    intervals = f1_intervals(counts)
    per_class = [
        ClassScores(
            class_id=class_id,
            label=classes[class_id],
            precision=precision,
            recall=recall,
            f1=f1,
            support=support,
            f1_ci95=(intervals[class_id, 0], intervals[class_id, 1]),
        )
        for class_id, (precision, recall, f1, support) in enumerate(zip(*columns, strict=True))
    ]
    return Report(
        split=split,
        n=len(truth),
        accuracy=Interval(value=scored.accuracy(), ci95=wilson(int(scored.correct().sum()), len(truth))),
        per_class=per_class,
        macro_avg=_average(truth, predicted, ids, "macro"),
        weighted_avg=_average(truth, predicted, ids, "weighted"),
        confusion_matrix=counts.tolist(),
        calibration=calibration,
        history=list(history),
    )


def report_text(scored: Predictions, classes: Sequence[str] = CLASSES) -> str:
    """scikit-learn's classification_report with two digits."""
    text: str = classification_report(
        scored.labels.numpy(),
        scored.predicted(),
        labels=range(len(classes)),
        target_names=classes,
        digits=2,
        zero_division=0,
    )
    return text


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a fraction (Wilson 1927, JASA 22): sound near 0 and 1, unlike the normal one."""
    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


def share(of: npt.NDArray[np.bool_]) -> Interval:
    """The share of true values [N], with its interval."""
    return Interval(value=float(of.mean()), ci95=wilson(int(of.sum()), len(of)))


def f1_intervals(counts: Counts) -> Floats:
    """95 % intervals of each class's F1 from a confusion matrix [classes, classes], rows true: float64 [classes, 2].

    F1 / (2 - F1) is the share of hits among the images that are of the class or were taken for it. Wilson's interval of
    that share becomes F1's (the "Wilson indirect method" of Lam et al. 2023, arXiv:2309.14621). A bootstrap would call
    an F1 of 0 or 1 certain, after however few images. Without any such image the interval is all that is possible.
    """
    hits = np.diagonal(counts)
    images = counts.sum(0) + counts.sum(1) - hits
    shares = np.array(
        [wilson(*pair) if pair[1] else (0, 1) for pair in zip(hits.tolist(), images.tolist(), strict=True)]
    )
    intervals: Floats = 2 * shares / (1 + shares)
    return intervals


class Bins(NamedTuple):
    """Images by confidence, in bins of equal width: how many, their mean confidence, their accuracy (NaN: none)."""

    counts: Counts
    confidence: Floats
    accuracy: Floats


def confidence_bins(scored: Predictions, temperature: float = 1.0, bins: int = 15) -> Bins:
    """Bin k of b holds confidences in (k / b, (k + 1) / b]."""
    confidence = scored.probabilities(temperature).max(1).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        means = [np.bincount(place, values, bins) / counts for values in (confidence, scored.correct())]
    return Bins(counts, *means)


def _average(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], ids: Sequence[int], kind: str) -> Scores:
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=ids, average=kind, zero_division=0
    )
    return Scores(precision=precision, recall=recall, f1=f1, support=len(truth))
