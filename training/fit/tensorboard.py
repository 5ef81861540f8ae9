"""A run's figures and mistakes in TensorBoard's format: `tensorboard --logdir RUNS` shows them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor

from training.data.cifar10 import CLASSES, LabelledImages
from training.errors import TrainingError
from training.export.plots import mistakes

TAGS = {
    "lr": "learning rate",
    "train_loss": "loss/training",
    "validation_loss": "loss/selection",
    "train_accuracy": "accuracy/training",
    "validation_accuracy": "accuracy/selection",
    "images_per_second": "images per second",
}
SHOWN = 12  # mistakes after an epoch


def check_tensorboard() -> None:
    """Raises TrainingError when the package is missing."""
    _summary_writer()


class TensorBoard:
    """A `training.fit.metrics.Board` and a context manager. Events after step `step` of an earlier start are hidden."""

    def __init__(self, folder: Path, step: int, classes: Sequence[str] = CLASSES) -> None:
        self._classes = classes
        self._writer = _summary_writer()(str(folder), purge_step=step + 1, flush_secs=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(TAGS[name], value, step)

    def mistakes(self, step: int, images: LabelledImages, logits: Tensor) -> None:
        """A picture of the wrong answers that the network is surest of. logits: float32 [N, classes]."""
        confidence, predicted = logits.cpu().softmax(1).max(1)
        (wrong,) = (predicted != images.labels).nonzero(as_tuple=True)
        worst = wrong[confidence[wrong].argsort(descending=True)][:SHOWN]
        pixels, truth, answers, shares = (
            one[worst].numpy() for one in (images.images, images.labels, predicted, confidence)
        )
        with Image.open(io.BytesIO(mistakes(pixels, truth, answers, shares, self._classes))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image("mistakes", pixels, step, dataformats="HWC")


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(f"--tensorboard needs pip install 'cifar10-classifier[tensorboard]' ({error})") from None
    return SummaryWriter
