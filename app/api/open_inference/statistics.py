"""Counts and durations of a model's requests, as Triton's statistics extension defines them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Durations:
    """How often something was done, and how long it took in total."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def document(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


STAGES = ("compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counts and durations of one model since it was loaded.

    An execution is a request; /metrics tells how the engine splits requests and joins them to batches.
    A request's `queue`, `compute_input` (parsing, decoding) and `compute_infer` are the means over its images, so
    that they and `compute_output` never exceed the time that it took as a whole.
    """

    def __init__(self) -> None:
        self._images = 0
        self._last_milliseconds = 0
        self._spent: defaultdict[str, Durations] = defaultdict(Durations)
        self._by_size: defaultdict[int, defaultdict[str, Durations]] = defaultdict(lambda: defaultdict(Durations))

    def succeed(self, images: int, seconds: Mapping[str, float], now: float) -> None:
        """Count an answer for `images` images. `seconds` has "success", "queue" and STAGES; `now` is time.time()."""
        self._images += images
        self._last_milliseconds = round(now * 1000)
        for name, spent in seconds.items():
            self._spent[name].add(spent)
        for stage in STAGES:
            self._by_size[images][stage].add(seconds[stage])

    def fail(self, seconds: float) -> None:
        self._spent["fail"].add(seconds)

    def document(self) -> dict[str, Any]:
        names = ("success", "fail", "queue", *STAGES, "cache_hit", "cache_miss")
        return {
            "last_inference": self._last_milliseconds,
            "inference_count": self._images,
            "execution_count": self._spent["success"].count,
            "inference_stats": {name: self._spent[name].document() for name in names},
            "batch_stats": [
                {"batch_size": images, **{stage: spent[stage].document() for stage in STAGES}}
                for images, spent in sorted(self._by_size.items())
            ],
        }


def total(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The document of several workers together."""
    found = list(documents)
    inference: defaultdict[str, Counter[str]] = defaultdict(Counter)
    batches: defaultdict[int, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for document in found:
        for name, spent in document["inference_stats"].items():
            inference[name].update(spent)
        for batch in document["batch_stats"]:
            for stage in STAGES:
                batches[batch["batch_size"]][stage].update(batch[stage])
    return {
        "last_inference": max(document["last_inference"] for document in found),
        "inference_count": sum(document["inference_count"] for document in found),
        "execution_count": sum(document["execution_count"] for document in found),
        "inference_stats": {name: dict(spent) for name, spent in inference.items()},
        "batch_stats": [
            {"batch_size": images, **{stage: dict(spent[stage]) for stage in STAGES}}
            for images, spent in sorted(batches.items())
        ],
    }
