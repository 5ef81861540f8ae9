import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.bundle.report import Corruption, Epoch, RobustnessReport
from training.data.corruptions import CORRUPTIONS
from training.evaluate.calibration import calibration_report
from training.evaluate.network_outputs import Predictions
from training.evaluate.selective import selective_report
from training.export import plots


def history(epochs: int) -> list[Epoch]:
    return [
        Epoch(
            epoch=epoch,
            lr=0.001,
            train_loss=2 / epoch,
            train_accuracy=1 - 0.7 / epoch,
            validation_loss=1.5 / epoch,
            validation_accuracy=1 - 0.5 / epoch,
            seconds=600,
        )
        for epoch in range(1, epochs + 1)
    ]


def scored() -> Predictions:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (300,), generator=random)
    logits = torch.randn(300, 10, generator=random)
    logits[torch.arange(300), labels] += 3
    return Predictions(logits, labels)


def counts() -> plots.Counts:
    return np.full((10, 10), 12) + np.diag(np.full(10, 880))


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the resolution, a quarter of the time."""
    monkeypatch.setattr(plots, "DPI", plots.DPI / 2)


def reliability(some: Predictions) -> bytes:
    return plots.reliability(some, calibration_report(some, some))


def robustness() -> bytes:
    corruptions = [Corruption(name=name, accuracy=[0.9, 0.8, 0.7, 0.4, 0.1]) for name in CORRUPTIONS]
    return plots.robustness(RobustnessReport(n=1000, clean_accuracy=0.95, mean_accuracy=0.58, corruptions=corruptions))


def mistakes(count: int) -> bytes:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    truth = random.integers(0, 10, count)
    return plots.mistakes(images, truth, (truth + 1) % 10, random.random(count))


PICTURES = {
    "risk and coverage": lambda: plots.risk_coverage(selective_report(scored(), 1.0)),
    "never wrong": lambda: plots.risk_coverage(selective_report(Predictions(torch.eye(10), torch.arange(10)), 1.0)),
    "robustness": robustness,
    "mistakes": lambda: mistakes(18),
    "a row of mistakes and one": lambda: mistakes(7),
    "history": lambda: plots.accuracy_and_loss(history(7)),
    "one epoch": lambda: plots.accuracy_and_loss(history(1)),
    "confusion": lambda: plots.confusion(counts()),
    "a class that never occurs": lambda: plots.confusion(np.diag([0] + [5] * 9)),
    "reliability": lambda: reliability(scored()),
    "always sure": lambda: reliability(Predictions(torch.eye(10) * 1000, torch.arange(10))),
}


ODD = ["$x$ _{", "Käse \u72ac", "a name of more than twenty-four characters"]


@pytest.mark.parametrize("count", [3, 21, 41])
def test_pictures_of_any_number_of_classes_with_any_names_are_drawn(count: int) -> None:
    classes = ODD + [f"class {number}" for number in range(3, count)]
    for content in (plots.confusion(np.eye(count, dtype=np.int64), classes), one_mistake(classes)):
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG" and picture.width <= 3000


@pytest.mark.parametrize("mistakes", [0, 3, 60])
def test_of_a_thousand_classes_the_most_frequent_mistakes_are_drawn(
    monkeypatch: pytest.MonkeyPatch, mistakes: int
) -> None:
    counts = np.diag(np.full(1000, 2))
    for number in range(mistakes):
        counts[number, number + 1] = 5 - number % 2
    drawn = []
    monkeypatch.setattr(plots, "png", drawn.append)
    plots.confusion(counts, [f"class {number}" for number in range(1000)])
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == min(mistakes, plots.MOST_CONFUSIONS)
    assert names[:2] == ["class 0, taken for class 1", "class 2, taken for class 3"][: len(names)]
    assert f"{int(counts.sum()) - 2000} of" in axes.get_title()


def one_mistake(classes: list[str]) -> bytes:
    images = np.zeros((1, 96, 96, 3), np.uint8)
    return plots.mistakes(images, np.array([0]), np.array([2]), np.array([0.5]), classes, columns=2)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_png_and_nothing_is_cut(name: str) -> None:
    content = PICTURES[name]()
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert 400 <= picture.width <= 800 and 150 <= picture.height <= 600
        pixels = np.asarray(picture.convert("L"))
    assert len(np.unique(pixels)) > 10
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all(), "a label runs over the edge"


def test_a_picture_is_of_its_data_and_always_the_same() -> None:
    three = plots.accuracy_and_loss(history(3))
    assert three == plots.accuracy_and_loss(history(3))
    assert three != plots.accuracy_and_loss(history(4))
