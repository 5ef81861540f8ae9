"""From logits to the answer: calibrated probabilities, the most probable classes, and the prediction set.

    values = probabilities(logits, temperature)
    top_k(values, 3), prediction_set(values, thresholds)

This is plain Python: on ten numbers, a single call of NumPy takes longer than the whole computation.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

ENTROPY = "entropy"  # the out-of-distribution score that needs the logits alone, see `entropy`

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def probabilities(logits: "NDArray[np.float32]", temperature: float) -> list[float]:
    """Calibrated probabilities [classes]: the softmax of the mean logits over the views, divided by `temperature`.

    `logits`: float32 [views, classes]. `temperature`: positive. The method is temperature scaling (Guo et al. 2017,
    arXiv:1706.04599).
    """
    scale = len(logits) * temperature
    scaled = [sum(views) / scale for views in zip(*logits.tolist(), strict=True)]
    largest = max(scaled)
    powers = [math.exp(value - largest) for value in scaled]
    total = sum(powers)
    return [power / total for power in powers]


def entropy(logits: "NDArray[np.float32]", temperature: float) -> float:
    """An out-of-distribution score from 0 to log(classes): the entropy, in nats, of the probabilities at `temperature`.

    A network that learned to answer pictures of other things with equal probabilities has a high entropy there
    (Hendrycks et al. 2019, arXiv:1812.04606). A temperature above 1 lets the smaller logits count (Liang et al. 2018,
    arXiv:1706.02690).
    """
    return -sum(value * math.log(value) for value in probabilities(logits, temperature) if value > 0)


def prediction_set(values: Sequence[float], thresholds: Sequence[float]) -> Sequence[int]:
    """The indices of the classes with a probability of at least the class's threshold, most probable first.

    The most probable class is always in the set. With thresholds fitted on held-out images this is a split conformal
    set (Sadinle et al. 2019, arXiv:1609.00451); adding the most probable class can only increase its coverage.
    """
    chosen = {index for index, value in enumerate(values) if value >= thresholds[index]}
    first, *others = top_k(values, len(values))
    return [first, *(index for index in others if index in chosen)]


def top_k(values: Sequence[float], k: int) -> Sequence[int]:
    """The indices of the k largest values, largest first. Equal values are ordered by index."""
    return sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k]
