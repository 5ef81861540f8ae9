"""Drift of the predictions: the population stability index of recent answers against the calibration images.

    drift = Drift(references_of(bundle.manifest), window=1000)
    drift.add("photographs", class_id=3, confidence=0.98)
    drift.labels(), drift.confidences()

The index of two histograms with shares p and q is the sum of (p - q) ln(p / q), the symmetric Kullback-Leibler
divergence (Lewis 1994, "An Introduction to Credit Scoring"). By convention, below 0.1 is stable and above 0.25 is a
shift. Chance alone gives about (bins - 1) (1 / window + 1 / calibration images), 0.013 for a window of 1,000 images of
one kind.

Thumbnails are compared with calibration thumbnails and photographs with calibration photographs, in the proportion in
which they come: photographs alone are no drift.

With few calibration images for many bins, chance alone would look like drift. Neighbouring bins are then one, so that
each has LEAST calibration images.
"""

import math
import struct
import time
import zlib
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias, get_args

import numpy as np

from ..bundle.manifest import Manifest, Reference
from ..imaging.kinds import Kind

_Answer: TypeAlias = tuple[Kind, int, int]  # kind, class, bin of confidence
RING_HEADER = 8  # bytes: how many answers were ever written
ENTRY = np.dtype([("time", "<f8"), ("bundle", "<u4"), ("label", "<u4"), ("kind", "<u4"), ("bin", "<u4")])
PACKED_ENTRY = struct.Struct("<dIIII")  # the same
PSEUDOCOUNT = 0.5  # added to every bin, so that an empty bin does not make the index infinite
LEAST = 20  # calibration images a bin on average, or bins are joined; chance in these then adds 0.05 at most


def references_of(manifest: Manifest) -> dict[Kind, Reference]:
    """The reference for each kind of pictures that the bundle has one for."""
    if manifest.reference and manifest.data_set.one_kind:
        return dict.fromkeys(get_args(Kind), manifest.reference)
    references: dict[Kind, Reference] = {}
    if manifest.reference:
        references["thumbnails"] = manifest.reference
    if manifest.photographs:
        references["photographs"] = manifest.photographs.reference
    return references


class Drift:
    """Compares the last `window` answers with the references.

    The indices are NaN until there are `window` answers, and if there are too few calibration images for two bins.
    """

    def __init__(self, references: Mapping[Kind, Reference], window: int) -> None:
        self._references = references
        self._window = window
        classes = zip(*(one.predicted for one in references.values()), strict=True)
        self._joined_labels = joined_bins([max(column) for column in classes])
        self._joined_confidences = {kind: joined_bins(one.confidence) for kind, one in references.items()}
        self._answers: deque[_Answer] = deque()
        self._labels = {kind: Counter[int]() for kind in references}
        self._bins = {kind: Counter[int]() for kind in references}

    def add(self, kind: Kind | None, class_id: int, confidence: float) -> None:
        """Count an answer: the index of its most probable class and the probability of that class, 0 to 1.

        An answer of a kind without a reference is not counted.
        """
        if kind is None or kind not in self._references:
            return
        edges = self._references[kind].confidence_edges
        self._remember((kind, class_id, min(max(bisect_right(edges, confidence) - 1, 0), len(edges) - 2)))

    def _remember(self, answer: _Answer) -> None:
        if len(self._answers) == self._window:
            self._count(self._answers.popleft(), -1)
        self._answers.append(answer)
        self._count(answer, 1)

    def labels(self) -> float:
        """The stability index of the predicted classes, 0 or more; NaN until the window is full."""
        histograms = {kind: one.predicted for kind, one in self._references.items()}
        expected = [
            sum(column) for column in zip(*(self._expected(histograms, kind) for kind in histograms), strict=True)
        ]
        counts = [sum(labels[place] for labels in self._labels.values()) for place in range(len(expected))]
        return self._index(_joined(counts, self._joined_labels), _joined(expected, self._joined_labels))

    def confidences(self) -> float:
        """The stability index of the confidences, 0 or more; NaN until the window is full."""
        histograms = {kind: one.confidence for kind, one in self._references.items()}
        counts, expected = list[float](), list[float]()
        for kind, histogram in histograms.items():
            if self._share(kind):  # bins of a kind that does not come would add nothing but noise
                bins = [self._bins[kind][place] for place in range(len(histogram))]
                counts += _joined(bins, self._joined_confidences[kind])
                expected += _joined(self._expected(histograms, kind), self._joined_confidences[kind])
        return self._index(counts, expected)

    def _share(self, kind: Kind) -> float:
        """The share of this kind among the answers."""
        return self._labels[kind].total() / max(1, len(self._answers))

    def _expected(self, histograms: Mapping[Kind, Sequence[int]], kind: Kind) -> list[float]:
        """The calibration counts of a kind, scaled so that the kind has the same share of them as of the answers."""
        total = sum(self._share(one) * sum(histogram) for one, histogram in histograms.items())
        scale = self._share(kind) * total / max(1, sum(histograms[kind]))
        return [scale * count for count in histograms[kind]]

    def _count(self, answer: _Answer, by: int) -> None:
        kind, class_id, confidence = answer
        self._labels[kind][class_id] += by
        self._bins[kind][confidence] += by

    def _index(self, counts: Sequence[float], expected: Sequence[float]) -> float:
        known = len(self._answers) == self._window and len(counts) > 1
        return stability_index(counts, expected) if known else math.nan


