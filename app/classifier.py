"""Bytes of an image in, ranked and calibrated predictions out; joins images, engine and bundle."""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.bundle import Manifest
from app.engine import Engine
from app.images import EncodedImage
from app.limits import PixelBudget
from app.schemas import Prediction
from app.sessions import Images, Logits

if TYPE_CHECKING:
    from app.settings import Settings

T = TypeVar("T")


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
        self._threads = settings.inference_threads
        self._max_batch_images = settings.max_batch_images
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
            thumbnails = await _to_its_end(
                loop.run_in_executor(self._decoders, image.thumbnails, self._views, self._height, self._width)
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

    async def classify_pixels(self, images: Images, deadline: float) -> list[Classification]:
        """What each image of uint8 RGB [N, height, width, 3] shows; each is one view.

        The engine gets them in as few pieces as keep all its workers busy. Raises DeadlineExceeded or Unavailable.
        """
        pieces = max(math.ceil(len(images) / self._max_batch_images), min(len(images), self._threads))
        answers = await asyncio.gather(
            *(self._engine.infer(piece, deadline) for piece in np.array_split(images, pieces))
        )
        return [
            Classification(
                probabilities=probabilities(logits[None], self._temperature),
                views=1,
                decode_seconds=0.0,
                queue_seconds=answer.queue_seconds,
                inference_seconds=answer.inference_seconds,
            )
            for answer in answers
            for logits in answer.logits
        ]

    def ranked(self, values: NDArray[np.float64], k: int) -> list[Prediction]:
        """The k most probable classes, most probable first; `values` are the probabilities [classes]."""
        return [
            Prediction(label=self.classes[index], class_id=index, probability=round(float(values[index]), 6))
            for index in top_k(values, k)
        ]

    def close(self) -> None:
        self._decoders.shutdown()


async def _to_its_end(work: "asyncio.Future[T]") -> T:
    """The result of work in a thread. Cancelled, it still waits: the thread goes on, and holds its memory till then."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


def probabilities(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """float64 [classes]: the softmax of the mean over views of logits [views, classes], divided by `temperature`."""
    scaled = logits.astype(np.float64).mean(axis=0) / temperature
    powers = np.exp(scaled - scaled.max())
    return powers / powers.sum()  # type: ignore[no-any-return]


def top_k(values: NDArray[np.float64], k: int) -> Sequence[int]:
    """The indices of the k largest values, largest first; among equals the smaller index first."""
    return [int(index) for index in np.argsort(-values, kind="stable")[:k]]
