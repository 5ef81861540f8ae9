"""What an image may take."""

from dataclasses import dataclass

SMALL_BYTES = 1 << 16
SMALL_PIXELS = 1 << 20


@dataclass(frozen=True)
class Limits:
    """max_pixels: for one image; max_inflight_pixels: for all images above SMALL_PIXELS that are decoded at once.

    cpu_seconds: CPU time of one image. memory_bytes: memory that one image may allocate. It suffices for the accepted
    image that needs the most, an AVIF of max_pixels, and for the file itself.
    """

    max_pixels: int = 25_000_000
    max_inflight_pixels: int = 25_000_000
    cpu_seconds: float = 2.0

    @property
    def memory_bytes(self) -> int:
        return 12 * self.max_pixels + (96 << 20)
