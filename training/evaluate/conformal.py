"""Prediction sets that hold the true class with a stated probability: split conformal prediction.

Least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451): a class is in the set when its calibrated probability
is at least a threshold, and the threshold is an order statistic of the true classes' probabilities on the
calibration split. For exchangeable images the sets then hold the true class with at least the nominal probability,
whatever the network. It promises nothing for a single class, nor for images unlike those.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from app.bundle.manifest import Conformal, ConformalLevel
from app.bundle.report import ConformalReport, ConformalScores
from app.inference.decisions import probabilities
from training.evaluate.network_outputs import Predictions

LEVELS, DEFAULT = (0.95, 0.99, 0.995), 0.99
Floats = npt.NDArray[np.float64]
Sets = npt.NDArray[np.bool_]


def fit_conformal(calibrate: Predictions, temperature: float, levels: Sequence[float] = LEVELS) -> Conformal:
    """The threshold of each level; the default is DEFAULT, or the highest level below it."""
    truth = true_probabilities(calibrate, temperature)
    fitted = [ConformalLevel(coverage=level, threshold=threshold(truth, level)) for level in levels]
    return Conformal(default_coverage=max(level for level in levels if level <= DEFAULT), levels=fitted)


def possible_levels(n: int) -> Sequence[float]:
    """The levels that sets fitted on n images can have without naming all classes always; none for few images."""
    return [level for level in LEVELS if covered(n, level) <= n]


def threshold(truth: Floats, level: float) -> float:
    """The largest value that at least ceil((n + 1) level) of the n probabilities reach; 0 when n is too small."""
    missed = len(truth) - covered(len(truth), level)
    return float(np.sort(truth)[missed]) if missed >= 0 else 0.0


def covered(n: int, level: float) -> int:
    """The number of n calibration images that must be covered; more than n when n is too small for the level."""
    # The product of an integer and 0.95 may end up slightly above an integer.
    return math.ceil(round((n + 1) * level, 9))


def prediction_sets(values: Floats, at_least: float) -> Sets:
    """bool [N, classes] of probabilities [N, classes]; a set may be empty."""
    sets: Sets = values >= at_least
    return sets


def served_sets(values: Floats, at_least: float) -> Sets:
    """The sets that are served: never empty, since they include the most probable class."""
    sets = prediction_sets(values, at_least)
    sets[np.arange(len(values)), values.argmax(1)] = True
    return sets


def conformal_report(
    calibrate: Predictions, test: Predictions, temperature: float, levels: Sequence[float] = LEVELS
) -> ConformalReport:
    """Coverage and size of the sets on the test split."""
    fitted = fit_conformal(calibrate, temperature, levels)
    values, labels = calibrated(test, temperature), test.labels.numpy()
    n = len(calibrate.labels)
    return ConformalReport(fitted_on=n, levels=[_scores(level, values, labels, n) for level in fitted.levels])


def expected_coverage(level: float, calibrated_on: int, tested_on: int) -> tuple[float, float]:
    """The 99 % interval of the share of `tested_on` images that are covered.

    The coverage of sets fitted on n images is Beta(k, n + 1 - k) distributed, k = ceil((n + 1) level), so the number
    of covered images is beta-binomial (Vovk 2012, arXiv:1209.2673). Ties and rounding can only raise it.
    """
    k = covered(calibrated_on, level)
    if k > calibrated_on:
        return (1.0, 1.0)
    counts = stats.betabinom(tested_on, k, calibrated_on + 1 - k)
    low, high = counts.ppf([0.005, 0.995]) / tested_on
    return (float(low), float(high))


def calibrated(scored: Predictions, temperature: float) -> Floats:
    """float64 [N, classes], bit for bit what the service computes from one view."""
    return np.stack([probabilities(logits[None], temperature) for logits in scored.logits.numpy()])


def true_probabilities(scored: Predictions, temperature: float) -> Floats:
    """float64 [N]: the calibrated probability of each image's true class."""
    truth: Floats = calibrated(scored, temperature)[np.arange(len(scored.labels)), scored.labels.numpy()]
    return truth


def _scores(level: ConformalLevel, values: Floats, labels: npt.NDArray[np.int64], n: int) -> ConformalScores:
    index = np.arange(len(labels))
    raw, served = prediction_sets(values, level.threshold), served_sets(values, level.threshold)
    holds = served[index, labels]
    sizes = served.sum(1)
    return ConformalScores(
        coverage=level.coverage,
        threshold=level.threshold,
        raw_coverage=float(raw[index, labels].mean()),
        served_coverage=float(holds.mean()),
        expected_coverage=expected_coverage(level.coverage, n, len(labels)),
        mean_size=float(sizes.mean()),
        sizes=np.bincount(sizes, minlength=values.shape[1] + 1)[1:].tolist(),
        empty=float((~raw.any(1)).mean()),
        class_coverage=[
            float(holds[labels == label].mean()) if (labels == label).any() else 1.0 for label in range(values.shape[1])
        ],
    )
