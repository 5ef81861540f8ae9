"""Prediction sets that hold the true class with a stated probability: split conformal prediction.

Least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451): a class is in the set when its calibrated probability
is at least a threshold, and the threshold is an order statistic of the true classes' probabilities on the
calibration split. For exchangeable images the sets then hold the true class with at least the nominal probability,
whatever the network. A class with enough calibration images has a threshold of its own, so that the promise holds for
it alone, and the other classes share one (Mondrian or class-conditional sets, Vovk 2012, arXiv:1209.2673). It promises
nothing for images unlike those.
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
# Calibration images that a threshold of one class must miss: with fewer, chance decides it, and sets grow.
MISSES = 10
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Sets = npt.NDArray[np.bool_]


def fit_conformal(calibrate: Predictions, temperature: float, levels: Sequence[float] = LEVELS) -> Conformal:
    """The thresholds of each level; the default is DEFAULT, or the highest level below it."""
    truth, labels = true_probabilities(calibrate, temperature), calibrate.labels.numpy()
    classes = calibrate.logits.shape[1]
    fitted, lower = [], np.ones(classes)
    for level in sorted(levels):
        groups, common = groups_of(labels, classes, level), threshold(truth, level)
        found = np.array([threshold(truth[group[labels]], level) for group in groups] or [common] * classes)
        # A set of a higher level holds that of a lower one. This can only add to its coverage.
        lower = np.minimum(lower, found)
        by_class = lower.tolist() if groups or (lower < common).any() else None
        fitted.append(ConformalLevel(coverage=level, threshold=common, by_class=by_class))
    return Conformal(default_coverage=max(level for level in levels if level <= DEFAULT), levels=fitted)


def possible_levels(n: int) -> Sequence[float]:
    """The levels that sets fitted on n images can have without naming all classes always; none for few images."""
    return [level for level in LEVELS if covered(n, level) <= n]


def threshold(truth: Floats, level: float) -> float:
    """The largest value that at least ceil((n + 1) level) of the n probabilities reach; 0 when n is too small."""
    missed = len(truth) - covered(len(truth), level)
    return float(np.sort(truth)[missed]) if missed >= 0 else 0.0


def groups_of(labels: Labels, classes: int, level: float) -> list[Sets]:
    """For each class, bool [classes]: the classes whose images give its threshold. Empty if all share one.

    `labels` are of the calibration images. A class is alone if the level lets it miss MISSES of its own. The others are
    together; if they are too few even so, all classes are. A class without images has the threshold of all.
    """
    counts = np.bincount(labels, minlength=classes)
    alone = counts * (1 - level) >= MISSES
    together = ~alone & (counts > 0)
    few = int(counts[together].sum())
    if not alone.any() or (few and covered(few, level) > few):
        return []
    everything = np.ones(classes, bool)
    return [
        np.arange(classes) == label if alone[label] else together if together[label] else everything
        for label in range(classes)
    ]


def covered(n: int, level: float) -> int:
    """The number of n calibration images that must be covered; more than n when n is too small for the level."""
    # The product of an integer and 0.95 may end up slightly above an integer.
    return math.ceil(round((n + 1) * level, 9))


def prediction_sets(values: Floats, at_least: Sequence[float]) -> Sets:
    """bool [N, classes] of probabilities [N, classes] and thresholds [classes]; a set may be empty."""
    sets: Sets = values >= np.asarray(at_least)
    return sets


def served_sets(values: Floats, at_least: Sequence[float]) -> Sets:
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
    return ConformalReport(
        fitted_on=len(calibrate.labels),
        levels=[_scores(level, values, labels, calibrate.labels.numpy()) for level in fitted.levels],
    )


def expected_coverage(level: float, calibrated_on: Sequence[int], tested_on: Sequence[int]) -> tuple[float, float]:
    """The 99 % interval of the share of images that are covered, of groups with thresholds of their own.

    `calibrated_on` and `tested_on` count the images of each group. The coverage of sets fitted on n images is
    Beta(k, n + 1 - k) distributed, k = ceil((n + 1) level), so the number of covered images of a group is
    beta-binomial (Vovk 2012, arXiv:1209.2673). Ties and rounding can only raise it.
    """
    chances = np.ones(1)  # of each number of covered images
    for fitted, tested in zip(calibrated_on, tested_on, strict=True):
        k = covered(fitted, level)
        if k > fitted:  # always covered
            group = np.eye(tested + 1)[tested]
        else:
            group = stats.betabinom(tested, k, fitted + 1 - k).pmf(np.arange(tested + 1))
        chances = np.convolve(chances, group)
    low, high = np.searchsorted(np.cumsum(chances), [0.005, 0.995]) / max(sum(tested_on), 1)
    return (float(low), float(min(high, 1)))


def calibrated(scored: Predictions, temperature: float) -> Floats:
    """float64 [N, classes], bit for bit what the service computes from one view."""
    return np.stack([probabilities(logits[None], temperature) for logits in scored.logits.numpy()])


def true_probabilities(scored: Predictions, temperature: float) -> Floats:
    """float64 [N]: the calibrated probability of each image's true class."""
    truth: Floats = calibrated(scored, temperature)[np.arange(len(scored.labels)), scored.labels.numpy()]
    return truth


def _counts(fitted: Labels, tested: Labels, groups: Sequence[Sets]) -> tuple[list[int], list[int]]:
    """How many of the calibration images, and of the report's, each group of classes has."""
    if not groups:
        return [len(fitted)], [len(tested)]
    different = {group.tobytes(): group for group in groups if not group.all()}.values()
    return [int(group[fitted].sum()) for group in different], [int(group[tested].sum()) for group in different]


def _scores(level: ConformalLevel, values: Floats, labels: Labels, fitted_on: Labels) -> ConformalScores:
    classes = values.shape[1]
    index, thresholds = np.arange(len(labels)), level.thresholds(classes)
    counts = _counts(fitted_on, labels, groups_of(fitted_on, classes, level.coverage))
    raw, served = prediction_sets(values, thresholds), served_sets(values, thresholds)
    holds = served[index, labels]
    sizes = served.sum(1)
    return ConformalScores(
        coverage=level.coverage,
        threshold=level.threshold,
        raw_coverage=float(raw[index, labels].mean()),
        served_coverage=float(holds.mean()),
        by_class=level.by_class,
        expected_coverage=expected_coverage(level.coverage, *counts),
        mean_size=float(sizes.mean()),
        sizes=np.bincount(sizes, minlength=values.shape[1] + 1)[1:].tolist(),
        empty=float((~raw.any(1)).mean()),
        class_coverage=[
            float(holds[labels == label].mean()) if (labels == label).any() else 1.0 for label in range(values.shape[1])
        ],
    )
