"""The progress of a download with its rate: a bar on a terminal, elsewhere a line at its beginning and one a minute."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

EVERY_SECONDS = 60.0


class DownloadProgress:
    """A context manager. `total` is in bytes."""

    def __init__(
        self, title: str, total: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = console or Console(stderr=True)
        self._title, self._console, self._total, self._clock = title, console, total, clock
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("download", total=total)
        self._host, self._said, self._bytes = "", 0.0, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, host: str, done: int) -> None:
        """Ask another host; `done` bytes are there already."""
        self._host, self._said, self._bytes = host, self._clock(), done
        self._bar.update(self._task, description=f"{self._title} from {host}", completed=done)
        if not self._console.is_terminal:
            there = f", {done / 1e6:.0f} are there" if done else ""
            self._say(f"downloading {self._title} from {host} ({self._total / 1e6:.0f} MB{there})")

    def update(self, done: int) -> None:
        """`done` bytes are there."""
        self._bar.update(self._task, completed=done)
        now = self._clock()
        if not self._console.is_terminal and now - self._said >= EVERY_SECONDS:
            rate = (done - self._bytes) / (now - self._said)
            self._say(f"{done / 1e6:.0f} of {self._total / 1e6:.0f} MB from {self._host}, {rate / 1e6:.2f} MB/s")
            self._said, self._bytes = now, done

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
