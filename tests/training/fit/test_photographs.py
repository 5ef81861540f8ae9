"""Photographs beside the thumbnails of a step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.bundle.manifest import Architecture
from app.network.mobilenet import Preprocessed, mobilenet_v2
from tests.training.fit.test_run import SELECT, TRAIN, Killed, killer
from tests.training.tiny import TINY, make_images, shallow
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.data.cifar10 import LabelledImages
from training.data.photographs import OTHER
from training.errors import TrainingError
from training.fit import initial_weights
from training.fit.distributed import World
from training.fit.photographs import BothSizes, PhotographBatches, PhotographSampler, photograph_targets
from training.fit.run import Run

WITH_PHOTOGRAPHS = replace(TINY, photograph_batch=5)


def photographs(count: int = 20, side: int = 32) -> LabelledImages:
    """Cats, one truck, and other things."""
    images = make_images(count, seed=5).images.repeat_interleave(side // 32, 1).repeat_interleave(side // 32, 2)
    labels = torch.full((count,), OTHER)
    labels[:9], labels[9:10] = 3, 9
    return LabelledImages(images, labels)


@pytest.fixture(autouse=True, scope="module")
def shallow_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
        yield


def run(folder: Path, photos: LabelledImages | None, **changes: int) -> Run:
    return Run(folder, replace(WITH_PHOTOGRAPHS, **changes), "random", TRAIN, SELECT, photographs=photos)


def test_photographs_change_what_is_learned_and_a_killed_run_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.run.SAVE_EVERY_SECONDS", 0.0)
    torch.set_num_threads(1)
    whole = run(tmp_path / "whole", photographs()).fit().read_bytes()
    assert run(tmp_path / "again", photographs()).fit().read_bytes() == whole
    assert run(tmp_path / "without", photographs(), photograph_batch=0).fit().read_bytes() != whole
    with pytest.raises(Killed):
        run(tmp_path / "killed", photographs()).fit(killer(4))
    assert run(tmp_path / "killed", photographs()).fit().read_bytes() == whole


def test_a_run_goes_on_only_with_the_same_photographs(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, photographs()).fit(killer(1))
    other = LabelledImages(photographs().images.flip(0), photographs().labels)
    with pytest.raises(TrainingError, match="photograph_data"):
        run(tmp_path, other)


def test_a_batch_of_photographs_needs_photographs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="without --photographs it must be 0"):
        run(tmp_path, None)


def test_pictures_of_other_things_alone_are_answered_with_equal_probabilities() -> None:
    batches = PhotographBatches(photographs().take(torch.arange(10, 20)), 5, classes=3)
    images, targets, weights = batches(torch.Generator().manual_seed(0))
    assert images.shape == (5, 32, 32, 3) and weights.sum().item() == batches.weight == 2.5
    torch.testing.assert_close(targets, torch.full((5, 3), 1 / 3))


def test_ranks_share_the_photographs_of_a_step(tmp_path: Path) -> None:
    whole = run(tmp_path, photographs())
    parts = []
    for rank in range(2):
        whole.world = World()
        whole.world.size, whole.world.rank = 2, rank
        parts.append(whole._photographs(torch.Generator().manual_seed(1)))
    together = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    assert whole.photographs is not None
    expected = whole.photographs(torch.Generator().manual_seed(1))
    assert all(torch.equal(*pair) for pair in zip(together, expected, strict=True))


def test_both_sizes_are_seen_as_each_alone_is() -> None:
    network = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2, enlarge=2)).eval()
    model = Preprocessed(network, IMAGENET_MEAN, IMAGENET_STD)
    thumbnails, large = make_images(3, seed=1).images, photographs(2, side=64).images
    with torch.inference_mode():
        together = BothSizes(model, 64)(thumbnails, large)
        torch.testing.assert_close(together, torch.cat([model(thumbnails), model(large)]))


def test_rare_classes_are_drawn_more_often_than_they_come() -> None:
    sampler = PhotographSampler(photographs().labels)
    drawn = photographs().labels[sampler(4000, 1000, torch.Generator().manual_seed(0))]
    # The truck is one of ten; by inverse roots it gets 1 of 1 + 9 / 3.
    assert (drawn[:4000] == 9).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (drawn[4000:] == OTHER).all()


def test_other_things_should_be_answered_with_equal_probabilities() -> None:
    targets = photograph_targets(torch.tensor([3, OTHER]), 0.05)
    assert targets[0, 3].item() == pytest.approx(0.955)
    torch.testing.assert_close(targets[1], torch.full((10,), 0.1))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_without_pictures_of_other_things_all_photographs_are_of_the_classes() -> None:
    batches = PhotographBatches(photographs().take(torch.arange(10)), 5)
    images, targets, weights = batches(torch.Generator().manual_seed(0))
    assert images.shape == (5, 32, 32, 3) and images.dtype == torch.uint8
    assert (targets.max(1).values > 0.9).all() and weights.sum().item() == batches.weight == 5
