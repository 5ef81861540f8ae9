"""How much an image counts in the loss when some classes have few images and others many."""

import torch
from torch import Tensor

POWER = 0.5  # of the number of images; with 1, one image of a rare class would outweigh hundreds


def class_weights(labels: Tensor) -> Tensor:
    """float32 [classes]: each class's weight, by the inverse root of its number of images; their mean over images is 1.

    labels: int64 [N], in which every class occurs.
    """
    counts = torch.bincount(labels).float()
    weights = counts**-POWER
    return weights * len(labels) / (weights * counts).sum()
