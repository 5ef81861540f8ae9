"""A number that several workers have together.

tally = Tally(PLACES, own, others)
tally.add(3)
tally.others()      # how many the others have
"""

import threading
from collections.abc import Sequence

from .board import Part


class Tally:
    """A number that this process changes, and the sum of the other workers' numbers. By default there are none.

    For any thread.
    """

    def __init__(self, place: int = 0, own: Part | None = None, others: Sequence[Part] = ()) -> None:
        self._place = place
        self._own = own
        self._others = others
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """Let the others see that this process has so many more."""
        if self._own is not None:
            with self._lock:
                self._own.numbers[self._place] += amount

    def others(self) -> int:
        return sum(part.numbers[self._place] for part in self._others) if self._others else 0
