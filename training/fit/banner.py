"""What a run is, told before it trains: a line each, as soon as it is known."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from training.config import Config
from training.data.cifar10 import LabelledImages
from training.data.description import Description
from training.fit.run import Run
from training.plural import plural


def tell(console: Console, what: str, line: str) -> None:
    console.print(f"{what:7} {line}", soft_wrap=True, highlight=False, markup=False)


def tell_images(
    console: Console,
    folder: Path,
    config: Config,
    of: Description,
    train: LabelledImages,
    select: LabelledImages,
    warning: str | None,
) -> None:
    """What a run learns from and is validated with; of a user's own images more than of CIFAR-10's."""
    counts = f"{len(train.labels):,} images to train on, {len(select.labels):,} to validate with"
    tell(console, "data", f"{counts}, from {folder}")
    if not of.is_cifar10:
        tell(console, "classes", classes_line(of.classes, train.labels))
        tell(console, "steps", steps_line(config, len(train.labels)))
    if warning is not None:
        tell(console, "warning", warning)


def classes_line(classes: Sequence[str], labels: Tensor) -> str:
    """How many classes there are, and whether some have fewer images than others. labels: int64 [N]."""
    counts = torch.bincount(labels, minlength=len(classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] == counts[many]:
        return f"{len(classes):,}, {int(counts[0]):,} images each"
    return (
        f"{len(classes):,}, from {int(counts[few]):,} images ({classes[few]}) to {int(counts[many]):,} "
        f"({classes[many]}): images of rare classes count for more"
    )


def steps_line(config: Config, images: int) -> str:
    """How many images a step sees and how often weights are averaged, which defaults may have decided."""
    every = "every step" if config.ema_every == 1 else f"every {config.ema_every} steps"
    return f"of {config.batch_size:,} of the {images:,} images; the weights are averaged {every}"


def begins(run: Run) -> str:
    """At which step a run begins."""
    done, total, epochs = run.steps_done, run.total_steps, run.config.epochs
    if run.progress.epoch == epochs:
        return f"finished before, with {plural(total, 'step')}"
    if done:
        return f"resumed at step {done:,} of {total:,}, in epoch {run.progress.epoch + 1} of {epochs}"
    return f"new, {plural(total, 'step')} in {plural(epochs, 'epoch')}"
