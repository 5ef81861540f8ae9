from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny import TINY, make_images, shallow
from training.data.cifar10 import Split
from training.errors import TrainingError
from training.evaluate.abstention import METHODS, PAIRS
from training.evaluate.leave_two_out import (
    CONFIG,
    Fold,
    compare_methods,
    leave_two_out,
    read_near,
    without,
    write_near,
)
from training.evaluate.network_outputs import Outputs
from training.fit import initial_weights, run_folder

IMAGES = make_images(130, seed=0)
PARTS = Split(train=torch.arange(90), select=torch.arange(90, 110), calibrate=torch.arange(110, 130))


@pytest.fixture(autouse=True)
def shallow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (initial_weights, run_folder):
        monkeypatch.setattr(module, "mobilenet_v2", shallow)


def test_each_network_never_sees_its_two_classes(tmp_path: Path) -> None:
    networks = list(leave_two_out(tmp_path, TINY, "random", IMAGES, PARTS))
    assert [one.pair for one in networks] == list(PAIRS)
    for one in networks:
        assert not set(one.pair) & set(one.bank_labels.tolist())
        assert len(one.bank.features) == len(one.bank_labels) == 72
        assert (len(one.known.logits), len(one.unknown.logits)) == (32, 8)
        assert one.known.logits.shape[1] == one.unknown.logits.shape[1] == 8
    areas = compare_methods(networks)
    assert set(areas) == set(METHODS) and all(len(by_pair) == 5 for by_pair in areas.values())

    again = list(leave_two_out(tmp_path, TINY, "random", IMAGES, PARTS, watch=lambda *_: pytest.fail("trained again")))
    assert all(
        np.array_equal(one.unknown.features, other.unknown.features) for one, other in zip(networks, again, strict=True)
    )


def test_features_of_another_configuration_are_not_taken_for_this_one_s(tmp_path: Path) -> None:
    next(leave_two_out(tmp_path, TINY, "random", IMAGES, PARTS))
    with pytest.raises(TrainingError, match=r"holds another run: lr is 0\.5 here and 0\.001 there"):
        next(leave_two_out(tmp_path, replace(TINY, lr=0.5), "random", IMAGES, PARTS))


def test_without_drops_both_classes() -> None:
    rest = without(IMAGES, (2, 3))
    assert set(rest.labels.tolist()) == set(range(10)) - {2, 3}
    assert torch.equal(rest.images, IMAGES.images[(IMAGES.labels != 2) & (IMAGES.labels != 3)])


def test_areas_are_by_method_in_the_order_of_the_pairs() -> None:
    random = np.random.default_rng(0)
    networks = []
    for pair, shift in zip(PAIRS[:2], (0, 40), strict=True):
        bank, known, unknown = (
            Outputs(
                np.abs(random.normal(1, 1, (20, 12))).astype(np.float32),
                random.normal(0, 1, (20, 8)).astype(np.float32),
            )
            for _ in range(3)
        )
        networks.append(Fold(pair, bank, np.arange(20) % 8, known, Outputs(unknown.features, unknown.logits - shift)))
    areas = compare_methods(networks)
    assert areas["maximum_logit"][1] == areas["energy"][1] == 1 > areas["energy"][0]


def test_what_was_found_is_read_back(tmp_path: Path) -> None:
    areas = {"knn": [0.1, 0.2, 0.3, 0.4, 0.5]}
    write_near(tmp_path / "near.json", CONFIG, areas)
    assert read_near(tmp_path / "near.json") == areas
    assert read_near(tmp_path / "none.json") == {}
    (tmp_path / "near.json").write_text("[]")
    with pytest.raises(TrainingError, match="--near .*near.json is damaged"):
        read_near(tmp_path / "near.json")
