"""A run's progress where there is no terminal: a line a minute, and one for every epoch."""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console

from training.fit.checkpoint import Progress

EVERY_SECONDS = 60.0


class ProgressLines:
    """A context manager that is a `training.fit.run.Watcher`, as `training.fit.progress_bar.ProgressBar` is one."""

    def __init__(self, console: Console, views: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Before the training, `answered` tells how many of `views` the teachers have answered."""
        self._console, self._views, self._clock = console, views, clock
        self._begun, self._before = 0.0, 0  # when this run began, and after how many steps
        self._steps = math.inf
        self._said = 0.0
        self._epochs_told = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, progress: Progress, steps: int, total_steps: int, images_per_second: float) -> None:
        now = self._clock()
        for row in progress.history[self._epochs_told :]:
            self._say(f"epoch {row['epoch']}: validation accuracy {row['validation_accuracy']:.2%}")
        self._epochs_told = len(progress.history)
        if steps <= self._steps:  # the first step of a run; several may share the lines
            self._begun, self._before, self._said = now, steps, now
        self._steps = steps
        if now - self._said < EVERY_SECONDS:
            return
        self._said = now
        loss, accuracy = progress.loss_sum / progress.seen, progress.correct / progress.seen
        seconds_a_step = (now - self._begun) / (steps - self._before)
        left = timedelta(seconds=round(seconds_a_step * (total_steps - steps)))
        self._say(
            f"step {steps:,} of {total_steps:,}, epoch {progress.epoch + 1}: {images_per_second:.0f} images/s, "
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {left} left"
        )

    def answered(self, views: int) -> None:
        self._say(f"teachers: {views} of {self._views} views")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