def joined_bins(histogram: Sequence[int]) -> list[int]:
    """For each bin of a calibration histogram, the bin that it becomes a part of."""
    if sum(histogram) >= LEAST * len(histogram):
        return list(range(len(histogram)))
    places, place, held = list[int](), 0, 0
    for count in histogram:
        if held >= LEAST:
            place, held = place + 1, 0
        places.append(place)
        held += count
    last = place - 1 if place and held < LEAST else place  # the rest joins the bin before it
    return [min(place, last) for place in places]


def _joined(counts: Sequence[float], places: Sequence[int]) -> list[float]:
    sums = [0.0] * (max(places, default=-1) + 1)
    for place, count in zip(places, counts, strict=True):
        sums[place] += count
    return sums


class DriftOfWorkers(Drift):
    """The same of the last `window` answers of several workers, whichever gave them.

    Each of `rings` is memory of ring_bytes(window) that one worker writes and all read; `own` is this worker's. It
    outlives the worker. `bundle`: the digest of the model; what other models answered does not count.
    """

    def __init__(
        self, references: Mapping[Kind, Reference], window: int, rings: Sequence[memoryview], own: int, bundle: str
    ) -> None:
        super().__init__(references, window)
        self._ring = rings[own]
        self._counts = [ring[:RING_HEADER].cast("q") for ring in rings]
        self._entries = [np.frombuffer(ring, ENTRY, window, RING_HEADER) for ring in rings]
        self._own = own
        self._kinds = list(references)
        self._bundle = zlib.crc32(bundle.encode())

    def labels(self) -> float:
        self._read()
        return super().labels()

    def confidences(self) -> float:
        self._read()
        return super().confidences()

    def _remember(self, answer: _Answer) -> None:
        kind, class_id, place = answer
        count = self._counts[self._own]
        offset = RING_HEADER + count[0] % self._window * PACKED_ENTRY.size
        packed = time.monotonic(), self._bundle, class_id, self._kinds.index(kind), place
        PACKED_ENTRY.pack_into(self._ring, offset, *packed)
        count[0] += 1

    def _read(self) -> None:
        """Count the last answers of all."""
        used = [entries[: count[0]] for entries, count in zip(self._entries, self._counts, strict=True)]
        answers = np.concatenate(used)
        answers = answers[answers["bundle"] == self._bundle]
        answers = answers[np.argsort(answers["time"])[-self._window :]]
        found = Counter(zip(answers["kind"].tolist(), answers["label"].tolist(), answers["bin"].tolist(), strict=True))
        self._answers.clear()
        for kind in self._kinds:
            self._labels[kind].clear()
            self._bins[kind].clear()
        for (number, class_id, place), times in found.items():
            answer = self._kinds[number], class_id, place
            self._answers.extend([answer] * times)
            self._count(answer, times)


def ring_bytes(window: int) -> int:
    """Memory for the last `window` answers of one worker."""
    return RING_HEADER + window * PACKED_ENTRY.size


def stability_index(counts: Sequence[float], expected: Sequence[float]) -> float:
    """The population stability index of two histograms over the same bins: 0 if their shares are equal, else positive.

    Raises ValueError if the numbers of bins differ.
    """
    shares, expected_shares = _shares(counts), _shares(expected)
    return sum((p - q) * math.log(p / q) for p, q in zip(shares, expected_shares, strict=True))


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts) + PSEUDOCOUNT * len(counts)
    return [(count + PSEUDOCOUNT) / total for count in counts]
