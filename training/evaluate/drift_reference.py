"""What answers to images like the training images look like; the service compares its traffic with it."""

import numpy as np

from app.bundle.manifest import Reference
from training.evaluate.conformal import calibrated
from training.evaluate.network_outputs import Scored

BINS = 10


def reference(calibrate: Scored, temperature: float) -> Reference:
    """Counts of predicted classes and of confidences on the calibration split.

    A good network is nearly certain of most images: bins of equal width would hold almost all of them in the last
    one and see nothing there. These have edges at quantiles, so that each holds about a tenth.
    """
    values = calibrated(calibrate, temperature)
    confidence = values.max(1)
    # Six digits, as in answers, are enough of an edge.
    inner = np.round(np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1]), 6)
    edges = np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]]))
    return Reference(
        predicted=np.bincount(values.argmax(1), minlength=values.shape[1]).tolist(),
        confidence_edges=edges.tolist(),
        confidence=np.histogram(confidence, edges)[0].tolist(),
    )
