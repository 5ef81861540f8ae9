"""The out-of-distribution score of an image, from the network's pooled features, in PyTorch.

    novelty.score(features)   # float32 [N, D] -> float32 [N]; 0 is the mean of training images, larger is less usual

The score is the mean of two distances. Each is standardised by its mean and standard deviation for training images:

- The cosine distance to the tenth nearest neighbour among some training images (Sun et al. 2022, arXiv:2204.06507). It
  is large for images that resemble no class.
- The norm of the projection on directions in which training images hardly vary (after the residual of Wang et al. 2022,
  arXiv:2203.10807, but with features of unit length, and only in the directions that follow the principal ones). It is
  large for images that look like a known class but combine features as no training image does.

training.export.graph writes the same computation in ONNX operators. This module needs torch: see app.network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOUR = 10  # the k of the k-nearest-neighbour distance
SHORTEST = 1e-12  # lower bound of the features' norm, so that features of zeros have a score, too


class Novelty(NamedTuple):
    """The fitted parameters of the score, stored in novelty.safetensors; training.evaluate.abstention fits them.

    neighbours: float16 [M, D], features of training images, each of unit length.
    centre: float32 [D], mean of training images' features of unit length.
    unusual: float16 [D, R], orthonormal directions in which training images hardly vary.
    mean, deviation: float32 [2], of the two distances, for training images that are not among the neighbours.
    """

    neighbours: Tensor
    centre: Tensor
    unusual: Tensor
    mean: Tensor
    deviation: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Out-of-distribution scores, float32 [N], of pooled features, float32 [N, D]."""
        return ((self.distances(features) - self.mean) / self.deviation).mean(1)

    def distances(self, features: Tensor) -> Tensor:
        """float32 [N, 2] for features [N, D]: to the tenth nearest neighbour, and along the unusual directions."""
        features = unit(features)
        return torch.stack([neighbour_distance(features, self.neighbours), self._residual(features)], dim=1)

    def _residual(self, features: Tensor) -> Tensor:
        length: Tensor = ((features - self.centre) @ self.unusual.float()).norm(dim=1)
        return length


def neighbour_distance(features: Tensor, neighbours: Tensor) -> Tensor:
    """Cosine distance to the tenth nearest neighbour: float32 [N] for features [N, D] and neighbours [M, D], M >= 10.

    All rows must have unit length.
    """
    nearest: Tensor = (features @ neighbours.float().T).topk(NEIGHBOUR, dim=1).values
    return 1 - nearest[:, -1]


def unit(features: Tensor) -> Tensor:
    """float32 [N, D]: each row of `features` scaled to unit length. A row of zeros stays zero."""
    length: Tensor = features.norm(dim=1, keepdim=True)
    return features / length.clamp_min(SHORTEST)
