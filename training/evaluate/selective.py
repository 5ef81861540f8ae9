"""Answering only when confident: risk and coverage (Geifman & El-Yaniv 2017, arXiv:1705.08500)."""

import numpy as np
import numpy.typing as npt

from app.bundle.report import Selection, SelectiveReport
from training.evaluate.calibration import estimate
from training.evaluate.conformal import calibrated
from training.evaluate.network_outputs import Predictions

POINTS = 100  # of the curve in the report
Floats = npt.NDArray[np.float64]


def selective_report(test: Predictions, temperature: float) -> SelectiveReport:
    """Risk and coverage when images are ranked by the calibrated probability of the answer."""
    confidence = calibrated(test, temperature).max(1)
    wrong = (~test.correct()).astype(np.float64)
    risks = selective_risks(confidence, wrong)
    n = len(wrong)
    answered = np.unique(np.ceil(np.linspace(0, 1, POINTS + 1)[1:] * n).astype(int))
    return SelectiveReport(
        aurc=estimate(lambda index: float(selective_risks(confidence[index], wrong[index]).mean()), n),
        optimal_aurc=float(selective_risks(-wrong, wrong).mean()),
        curve=[Selection(coverage=count / n, accuracy=1 - risks[count - 1]) for count in answered],
    )


def selective_risks(confidence: Floats, wrong: Floats) -> Floats:
    """[N]: the share of errors among the 1, 2, ... N most confident answers. Their mean is the AURC.

    confidence, wrong: [N]. Images of equal confidence have no order, so each counts with their mean error.
    """
    _, group = np.unique(-confidence, return_inverse=True)  # 0: the most confident
    shared = np.bincount(group, wrong) / np.bincount(group)
    in_order = shared[np.sort(group)]
    risks: Floats = np.minimum(np.cumsum(in_order) / np.arange(1, len(wrong) + 1), 1.0)
    return risks
