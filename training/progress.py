"""A run's progress for the person at the terminal; silence for anything else."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from training import fit


class ProgressBar:
    """A context manager that is a `training.fit.Watcher`: images/s, loss, accuracy, time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps, {task.fields[figures]}, left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: fit.Progress, steps: int, total_steps: int, images_per_second: float) -> None:
        figures = f"{images_per_second:.0f} images/s, loss {progress.loss_sum / progress.seen:.3f}"
        figures += f", accuracy {progress.correct / progress.seen:.1%}"
        if progress.history:
            figures += f", validation {progress.history[-1]['validation_accuracy']:.2%}"
        if self._task is None:
            self._task = self._bar.add_task("fit", total=total_steps, epoch=1, figures="")
        self._bar.update(self._task, completed=steps, epoch=progress.epoch + 1, figures=figures)
