"""The places of the images under way, QUEUE_IMAGES of them, whichever models answer. It knows nothing about HTTP.

places = Places(256)
with places.reserve(1):      # raises Overloaded if too few are free
    answer = await engine.infer(images, deadline)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Overloaded
from ..workers.tally import Tally


class Places:
    """For one event loop's thread. `images`: the number of places, one for each image.

    `tally`: by which several workers have these places together.
    """

    def __init__(self, images: int, tally: Tally | None = None) -> None:
        self._most = images
        self._tally = tally or Tally()
        self._reserved = 0

    @property
    def reserved(self) -> int:
        """The number of places that requests hold in this process."""
        return self._reserved

    def fits(self, images: int) -> bool:
        """Whether there are free places for this number of images."""
        return self._reserved + self._tally.others() + images <= self._most

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Hold places for `images` images while the block runs. Raises Overloaded if too few are free."""
        fitted = self.fits(images)
        self._reserved += images
        self._tally.add(images)
        try:
            if not fitted or not self.fits(0):  # the second: another worker took places at the same moment
                used = self._reserved + self._tally.others() - images
                raise Overloaded(f"{used} images are being worked on, at most {self._most} may be")
            yield
        finally:
            self._tally.add(-images)
            self._reserved -= images
