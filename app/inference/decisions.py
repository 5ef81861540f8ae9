"""From logits to what is answered: calibrated probabilities, the best classes, and the prediction set.

    values = probabilities(logits, temperature)
    top_k(values, 3), prediction_set(values, threshold)

Without NumPy: on ten numbers, each of its calls takes longer than all of them do in Python.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def probabilities(logits: "NDArray[np.float32]", temperature: float) -> list[float]:
    """[classes]: the softmax of the mean over views of logits [views, classes], divided by `temperature`."""
    scale = len(logits) * temperature
    scaled = [sum(views) / scale for views in zip(*logits.tolist(), strict=True)]
    largest = max(scaled)
    powers = [math.exp(value - largest) for value in scaled]
    total = sum(powers)
    return [power / total for power in powers]


def prediction_set(values: Sequence[float], threshold: float) -> Sequence[int]:
    """The indices of the probabilities that are at least `threshold`, and of the largest in any case; largest first.

    With a threshold fitted on held-out images it is a split conformal set (Sadinle et al. 2019, arXiv:1609.00451);
    that it is never empty can only add to its coverage.
    """
    return top_k(values, max(1, sum(value >= threshold for value in values)))


def top_k(values: Sequence[float], k: int) -> Sequence[int]:
    """The indices of the k largest values, largest first; among equals the smaller index first."""
    return sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k]
