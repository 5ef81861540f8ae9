"""Limits the pixels that are decoded at once.

budget = PixelBudget(25_000_000)
with budget.hold(1_000_000, deadline) as held:      # waits; `held` is False if the deadline passes first
    ...
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..workers.tally import Tally

LOOK_SECONDS = 0.01  # between two looks at what other workers hold


class PixelBudget:
    """Limits the pixels that are decoded at once. For any thread.

    An image larger than the whole budget waits until no other image is decoded.

    `tally`: by which several workers have the budget together.
    """

    def __init__(self, limit: int, tally: Tally | None = None) -> None:
        self.limit = limit
        self.used = 0
        self._tally = tally or Tally()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int, deadline: float) -> Iterator[bool]:
        """Wait for the pixels; yields False if `deadline` (seconds of time.monotonic()) passes first."""
        pixels = min(pixels, self.limit)
        with self._changed:
            held = self._take(pixels, deadline)
        try:
            yield held
        finally:
            if held:
                with self._changed:
                    self._add(-pixels)
                    self._changed.notify_all()

    def _take(self, pixels: int, deadline: float) -> bool:
        """Whether there was room for them before the deadline."""
        while True:
            left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            # Other workers notify nobody here.
            patience = min(left, LOOK_SECONDS) if self._tally.shared else left
            if self._changed.wait_for(partial(self._fits, pixels), patience):
                self._add(pixels)
                if self._fits(0):
                    return True
                self._add(-pixels)  # another worker took pixels at the same moment
            if time.monotonic() >= deadline:
                return False

    def _add(self, pixels: int) -> None:
        self.used += pixels
        self._tally.add(pixels)

    def _fits(self, pixels: int) -> bool:
        return self.used + self._tally.others() + pixels <= self.limit
