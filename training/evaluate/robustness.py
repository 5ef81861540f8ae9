"""Accuracy on corrupted images."""

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
    """Accuracy of `logits_of` (images [N, H, W, 3] to logits [N, classes]) on `n` images under every corruption.

    The images are a random sample, stratified by class; each corruption and severity has its own random numbers.
    """
    chosen = draw(labels, n, seed)
    images, labels = images[chosen], labels[chosen]

    def accuracy(corrupted: Images) -> float:
        return float((logits_of(corrupted).argmax(1) == labels).mean())

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
    """Sorted indices of n images; the counts of the classes differ by at most one."""
    order = np.random.default_rng(seed).permutation(len(labels))
    # Take the first image of every class, then the second of every class, and so on.
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    chosen = order[np.argsort(turn[order], kind="stable")][:n]
    return np.sort(chosen)
