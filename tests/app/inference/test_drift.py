import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from starlette.testclient import TestClient

from app.bundle.manifest import Reference
from app.bundle.reader import Bundle
from app.imaging.kinds import Kind
from app.inference.drift import Drift, DriftOfWorkers, references_of, ring_bytes, stability_index
from tests.conftest import BUNDLE
from training.data.cifar10 import load
from training.data.corruptions import CORRUPTIONS

REFERENCES = references_of(Bundle.load(BUNDLE).manifest)
REFERENCE = REFERENCES["thumbnails"]
KINDS: list[Kind] = ["thumbnails", "photographs"]
MakeClient = Callable[..., TestClient]
COUNTS = st.lists(st.integers(0, 3000), min_size=10, max_size=10)


@given(counts=COUNTS, expected=COUNTS)
def test_the_index_is_the_symmetric_divergence_of_the_shares(counts: list[int], expected: list[int]) -> None:
    p, q = ((np.array(some) + 0.5) / (sum(some) + 5) for some in (counts, expected))
    found = stability_index(counts, expected)
    assert found == pytest.approx(rel_entr(p, q).sum() + rel_entr(q, p).sum(), abs=1e-9)
    assert found >= -1e-12 and stability_index(counts, counts) == 0


def usual(random: np.random.Generator, kind: Kind = "thumbnails") -> tuple[Kind, int, float]:
    """An answer as they are to calibration images."""
    reference = REFERENCES[kind]
    class_id = random.choice(10, p=np.array(reference.predicted) / sum(reference.predicted))
    place = random.choice(len(reference.confidence), p=np.array(reference.confidence) / sum(reference.confidence))
    low, high = reference.confidence_edges[place : place + 2]
    return kind, int(class_id), float(random.uniform(low, high))


def test_unusual_answers_raise_the_index_until_they_leave_the_window() -> None:
    random, drift = np.random.default_rng(0), Drift(REFERENCES, 500)
    for _ in range(499):
        drift.add(*usual(random))
    assert math.isnan(drift.labels()) and math.isnan(drift.confidences())
    drift.add(*usual(random))
    assert drift.labels() < 0.1 and drift.confidences() < 0.1
    for _ in range(250):
        drift.add("thumbnails", 3, usual(random)[2])
    assert drift.labels() > 0.25 and drift.confidences() < 0.1
    for _ in range(500):
        drift.add("thumbnails", usual(random)[1], 0.4)
    assert drift.labels() < 0.1 and drift.confidences() > 0.25
    for _ in range(500):
        drift.add(*usual(random))
    assert drift.labels() < 0.1 and drift.confidences() < 0.1


@pytest.mark.parametrize(
    ("confidence", "place"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.9, 2), (1.0, 2), (1.1, 2), (-1, 0)]
)
def test_confidences_are_binned_as_in_a_histogram(confidence: float, place: int) -> None:
    reference = Reference(predicted=[1] * 10, confidence_edges=[0, 0.5, 0.9, 1], confidence=[90, 90, 90])
    drift = Drift({"thumbnails": reference}, 1)
    drift.add("thumbnails", 0, confidence)
    counts = [0, 0, 0]
    counts[place] = 1
    assert drift.confidences() == pytest.approx(stability_index(counts, [90, 90, 90]))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_photographs_are_compared_with_photographs(share: float) -> None:
    random, drift = np.random.default_rng(0), Drift(REFERENCES, 1000)
    for _ in range(1000):
        drift.add(*usual(random, KINDS[int(random.random() < share)]))
    assert drift.labels() < 0.1 and drift.confidences() < 0.1


@pytest.mark.parametrize("answered", KINDS)
def test_a_kind_that_is_answered_like_the_other_has_drifted(answered: Kind) -> None:
    random, drift = np.random.default_rng(0), Drift(REFERENCES, 1000)
    other = KINDS[1 - KINDS.index(answered)]
    for _ in range(1000):
        drift.add(other, *usual(random, answered)[1:])
    assert drift.confidences() > 0.1


def test_an_answer_of_a_kind_without_a_reference_is_not_counted() -> None:
    drift = Drift({"thumbnails": REFERENCE}, 1)
    for kind in ("photographs", None):
        drift.add(kind, 0, 0.9)
    assert math.isnan(drift.labels())
    drift.add("thumbnails", 0, 0.9)
    assert not math.isnan(drift.labels())


def gauges(client: TestClient) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line.startswith("prediction_")]
    return {name: float(value) for name, value in lines}


