"""What a run is, told before it trains: a line each, as soon as it is known."""

from collections.abc import Sequence

import torch
from rich.console import Console
from torch import Tensor

from training.fit.run import Run


def tell(console: Console, what: str, line: str) -> None:
    console.print(f"{what:8}{line}", soft_wrap=True, highlight=False, markup=False)


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


def begins(run: Run) -> str:
    """At which step a run begins."""
    done, total, epochs = run.steps_done, run.total_steps, run.config.epochs
    if run.progress.epoch == epochs:
        return f"finished before, with {total:,} steps"
    if done:
        return f"resumed at step {done:,} of {total:,}, in epoch {run.progress.epoch + 1} of {epochs}"
    return f"new, {total:,} steps in {epochs} epochs"
