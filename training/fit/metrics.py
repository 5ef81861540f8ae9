"""metrics.jsonl: a run's figures while it trains, a JSON object a line.

Every EVERY steps and at the end of each epoch, means over the images since the line before, or since the run went on:

    {"time": "2026-12-01T12:00:00+00:00", "step": 10, "epoch": 1, "lr": 0.0001, "train_loss": 1.71,
     "train_accuracy": 0.39, "images_per_second": 88.1}

After each epoch, the averaged weights on the selection split:

    {"time": "2026-12-01T12:08:20+00:00", "step": 703, "epoch": 1, "validation_loss": 0.81, "validation_accuracy": 0.72}
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from training.atomic_files import write_atomically
from training.data.cifar10 import LabelledImages
from training.fit.checkpoint import Progress

EVERY = 10  # steps


class Board(Protocol):
    """What `training.fit.tensorboard.TensorBoard` does."""

    def add(self, step: int, figures: Mapping[str, float]) -> None: ...

    def mistakes(self, step: int, images: LabelledImages, logits: Tensor) -> None: ...


class Metrics:
    """The file of a run that goes on from `progress`, after `step` steps.

    Lines of steps that the run repeats, because they were not saved, are removed.
    """

    def __init__(self, path: Path, progress: Progress, step: int, board: Board | None = None) -> None:
        self._path, self._last, self._board = path, progress, board
        if path.exists():
            kept = [row for row in read_metrics(path) if _is_before(row, progress, step)]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def trained(self, step: int, now: Progress, lr: float, *, last: bool) -> None:
        """Take note of a step, of which the run has done `step`, and which may be the last of its epoch."""
        if step % EVERY and not last:
            return
        before = self._last if self._last.epoch == now.epoch else Progress()
        images = now.seen - before.seen
        figures = {
            "lr": lr,
            "train_loss": (now.loss_sum - before.loss_sum) / images,
            "train_accuracy": (now.correct - before.correct) / images,
            "images_per_second": round(images / (now.epoch_seconds - before.epoch_seconds), 1),
        }
        self._last = now
        self._write(step, now.epoch + 1, figures)

    def validated(self, step: int, epoch: int, loss: float, accuracy: float) -> None:
        self._write(step, epoch, {"validation_loss": loss, "validation_accuracy": accuracy})

    def _write(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "epoch": epoch, **figures}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            self._board.add(step, figures)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of the file, oldest first, without what a kill cut off; none without a file."""
    rows = map(_row, path.read_text(errors="replace").splitlines()) if path.exists() else ()
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
        row["step"], row["epoch"] = int(row["step"]), int(row["epoch"])
        return row
    except (ValueError, KeyError, TypeError):
        return None


def _is_before(row: Mapping[str, Any], progress: Progress, step: int) -> bool:
    finished: int = row["epoch"] if "validation_loss" in row else row["epoch"] - 1
    return bool(row["step"] <= step and finished <= progress.epoch)
