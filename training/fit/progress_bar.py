"""A run's progress on a terminal; elsewhere `training.fit.progress_lines` tells it."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from training.fit.checkpoint import Progress as RunProgress
from training.fit.progress_lines import ProgressLines


def progress_on(console: Console, views: int = 0) -> "ProgressBar | ProgressLines":
    return ProgressBar(console, views) if console.is_terminal else ProgressLines(console, views)


class ProgressBar:
    """A context manager that is a `training.fit.run.Watcher`: images/s, loss, accuracy, time left; one line per epoch.

    Before the training, `answered` shows how many of `views` the teachers have answered.
    """

    def __init__(self, console: Console, views: int = 0) -> None:
        whole = Column(no_wrap=True, min_width=7)  # in a narrow terminal the bar shrinks
        self._bar = Progress(
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:.0f} %, {task.fields[figures]}, left", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=whole),
            console=console,
            expand=True,
        )
        self._views = views
        self._teaching: TaskID | None = None
        self._task: TaskID | None = None
        self._epochs_told = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: RunProgress, steps: int, total_steps: int, images_per_second: float) -> None:
        for row in progress.history[self._epochs_told :]:
            self._bar.console.print(f"epoch {row['epoch']}: validation accuracy {row['validation_accuracy']:.2%}")
        self._epochs_told = len(progress.history)
        figures = f"{images_per_second:.0f} images/s, loss {progress.loss_sum / progress.seen:.3f}"
        figures += f", accuracy {progress.correct / progress.seen:.1%}"
        if self._task is None:
            self._task = self._bar.add_task("fit", total=total_steps, stage="", figures="")
        self._bar.update(self._task, completed=steps, stage=f"epoch {progress.epoch + 1}", figures=figures)

    def answered(self, views: int) -> None:
        figures = f"{views} of {self._views} views"
        if self._teaching is None:
            self._teaching = self._bar.add_task("teach", total=self._views, stage="teachers", figures="")
        self._bar.update(self._teaching, completed=views, figures=figures, visible=views < self._views)
