"""Ctrl-C and SIGTERM while a run trains: it stops after the step in progress, whose state is saved."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

from training.errors import TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(TrainingError):
    """A signal stopped the run, and its state is saved. `exit_code` is the one that shells give to the signal."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"interrupted after {where}, which is saved: the same command goes on from there")
        self.number, self.exit_code = number, 128 + number


class StopRequest:
    """A context manager in which Ctrl-C and SIGTERM are only noted. A second Ctrl-C raises KeyboardInterrupt."""

    number = 0  # of the signal that came first

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            # Not by print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        self.number = self.number or number
