"""How unlike the training images an image is, by the network's pooled features of it; in PyTorch.

    novelty.score(features)   # float32 [N, D] -> float32 [N]; 0 is usual, 1 one standard deviation further

It is the mean of two distances, each standardised by what it is for training images:

- the angle to the tenth nearest of a few training images (Sun et al. 2022, arXiv:2204.06507): large for what
  resembles no class at all;
- the length along directions in which training images hardly differ (after the residual of Wang et al. 2022,
  arXiv:2203.10807; here of features of unit length, and in the next directions after the usual ones): large for a known
  class's look-alike, whose features are combined as they never are in training.

training.export.graph writes the same in ONNX operators. This module needs torch: see app.network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOUR = 10  # whose distance counts
SHORTEST = 1e-12  # length of features, so that an image without any has a score too


class Novelty(NamedTuple):
    """What the score is computed with: fitted by training.evaluate.abstention, kept in a bundle's novelty.safetensors.

    neighbours: float16 [M, D], features of training images, of unit length.
    centre: float32 [D], mean of training images' features of unit length.
    unusual: float16 [D, R], orthonormal directions in which training images hardly differ.
    mean, deviation: float32 [2], of the two distances, for training images that are not among the neighbours.
    """

    neighbours: Tensor
    centre: Tensor
    unusual: Tensor
    mean: Tensor
    deviation: Tensor

    def score(self, features: Tensor) -> Tensor:
        """float32 [N] of pooled features [N, D]."""
        return ((self.distances(features) - self.mean) / self.deviation).mean(1)

    def distances(self, features: Tensor) -> Tensor:
        """float32 [N, 2]: to the nearest neighbours, and along unusual directions."""
        features = unit(features)
        return torch.stack([neighbour_distance(features, self.neighbours), self._residual(features)], dim=1)

    def _residual(self, features: Tensor) -> Tensor:
        length: Tensor = ((features - self.centre) @ self.unusual.float()).norm(dim=1)
        return length


def neighbour_distance(features: Tensor, neighbours: Tensor) -> Tensor:
    """One minus the cosine similarity of the tenth nearest, float32 [N], of rows of unit length."""
    nearest: Tensor = (features @ neighbours.float().T).topk(NEIGHBOUR, dim=1).values
    return 1 - nearest[:, -1]


def unit(features: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays."""
    length: Tensor = features.norm(dim=1, keepdim=True)
    return features / length.clamp_min(SHORTEST)
