"""metrics.jsonl: what it holds, and that a run that was killed leaves the lines of one that was not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.training.fit.test_run import SELECT, TRAIN, Killed, killer
from tests.training.tiny import TINY, shallow
from training.data.cifar10 import LabelledImages
from training.fit import initial_weights
from training.fit.metrics import read_metrics
from training.fit.run import Run
from training.fit.run_folder import METRICS


@pytest.fixture(autouse=True)
def shallow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
    monkeypatch.setattr("training.fit.run.SAVE_EVERY_SECONDS", 0.0)


class Noting:
    """A board."""

    def __init__(self) -> None:
        self.figures: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[int] = []

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        self.figures.append((step, dict(figures)))

    def mistakes(self, step: int, images: LabelledImages, logits: Tensor) -> None:
        assert images is SELECT and logits.shape == (20, 10)
        self.pictures.append(step)


def start(folder: Path) -> Run:
    return Run(folder, TINY, "random", TRAIN, SELECT)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in ("time", "images_per_second")}
        for row in rows(folder)
    ]


def test_lines_are_the_means_since_the_line_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit.metrics.EVERY", 2)
    sums: list[float] = []
    run, board = start(tmp_path), Noting()
    run.fit(lambda progress, *_: sums.append(progress.loss_sum), board=board)
    found = rows(tmp_path)
    assert [(row["step"], row["epoch"], "train_loss" in row) for row in found] == [
        *((2, 1, True), (3, 1, True), (3, 1, False)),
        *((4, 2, True), (6, 2, True), (6, 2, False)),
    ]
    losses = [row["train_loss"] for row in found if "train_loss" in row]
    assert losses == pytest.approx(
        [sums[1] / 16, (sums[2] - sums[1]) / 8, sums[3] / 8, (sums[5] - sums[3]) / 16], rel=1e-9
    )
    last = run.progress.history[-1]
    assert {name: found[-1][name] for name in ("validation_loss", "validation_accuracy")}.items() <= last.items()
    assert found[-2]["lr"] == last["lr"]
    assert all(row["images_per_second"] > 0 for row in found if "train_loss" in row)
    shown = [{"step": step} | figures for step, figures in board.figures]
    assert shown == [{name: value for name, value in row.items() if name not in ("time", "epoch")} for row in found]
    assert board.pictures == [3, 6]


@pytest.mark.parametrize("after", [2, 3, 4, 5, 6])
def test_a_run_that_was_killed_leaves_the_lines_of_one_that_was_not(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.metrics.EVERY", 1)
    start(tmp_path / "whole").fit()
    with pytest.raises(Killed):
        start(tmp_path / "killed").fit(killer(after))
    with (tmp_path / "killed" / METRICS).open("a") as file:
        file.write('{"time": "2026-12')  # cut off
    start(tmp_path / "killed").fit()
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


def test_a_kill_after_the_validation_does_not_leave_its_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "whole").fit()
    save, saves = Run._save, 0

    def killed(run: Run) -> None:
        nonlocal saves
        saves += run.progress.step in (0, 3)
        if saves == 3:  # after the third step, before the validation, and after it
            raise Killed
        save(run)

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(Run, "_save", killed)
        start(tmp_path / "killed").fit()
    assert rows(tmp_path / "killed")[-1]["validation_loss"]
    start(tmp_path / "killed").fit()
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


def test_lines_that_are_no_figures_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "epoch": 1}\n\xff\n5\n{}\n{"step": 2, "epoch": null}\n')
    assert read_metrics(tmp_path / METRICS) == [{"step": 1, "epoch": 1}]
    assert read_metrics(tmp_path / "none") == []
