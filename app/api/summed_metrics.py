"""The counts of several workers as one: metrics, and the statistics of /v2.

    content = counts_of(registry, statistics)               # what a worker publishes
    content = merged(content, of_another)                   # what workers have counted that have ended
    Summed(registry, [content, …]).collect()                # for prometheus_client.generate_latest

Counters and histograms are added up. Of gauges, SUMMED are, too, but only those of workers that live; any other means
the whole service in each worker, and the one that answers gives its own.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

from .open_inference.statistics import total

SUMMED = ("predict_queue_images", "predict_inflight_requests")
OF_BUNDLE = ("predictions",)  # a label of a bundle that no longer answers is not shown
COUNTED = ("counter", "histogram")


def counts_of(registry: CollectorRegistry, statistics: Mapping[str, Any]) -> bytes:
    """The metrics of one worker, and its models' statistics, each {"digest": its bundle's, "document": …}."""
    families = [
        [family.name, family.documentation, family.type, [[one.name, one.labels, one.value] for one in family.samples]]
        for family in registry.collect()
        if family.type in COUNTED or family.name in SUMMED
    ]
    return json.dumps({"families": families, "statistics": statistics}).encode()


def merged(one: bytes, other: bytes) -> bytes:
    """The sums of what two workers counted that have ended. Either may be empty, as of one that published nothing."""
    read = [json.loads(content) for content in (one, other) if content]
    families: dict[str, Metric] = {}
    for counts in read:
        _add(families, (family for family in _families(counts["families"]) if family.type in COUNTED))
    samples = {
        name: [[sample.name, sample.labels, sample.value] for sample in family.samples]
        for name, family in families.items()
    }
    lists = [[name, family.documentation, family.type, samples[name]] for name, family in families.items()]
    statistics: dict[str, Any] = {}
    for counts in read:
        for name, found in counts["statistics"].items():
            same = name in statistics and statistics[name]["digest"] == found["digest"]
            documents = [statistics[name]["document"], found["document"]] if same else [found["document"]]
            statistics[name] = {"digest": found["digest"], "document": total(documents)}
    return json.dumps({"families": lists, "statistics": statistics}).encode()


def statistics_in(contents: Iterable[bytes], name: str, digest: str) -> list[dict[str, Any]]:
    """What other workers published of a model, while it was this bundle."""
    found = [json.loads(content)["statistics"].get(name) for content in contents if content]
    return [one["document"] for one in found if one and one["digest"] == digest]


class Summed:
    """A collector of this worker's metrics and of what others have published."""

    def __init__(self, own: CollectorRegistry, others: Iterable[bytes]) -> None:
        self._own = own
        self._others = [json.loads(content)["families"] for content in others if content]

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        own = list(self._own.collect())
        _add(families, own)
        shown = {(one.name, *_key(one.labels)) for family in own if family.name in OF_BUNDLE for one in family.samples}
        for other in self._others:
            _add(families, _families(other))
        for name in OF_BUNDLE:
            family = families[name]
            family.samples = [one for one in family.samples if (one.name, *_key(one.labels)) in shown]
        yield from families.values()


def _families(lists: Iterable[Any]) -> Iterator[Metric]:
    for name, documentation, kind, samples in lists:
        family = Metric(name, documentation, kind)
        family.samples = [Sample(*sample) for sample in samples]
        yield family


def _key(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(labels.items())


def _add(families: dict[str, Metric], others: Iterable[Metric]) -> None:
    """Add the samples of `others` to those of the same name and labels."""
    for other in others:
        family = families.setdefault(other.name, Metric(other.name, other.documentation, other.type))
        values = {(one.name, *_key(one.labels)): one for one in family.samples}
        for one in other.samples:
            key = (one.name, *_key(one.labels))
            if before := values.get(key):
                # `_created` says when a series began.
                add = min if one.name.endswith("_created") else float.__add__
                one = one._replace(value=add(float(before.value), float(one.value)))
            values[key] = one
        family.samples = list(values.values())
