"""The places of the images under way, QUEUE_IMAGES of them, whichever models answer. It knows nothing about HTTP.

places = Places(256)
with places.reserve(1):      # raises Overloaded if too few are free
    answer = await engine.infer(images, deadline)
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Overloaded


class Places:
    """For one event loop's thread. `images`: the number of places, one for each image."""

    def __init__(self, images: int) -> None:
        self._most = images
        self._reserved = 0

    @property
    def reserved(self) -> int:
        """The number of places that requests hold."""
        return self._reserved

    def fits(self, images: int) -> bool:
        """Whether there are free places for this number of images."""
        return self._reserved + images <= self._most

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Hold places for `images` images while the block runs. Raises Overloaded if too few are free."""
        if not self.fits(images):
            raise Overloaded(f"{self._reserved} images are being worked on, at most {self._most} may be")
        self._reserved += images
        try:
            yield
        finally:
            self._reserved -= images
