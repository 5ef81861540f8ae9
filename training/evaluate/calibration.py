"""Calibrated probabilities: one temperature, fitted on the calibration split, and its effect on the test split."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from app.bundle.report import CalibrationReport, CalibrationScores, ConfidenceBin, Estimate
from training.evaluate.metrics import confidence_bins
from training.evaluate.network_outputs import Predictions

BINS = 15
RESAMPLES, SEED = 1000, 0
Floats = npt.NDArray[np.float64]


def fit_temperature(scored: Predictions) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Searched between 0.05 and 20; the likelihood is unimodal in the temperature's logarithm.
    """

    def loss(log_temperature: float) -> float:
        return float(log_losses(scored, np.exp(log_temperature)).mean())

    found = minimize_scalar(  # type: ignore[no-untyped-call]
        loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def log_losses(scored: Predictions, temperature: float) -> Floats:
    """float64 [N], in nats: minus the logarithm of each true class's probability."""
    logits, labels = _float64(scored)
    return negative_log_likelihood(log_softmax(logits / temperature, axis=1), labels)


def calibration_report(calibrate: Predictions, test: Predictions) -> CalibrationReport:
    """The temperature fitted on the calibration split, and scores of the test split without and with it."""
    temperature = fit_temperature(calibrate)
    return CalibrationReport(
        fitted_on=len(calibrate.labels),
        temperature=temperature,
        before=scores(test, 1.0),
        after=scores(test, temperature),
    )


def scores(scored: Predictions, temperature: float) -> CalibrationScores:
    """Calibration error, log-likelihood and Brier score, each with its 95 % percentile bootstrap over the images."""
    logits, labels = _float64(scored)
    log_probabilities = log_softmax(logits / temperature, axis=1)
    probabilities = np.exp(log_probabilities)
    confidence = probabilities.max(1)
    correct = (logits.argmax(1) == labels).astype(np.float64)
    likelihood, brier = negative_log_likelihood(log_probabilities, labels), brier_score(probabilities, labels)
    return CalibrationScores(
        ece=estimate(lambda index: expected_calibration_error(confidence[index], correct[index]), len(labels)),
        ece_by_chance=error_by_chance(confidence),
        nll=estimate(lambda index: likelihood[index].mean(), len(labels)),
        brier=estimate(lambda index: brier[index].mean(), len(labels)),
        bins=reliability_bins(scored, temperature),
    )


def reliability_bins(scored: Predictions, temperature: float) -> list[ConfidenceBin]:
    """The bins of a reliability diagram (DeGroot & Fienberg 1983), without empty ones."""
    rows = zip(*confidence_bins(scored, temperature), strict=True)
    return [
        ConfidenceBin(images=images, confidence=confidence, accuracy=accuracy)
        for images, confidence, accuracy in rows
        if images
    ]


def expected_calibration_error(confidence: Floats, correct: Floats, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over `bins` bins of equally many images (Nguyen & O'Connor 2015).

    confidence, correct: [N], the top answer's probability and whether it is right (0 or 1).
    """
    order = np.argsort(confidence, kind="stable")
    gaps = [abs(confidence[part].sum() - correct[part].sum()) for part in np.array_split(order, min(bins, len(order)))]
    return float(sum(gaps) / len(order))


def error_by_chance(confidence: Floats) -> tuple[float, float]:
    """The 95 % range of the expected calibration error if `confidence`, float64 [N], were exact.

    Results are drawn from the probabilities themselves (consistency resampling, Bröcker & Smith 2007,
    doi:10.1175/WAF993.1, here without resampling the images).
    """
    random = np.random.default_rng(SEED)
    drawn = [
        expected_calibration_error(confidence, (random.random(len(confidence)) < confidence).astype(np.float64))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return (float(low), float(high))


def negative_log_likelihood(log_probabilities: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """[N], in nats, of log-probabilities [N, classes]."""
    chosen: Floats = -log_probabilities[np.arange(len(labels)), labels]
    return chosen


def brier_score(probabilities: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """[N], 0 to 2: squared distance of probabilities [N, classes] from the truth (Brier 1950)."""
    distance = probabilities.copy()
    distance[np.arange(len(labels)), labels] -= 1
    squares: Floats = (distance**2).sum(1)
    return squares


def estimate(statistic: Callable[[npt.NDArray[np.int64]], float], n: int) -> Estimate:
    random = np.random.default_rng(SEED)
    resampled = [statistic(random.integers(n, size=n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value=float(statistic(np.arange(n))), ci95=(float(low), float(high)))


def _float64(scored: Predictions) -> tuple[Floats, npt.NDArray[np.int64]]:
    return scored.logits.numpy().astype(np.float64), scored.labels.numpy()