@pytest.mark.data
def test_calibration_images_leave_the_index_low_and_corrupted_ones_raise_it(
    make_client: MakeClient, cifar10_dir: Path
) -> None:
    indices = json.loads((BUNDLE / "split.json").read_text())["calibrate"][:600]
    images = load(cifar10_dir, train=True, download=False).images[indices].numpy()
    client = make_client(drift_window_images=len(images))

    def show(pixels: np.ndarray) -> dict[str, float]:
        for start in range(0, len(pixels), 32):
            part = pixels[start : start + 32]
            tensor = {"name": "images", "shape": part.shape, "datatype": "UINT8", "data": part.ravel().tolist()}
            assert client.post("/v2/models/cifar10/infer", json={"inputs": [tensor]}).status_code == 200
        return gauges(client)

    first = show(images[:32])
    assert math.isnan(first['prediction_drift{of="labels"}']) and math.isnan(
        first['prediction_drift{of="confidences"}']
    )
    before = show(images)
    assert before['prediction_drift{of="labels"}'] < 0.1
    assert before['prediction_drift{of="confidences"}'] < 0.1
    assert before["prediction_ood_score_count"] == 632
    assert 0.02 * 632 < before["prediction_abstentions_total"] < 0.09 * 632

    after = show(CORRUPTIONS["gaussian_noise"](images, 5, np.random.default_rng(0)))
    assert after['prediction_drift{of="labels"}'] > 0.25
    assert after['prediction_drift{of="confidences"}'] > 0.25
    assert after["prediction_abstentions_total"] - before["prediction_abstentions_total"] > 0.3 * 600


def few(classes: int, images: int, bins: int = 10) -> tuple[Reference, np.ndarray]:
    """A reference of so few calibration images that classes and bins of confidence have hardly any, and true shares."""
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(classes))
    return Reference(
        predicted=random.multinomial(images, shares).tolist(),
        confidence_edges=np.linspace(0, 1, bins + 1).tolist(),
        confidence=random.multinomial(images, [1 / bins] * bins).tolist(),
    ), shares


@pytest.mark.parametrize(("classes", "images"), [(1000, 1500), (100, 300), (3, 60)])
def test_few_calibration_images_are_no_drift(classes: int, images: int) -> None:
    reference, shares = few(classes, images)
    random, drift = np.random.default_rng(1), Drift({"thumbnails": reference}, 1000)
    for class_id in random.choice(classes, 1000, p=shares):
        drift.add("thumbnails", int(class_id), float(random.uniform()))
    assert 0 < drift.labels() < 0.25 and 0 < drift.confidences() < 0.25
    for _ in range(1000):
        drift.add("thumbnails", int(random.integers(1 + classes // 4)), float(random.uniform(0, 0.4)))
    assert drift.labels() > 0.25 and drift.confidences() > 0.25


def test_with_too_few_calibration_images_drift_is_unknown() -> None:
    drift = Drift({"thumbnails": few(3, 20)[0]}, 1)
    drift.add("thumbnails", 0, 0.5)
    assert math.isnan(drift.labels()) and math.isnan(drift.confidences())


def rings(window: int) -> list[memoryview]:
    return [memoryview(bytearray(ring_bytes(window))) for _ in range(2)]


def test_workers_look_back_together_on_the_last_answers_of_the_service() -> None:
    random, alone, memory = np.random.default_rng(0), Drift(REFERENCES, 50), rings(50)
    workers = [DriftOfWorkers(REFERENCES, 50, memory, own, "digest") for own in range(2)]
    for number in range(120):
        answer = usual(random, KINDS[number % 2])
        alone.add(*answer)
        workers[int(random.random() < 0.2)].add(*answer)
        if number == 48:
            assert math.isnan(workers[0].labels()) and math.isnan(workers[1].confidences())
    for worker in workers:
        assert worker.labels() == pytest.approx(alone.labels())
        assert worker.confidences() == pytest.approx(alone.confidences())
    after = DriftOfWorkers(REFERENCES, 50, memory, 0, "digest")  # a worker that takes the place of one that ended
    assert after.labels() == pytest.approx(alone.labels())


def test_answers_of_a_former_bundle_are_not_counted() -> None:
    memory = rings(1)
    DriftOfWorkers(REFERENCES, 1, memory, 0, "former").add("thumbnails", 0, 0.9)
    assert math.isnan(DriftOfWorkers(REFERENCES, 1, memory, 1, "new").labels())
