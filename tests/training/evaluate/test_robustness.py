import numpy as np
import pytest

from training.data.corruptions import CORRUPTIONS
from training.evaluate.robustness import draw, robustness_report

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 200)


def test_accuracies_are_those_on_the_corrupted_images() -> None:
    # The label is how bright the image is.
    images = np.broadcast_to((LABELS * 25)[:, None, None, None], (200, 32, 32, 3)).astype(np.uint8)
    batches: list[np.ndarray] = []

    def logits(corrupted: np.ndarray) -> np.ndarray:
        batches.append(corrupted)
        return -np.abs(corrupted.mean((1, 2, 3))[:, None] - np.arange(10) * 25).astype(np.float32)

    report = robustness_report(logits, images, LABELS, n=20, seed=0)
    assert report.n == 20 and report.clean_accuracy == 1.0
    assert [one.name for one in report.corruptions] == list(CORRUPTIONS)
    by_name = {one.name: one.accuracy for one in report.corruptions}
    assert by_name["defocus_blur"] == [1.0] * 5  # blurring a flat image leaves it
    assert by_name["brightness"][4] < 0.5
    assert report.mean_accuracy == pytest.approx(np.mean(list(by_name.values())))
    assert len(batches) == 76 and {len(batch) for batch in batches} == {20}
    assert robustness_report(logits, images, LABELS, n=20, seed=0) == report


@pytest.mark.parametrize("n", [10, 50, 73])
def test_images_are_drawn_evenly(n: int) -> None:
    chosen = draw(LABELS, n, seed=1)
    assert len(set(chosen.tolist())) == n and (np.diff(chosen) > 0).all()
    counts = np.bincount(LABELS[chosen], minlength=10)
    assert counts.max() - counts.min() <= 1
    assert draw(LABELS, n, seed=2).tolist() != chosen.tolist()
