"""The counts of several workers as one."""

import json
import math

from prometheus_client import generate_latest

from app.api.metrics import Metrics
from app.api.open_inference.statistics import STAGES, Statistics
from app.api.summed_metrics import Summed, counts_of, merged, statistics_in


def metrics(requests: int) -> Metrics:
    made = Metrics()
    made.requests.labels("/predict", "ok").inc(requests)
    made.stage_seconds.labels("read").observe(requests / 1000)
    made.inflight.inc(requests)
    made.queue_images.set_function(lambda: requests)
    made.drift.labels("labels").set(requests)
    made.predictions.labels("cat").inc(requests)
    made.count("lines", "Lines.", lambda: requests)
    return made


def values(summed: Summed) -> dict[str, float]:
    text = generate_latest(summed).decode()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }


def test_counters_histograms_and_work_under_way_are_added_up_and_other_gauges_are_the_own_ones() -> None:
    own, other = metrics(2), metrics(3)
    found = values(Summed(own.registry, [counts_of(other.registry, {}), b""]))
    assert found['predict_requests_total{outcome="ok",route="/predict"}'] == 5
    assert found["lines_total"] == 5
    assert found['predict_stage_seconds_count{stage="read"}'] == 2
    assert found['predict_stage_seconds_bucket{le="0.0025",stage="read"}'] == 1
    assert math.isclose(found['predict_stage_seconds_sum{stage="read"}'], 0.005)
    assert found["predict_inflight_requests"] == found["predict_queue_images"] == 5
    assert found['prediction_drift{of="labels"}'] == 2
    created = 'predict_requests_created{outcome="ok",route="/predict"}'
    assert found[created] == min(values(Summed(one.registry, []))[created] for one in (own, other))


def test_workers_that_have_ended_keep_their_counts_but_have_no_work_under_way() -> None:
    ended = b""
    for requests in (1, 10):
        ended = merged(ended, counts_of(metrics(requests).registry, {}))
    ended = merged(ended, b"")
    found = values(Summed(metrics(100).registry, [ended]))
    assert found['predict_requests_total{outcome="ok",route="/predict"}'] == 111
    assert found["predict_inflight_requests"] == 100
    assert merged(b"", b"") == merged(merged(b"", b""), b"")


def test_a_class_of_a_former_bundle_is_not_shown() -> None:
    own, other = metrics(1), metrics(1)
    other.predictions.labels("gone").inc()
    found = values(Summed(own.registry, [counts_of(other.registry, {})]))
    assert found['predictions_total{label="cat"}'] == 2
    assert not any("gone" in name for name in found)


def counted(images: int, digest: str) -> bytes:
    statistics = Statistics()
    statistics.succeed(images, dict.fromkeys(("success", "queue", *STAGES), 0.5), now=images)
    statistics.fail(0.25)
    return counts_of(Metrics().registry, {"cifar10": {"digest": digest, "document": statistics.document()}})


def test_statistics_of_v2_are_added_up_as_long_as_the_bundle_is_the_same() -> None:
    ended = merged(counted(3, "a"), counted(1, "a"))
    (document,) = statistics_in([ended, b""], "cifar10", "a")
    assert document["inference_count"] == 4 and document["execution_count"] == 2 and document["last_inference"] == 3000
    assert document["inference_stats"]["fail"] == {"count": 2, "ns": 500_000_000}
    assert [batch["batch_size"] for batch in document["batch_stats"]] == [1, 3]
    (document,) = statistics_in([merged(ended, counted(7, "b"))], "cifar10", "b")
    assert document["inference_count"] == 7
    assert statistics_in([ended], "cifar10", "b") == statistics_in([ended], "other", "a") == []
    assert set(json.loads(ended)) == {"families", "statistics"}
