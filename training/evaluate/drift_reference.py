"""The distribution of answers on the calibration split, which the service compares its traffic with (drift)."""

import numpy as np

from app.bundle.manifest import Reference
from training.evaluate.conformal import calibrated
from training.evaluate.network_outputs import Predictions

BINS = 10


def drift_reference(calibrate: Predictions, temperature: float) -> Reference:
    """Counts of predicted classes and of confidences on the calibration split.

    A good network is nearly certain of most images, so almost all would fall into the last of several bins of equal
    width. The edges are quantiles instead, so that each bin holds about a tenth.
    """
    values = calibrated(calibrate, temperature)
    confidence = values.max(1)
    # Answers have six digits too.
    inner = np.round(np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1]), 6)
    edges = np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]]))
    return Reference(
        predicted=np.bincount(values.argmax(1), minlength=values.shape[1]).tolist(),
        confidence_edges=edges.tolist(),
        confidence=np.histogram(confidence, edges)[0].tolist(),
    )
