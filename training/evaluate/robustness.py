"""Accuracy on damaged images."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from app.bundle.report import Corruption, RobustnessReport
from training.data.corruptions import CORRUPTIONS, SEVERITIES

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def robustness_report(
    logits_of: Callable[[Images], npt.NDArray[np.float32]], images: Images, labels: Labels, *, n: int, seed: int
) -> RobustnessReport:
    """Accuracy of `logits_of` (images [N, H, W, 3] to logits [N, classes]) on `n` images under every damage.

    The images are drawn by lot, evenly from all classes; each kind and severity has random numbers of its own.
    """
    chosen = draw(labels, n, seed)
    images, labels = images[chosen], labels[chosen]

    def accuracy(damaged: Images) -> float:
        return float((logits_of(damaged).argmax(1) == labels).mean())

    corruptions = [
        Corruption(
            name=name,
            accuracy=[
                accuracy(corrupt(images, severity, np.random.default_rng([seed, kind, severity])))
                for severity in SEVERITIES
            ],
        )
        for kind, (name, corrupt) in enumerate(CORRUPTIONS.items())
    ]
    return RobustnessReport(
        n=len(images),
        clean_accuracy=accuracy(images),
        mean_accuracy=float(np.mean([one.accuracy for one in corruptions])),
        corruptions=corruptions,
    )


def draw(labels: Labels, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Sorted indices of n images, from each class as many, but for a remainder."""
    order = np.random.default_rng(seed).permutation(len(labels))
    # Every class's first image, then every class's second, and so on.
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    chosen = order[np.argsort(turn[order], kind="stable")][:n]
    return np.sort(chosen)
