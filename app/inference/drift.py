"""Drift of the predictions: the population stability index of recent answers against the calibration images.

    drift = Drift(bundle.manifest.reference, window=1000)
    drift.add(class_id=3, confidence=0.98)
    drift.labels(), drift.confidences()

The index of two histograms with shares p and q is the sum of (p - q) ln(p / q), the symmetric Kullback-Leibler
divergence (Lewis 1994, "An Introduction to Credit Scoring"). By convention, below 0.1 is stable and above 0.25 is a
shift. Chance alone gives about (bins - 1) (1 / window + 1 / calibration images), 0.013 for a window of 1,000.
"""

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence

from ..bundle.manifest import Reference

PSEUDOCOUNT = 0.5  # added to every bin, so that an empty bin does not make the index infinite


class Drift:
    """Compares the last `window` answers with the reference. The indices are NaN until there are `window` answers."""

    def __init__(self, reference: Reference, window: int) -> None:
        self._reference = reference
        self._answers: deque[tuple[int, int]] = deque()  # class, bin of confidence
        self._window = window
        self._labels: Counter[int] = Counter()
        self._bins: Counter[int] = Counter()

    def add(self, class_id: int, confidence: float) -> None:
        """Count an answer: the index of its most probable class and the probability of that class, 0 to 1."""
        edges = self._reference.confidence_edges
        answer = class_id, min(max(bisect_right(edges, confidence) - 1, 0), len(edges) - 2)
        if len(self._answers) == self._window:
            self._count(self._answers.popleft(), -1)
        self._answers.append(answer)
        self._count(answer, 1)

    def labels(self) -> float:
        """The stability index of the predicted classes, 0 or more; NaN until the window is full."""
        return self._index(self._labels, self._reference.predicted)

    def confidences(self) -> float:
        """The stability index of the confidences, 0 or more; NaN until the window is full."""
        return self._index(self._bins, self._reference.confidence)

    def _count(self, answer: tuple[int, int], by: int) -> None:
        class_id, confidence = answer
        self._labels[class_id] += by
        self._bins[confidence] += by

    def _index(self, counts: Counter[int], expected: Sequence[int]) -> float:
        if len(self._answers) < self._window:
            return math.nan
        return stability_index([counts[place] for place in range(len(expected))], expected)


def stability_index(counts: Sequence[int], expected: Sequence[int]) -> float:
    """The population stability index of two histograms over the same bins: 0 if their shares are equal, else positive.

    Raises ValueError if the numbers of bins differ.
    """
    shares, expected_shares = _shares(counts), _shares(expected)
    return sum((p - q) * math.log(p / q) for p, q in zip(shares, expected_shares, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + PSEUDOCOUNT * len(counts)
    return [(count + PSEUDOCOUNT) / total for count in counts]
