"""An interrupted training goes on with the bits that it would have had; here on a CPU, by a clock that counts steps."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny import make_images
from training.data.cifar10 import LabelledImages
from training.data.photographs import OTHER
from training.errors import TrainingError
from training.fit.stop import Stopped
from training.gpu import loop
from training.gpu.learners import Learner, Resized
from training.gpu.loop import Data, Outcome, Recipe, train
from training.gpu.state import State

RECIPE = Recipe(seconds=10, lr=1e-2, thumbnails=8, known=2, other=1, mixed=0.5, shrunk=1, stand_ins=1)
DATA = Data(make_images(30, seed=1), make_images(20, seed=2), make_images(12, seed=3))
DATA.photographs.labels[10:] = OTHER


def learners() -> list[Learner]:
    """Two networks with every kind of state."""
    torch.manual_seed(0)
    return [
        Learner(name, Resized(network(width), 32, (0.5,) * 3, (0.2,) * 3), torch.device("cpu"), weight_decay=0.05)
        for name, width in (("large", 8), ("small", 4))
    ]


def network(width: int) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), pool, nn.Linear(width, 10))


class Clock:
    """A second a step."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(state: State, monkeypatch: pytest.MonkeyPatch, signal_at: int | None = None) -> tuple[Outcome, dict[str, Any]]:
    """Train, and get SIGTERM in that step if one is given."""
    clock, views = Clock(), loop._Batches.__call__

    def batches(self: loop._Batches, step: int) -> Any:
        clock.now += 1
        if step + 1 == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return views(self, step)

    trained = learners()
    with monkeypatch.context() as context:
        context.setattr(loop._Batches, "__call__", batches)
        outcome = train(trained, DATA, RECIPE, state, say=lambda _: None, clock=clock)
    live = {f"{one.name}.{key}": value for one in trained for key, value in one.model.network.state_dict().items()}
    averaged = {f"{one.name}.averaged.{key}": value for one in trained for key, value in one.weights().items()}
    return outcome, live | averaged


def state(folder: Path, **identity: Any) -> State:
    return State(folder / "state.safetensors", identity)


@pytest.mark.parametrize("step", [1, 3, 5, 10])  # the third ends an epoch, the tenth the training
def test_a_signal_saves_the_state_and_the_training_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole, expected = run(state(tmp_path), monkeypatch)
    assert (whole.steps, len(whole.history["small"])) == (10, 4)
    with pytest.raises(Stopped, match=f"after {step} of 10 seconds of training, which is saved") as stop:
        run(state(tmp_path), monkeypatch, signal_at=step)
    assert stop.value.exit_code == 143
    outcome, weights = run(state(tmp_path), monkeypatch)
    assert outcome == whole
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_the_state_is_saved_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 4.0)
    saves = []
    monkeypatch.setattr(State, "save", lambda _, __, place: saves.append(place.step))
    run(state(tmp_path), monkeypatch)
    assert saves == [4, 8]


def test_the_state_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        run(state(tmp_path, lr=1), monkeypatch, signal_at=1)
    with pytest.raises(TrainingError, match="is the state of another run: use its options, or remove it"):
        run(state(tmp_path, lr=2), monkeypatch)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_a_damaged_state_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match="is damaged .*: remove it to start again") as error:
        run(state(tmp_path), monkeypatch)
    assert "\n" not in str(error.value)


def test_a_batch_holds_shrunk_photographs_and_framed_thumbnails() -> None:
    recipe = replace(RECIPE, mixed=0, shrunk=3, stand_ins=2)
    photographs = LabelledImages(
        DATA.photographs.images.repeat_interleave(2, 1).repeat_interleave(2, 2), DATA.photographs.labels
    )
    thumbnails, large, targets, weights, plain = loop._Batches(replace(DATA, photographs=photographs), recipe)(0)
    assert plain
    assert thumbnails.shape == (8 + 3, 3, 32, 32)
    assert large.shape == (2 + 2 + 1, 3, 64, 64)
    assert targets[11:13].equal(targets[:2])  # the framed images are the first of the batch
    assert weights.tolist() == [1.0] * 15 + [recipe.other_weight]
    assert targets[10].equal(targets[15])
    assert targets[10].unique().tolist() == [pytest.approx(0.1)]  # other things


def test_a_framed_image_is_whole_in_the_centre_and_mirrored_around_it() -> None:
    images = make_images(2, seed=4).images
    framed = loop._framed(images, 64)
    assert framed[:, 16:48, 16:48].equal(images)
    assert framed[:, 15, 16:48].equal(images[:, 1])
    assert framed[:, 16:48, 48].equal(images[:, :, 30])
