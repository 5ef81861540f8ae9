"""Photographs beside the thumbnails of each step: the network learns both sizes in one pass.

batches = PhotographBatches(photographs, size=40)
images, targets, weights = batches(generator)
model = BothSizes(preprocessed, side=128)
logits = model(thumbnails, images)      # of the thumbnails, then of the photographs
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from app.network.mobilenet import Preprocessed
from training.data.cifar10 import CLASSES, LabelledImages
from training.data.photographs import OTHER
from training.data.random_views import PHOTOGRAPHS, random_views

KNOWN_SHARE = 0.6  # of the photographs in a step; the rest shows other things
LABEL_SMOOTHING = 0.05
OTHER_WEIGHT = 0.5  # in the loss; outlier exposure (Hendrycks et al. 2019, arXiv:1812.04606) has the same


class PhotographSampler:
    """Draws photographs: of the classes, each by the inverse root of its count, and of other things, all alike.

    Rare classes are drawn more often than they come, though not as often as the others.
    """

    def __init__(self, labels: Tensor) -> None:
        """`labels`: int64 [N], OTHER or from 0."""
        counts = torch.bincount(labels[labels != OTHER], minlength=1).clamp(min=1).float()
        self._cumulated = torch.where(labels == OTHER, 0.0, counts[labels.clamp(min=0)].rsqrt()).cumsum(0)
        self._other = (labels == OTHER).nonzero().flatten()
        self.has_other = len(self._other) > 0

    def __call__(self, known: int, other: int, generator: Generator) -> Tensor:
        """int64 [known + other]: indices of `known` photographs of the classes, then of `other` ones."""
        device = self._cumulated.device
        draws = torch.rand(known, generator=generator, device=device) * self._cumulated[-1]
        chosen = torch.searchsorted(self._cumulated, draws).clamp(max=len(self._cumulated) - 1)
        unlike = torch.randint(max(1, len(self._other)), (other,), generator=generator, device=device)
        return torch.cat([chosen, self._other[unlike]])


def photograph_targets(labels: Tensor, smoothing: float, count: int = len(CLASSES)) -> Tensor:
    """float32 [N, count]: smoothed labels; for OTHER, all `count` classes are equally probable."""
    known = F.one_hot(labels.clamp(min=0), count) * (1 - smoothing) + smoothing / count
    return torch.where((labels == OTHER)[:, None], 1 / count, known)


class PhotographBatches:
    """The photographs of a step: random views, their targets, and their weights in the loss."""

    def __init__(self, photographs: LabelledImages, size: int, classes: int = len(CLASSES)) -> None:
        """`photographs`: uint8 [N, S, S, 3], labels OTHER or below `classes`. `size`: photographs in a step."""
        self._photographs, self._sampler = photographs, PhotographSampler(photographs.labels)
        self._classes = classes
        self._known = max(1, round(KNOWN_SHARE * size)) if self._sampler.has_other else size
        if not bool((photographs.labels != OTHER).any()):
            self._known = 0
        self._other = size - self._known
        self.weight = self._known + OTHER_WEIGHT * self._other  # of all photographs of a step together

    def __call__(self, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [size, S, S, 3], float32 [size, classes] and float32 [size]."""
        chosen = self._sampler(self._known, self._other, generator)
        images, labels = self._photographs.take(chosen)
        views = random_views(images, PHOTOGRAPHS, generator).permute(0, 2, 3, 1).to(torch.uint8)
        weights = torch.where(labels == OTHER, OTHER_WEIGHT, 1.0)
        return views, photograph_targets(labels, LABEL_SMOOTHING, self._classes), weights


class BothSizes(nn.Module):
    """A network that sees two batches of different sizes in one pass, so that batch norms see both.

    Both are enlarged to `side`, the size that the network's layers see of a thumbnail. Its own enlargement changes
    nothing at that size.
    """

    def __init__(self, model: Preprocessed, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, thumbnails: Tensor, photographs: Tensor) -> Tensor:
        """float32 logits [N + M, classes] of uint8 [N, side, side, 3] and uint8 [M, S, S, 3]."""
        enlarged = [
            F.interpolate(self.model.normalise(images), self.side, mode="bilinear", align_corners=False)
            for images in (thumbnails, photographs)
        ]
        logits: Tensor = self.model.network(torch.cat(enlarged).contiguous(memory_format=torch.channels_last))
        return logits
