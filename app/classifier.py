"""Bytes of an image in, ranked and calibrated predictions out; joins images, engine and bundle."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from app.bundle import Manifest
from app.engine import Engine
from app.images import EncodedImage
from app.limits import PixelBudget
from app.sessions import Logits

if TYPE_CHECKING:
    from app.settings import Settings


@dataclass(frozen=True)
class Classification:
    """probabilities: float64 [classes], calibrated, summing to 1. Times in seconds."""

    probabilities: NDArray[np.float64]
    views: int
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float


class Classifier:
    """For one event loop; `close` it when done."""

    def __init__(self, manifest: Manifest, engine: Engine, settings: "Settings") -> None:
        self.classes = manifest.classes
        self._height = manifest.input.height
        self._width = manifest.input.width
        self._temperature = manifest.calibration.temperature if manifest.calibration else 1.0
        self._engine = engine
        self._views = settings.views
        self._max_pixels = settings.max_pixels
        self._pixels = PixelBudget(settings.max_inflight_pixels)
        # Pillow lets go of the interpreter while it decodes: as many at once as there are cores, and no more.
        self._decoders = ThreadPoolExecutor(settings.inference_threads, thread_name_prefix="decode")

    async def classify(self, content: bytes, deadline: float) -> Classification:
        """What an encoded image shows. `deadline` is in seconds of time.monotonic().

        Raises UndecodableImage, UnsupportedMediaType, ImageTooLarge, DeadlineExceeded or Unavailable.
        """
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoders, EncodedImage.identify, content, self._max_pixels)
        async with self._pixels.hold(image.pixels, deadline):
            thumbnails = await loop.run_in_executor(
                self._decoders, image.thumbnails, self._views, self._height, self._width
            )
        decoded = time.monotonic()
        answer = await self._engine.infer(thumbnails, deadline)
        return Classification(
            probabilities=probabilities(answer.logits, self._temperature),
            views=len(thumbnails),
            decode_seconds=decoded - started,
            queue_seconds=answer.queue_seconds,
            inference_seconds=answer.inference_seconds,
        )

    def close(self) -> None:
        self._decoders.shutdown()


def probabilities(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """float64 [classes]: the softmax of the mean over views of logits [views, classes], divided by `temperature`."""
    scaled = logits.astype(np.float64).mean(axis=0) / temperature
    powers = np.exp(scaled - scaled.max())
    return powers / powers.sum()  # type: ignore[no-any-return]


def top_k(values: NDArray[np.float64], k: int) -> Sequence[int]:
    """The indices of the k largest values, largest first; among equals the smaller index first."""
    return [int(index) for index in np.argsort(-values, kind="stable")[:k]]
