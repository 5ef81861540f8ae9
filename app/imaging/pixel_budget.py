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


class PixelBudget:
    """Limits the pixels that are decoded at once. For any thread.

    An image larger than the whole budget waits until no other image is decoded.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int, deadline: float) -> Iterator[bool]:
        """Wait for the pixels; yields False if `deadline` (seconds of time.monotonic()) passes first."""
        pixels = min(pixels, self.limit)
        with self._changed:
            patience = deadline - time.monotonic()
            held = self._changed.wait_for(partial(self._fits, pixels), min(max(0.0, patience), threading.TIMEOUT_MAX))
            self.used += pixels if held else 0
        try:
            yield held
        finally:
            if held:
                with self._changed:
                    self.used -= pixels
                    self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self.used + pixels <= self.limit
