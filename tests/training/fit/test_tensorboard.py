import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.conftest import TINY_OPTIONS, Answer
from tests.training.tiny import make_images, shallow
from training.export import plots
from training.fit import initial_weights
from training.fit.metrics import read_metrics
from training.fit.run import Run
from training.fit.run_folder import METRICS, TENSORBOARD
from training.fit.tensorboard import SHOWN, TAGS, TensorBoard


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_a_run_shows_what_metrics_jsonl_holds(
    command: Callable[..., Answer], tmp_path: Path, tiny_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
    answer = command("fit", *TINY_OPTIONS, "--run-dir", tmp_path, "--threads", 1, "--tensorboard")
    assert answer.code == 0, answer.err
    found, rows = events(tmp_path / TENSORBOARD), read_metrics(tmp_path / METRICS)
    for name, tag in TAGS.items():
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(tag)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in expected
        ]
        assert len(expected) == 2
    pictures = found.Images("mistakes")
    assert [event.step for event in pictures] == [3, 6]
    assert min(Image.open(BytesIO(pictures[0].encoded_image_string)).size) > 100


def test_the_wrong_answers_that_it_is_surest_of_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        "training.fit.tensorboard.mistakes", lambda *arguments: shown.append(arguments) or plots.mistakes(*arguments)
    )
    images, logits = make_images(20, seed=0), torch.zeros(20, 10)
    logits[torch.arange(20), images.labels] = 5.0
    logits[4, 7], logits[9, 1] = 8.0, 9.0
    with TensorBoard(tmp_path, 0) as board:
        board.mistakes(1, images, logits)
        board.mistakes(2, images, -logits)
    (pixels, truth, predicted, confidence, _), (many, *_) = shown
    assert (truth.tolist(), predicted.tolist()) == ([9, 4], [1, 7])
    assert pixels.tolist() == images.images[[9, 4]].tolist()
    assert confidence.tolist() == logits.softmax(1).max(1).values[[9, 4]].tolist()
    assert len(many) == SHOWN


def test_a_network_without_mistakes_shows_an_empty_picture(tmp_path: Path) -> None:
    images = make_images(20, seed=0)
    with TensorBoard(tmp_path, 0) as board:
        board.mistakes(1, images, torch.nn.functional.one_hot(images.labels, 10).float())
    assert len(events(tmp_path).Images("mistakes")) == 1


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path: Path) -> None:
    figures: Mapping[str, float] = {"train_loss": 1.0}
    with TensorBoard(tmp_path, 0) as board:
        for step in (1, 2, 3):
            board.add(step, figures)
    with TensorBoard(tmp_path, 2) as board:
        board.add(3, figures)
    assert [event.step for event in events(tmp_path).Scalars("loss/training")] == [1, 2, 3]


def test_without_the_package_one_line_names_the_extra(
    command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(Run, "__init__", lambda *_: pytest.fail("it began"))
    answer = command("fit", "--run-dir", tmp_path, "--tensorboard", "--no-download")
    assert answer.code == 1 and answer.out == ""
    assert answer.err.startswith("error: --tensorboard needs pip install 'cifar10-classifier[tensorboard]' (")
    assert answer.err.count("\n") == 1
