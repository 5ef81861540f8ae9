"""Bytes of an image in, ranked and calibrated predictions out; joins images, engine and bundle.

How far to trust them is said in two ways, each where the bundle has what it takes: a prediction set holds the true
class with a stated probability, if the image is of the kind that the model was trained on; abstaining says that it
looks like it is not.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from ..api.middleware.limits import PixelBudget
from ..bundle.reader import Manifest
from ..errors import DeadlineExceeded, NotFound
from ..imaging import activation_map
from ..imaging.decode import EncodedImage
from .answers import ImageResult, Prediction, PredictionSet
from .decisions import DIGITS, prediction_set, probabilities, top_k
from .engine import Answer, Engine, answer_to
from .sessions import Images, Outputs

if TYPE_CHECKING:
    from ..settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Classification:
    """probabilities: [classes], calibrated, summing to 1. Times in seconds.

    ood_score is larger for images less like the training images; abstain says that it is above the bundle's
    threshold. Both are None for a bundle without abstention.
    """

    probabilities: list[float]
    views: int
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float
    ood_score: float | None = None
    abstain: bool | None = None

    @cached_property
    def order(self) -> Sequence[int]:
        """Class ids, most probable first."""
        return top_k(self.probabilities, len(self.probabilities))

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.order[0]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.order[0]]


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG of what speaks for the class; `result` is that of the same view."""

    result: Classification
    class_id: int
    picture: bytes


class Classifier:
    """For one event loop; `close` it when done."""

    def __init__(self, manifest: Manifest, engine: Engine, settings: "Settings") -> None:
        self.classes = manifest.classes
        self._height = manifest.input.height
        self._width = manifest.input.width
        calibration, abstention = manifest.calibration, manifest.abstention
        self._temperature = calibration.temperature if calibration else 1.0
        conformal = calibration.conformal if calibration else None
        self.default_coverage = conformal.default_coverage if conformal else None
        self.levels = {level.coverage: level.threshold for level in conformal.levels} if conformal else {}
        self._ood_threshold = round(abstention.threshold, DIGITS) if abstention else None
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
        submitted = await self._submit(content, self._views, deadline)
        answer = await answer_to(submitted.answer, deadline)
        return self._classification(answer.outputs, answer, submitted.decode_seconds)

    async def explain(self, content: bytes, class_id: int | None, deadline: float) -> Explanation:
        """What in an encoded image speaks for a class, by default for the most probable one.

        There is one view, the whole image, however many `classify` takes: maps of different views do not add up.
        Raises what `classify` does, and NotFound for a model that has no maps.
        """
        submitted = await self._submit(content, 1, deadline, maps=True)
        answer = await answer_to(submitted.answer, deadline)
        if answer.outputs.class_maps is None:
            raise NotFound("this model has no class maps: its bundle was made without")
        result = self._classification(answer.outputs, answer, submitted.decode_seconds)
        if class_id is None:
            class_id = result.class_id
        picture = await self._in_thread(
            deadline, activation_map.draw, submitted.thumbnails[0], answer.outputs.class_maps[0], class_id
        )
        return Explanation(result, class_id, picture)

    async def classify_pixels(self, images: Images, deadline: float) -> list[Classification]:
        """What each image of uint8 RGB [N, height, width, 3] shows; each is one view.

        The engine gets them in as few pieces as keep all its workers busy. Raises DeadlineExceeded or Unavailable.
        """
        pieces = max(math.ceil(len(images) / self._max_batch_images), min(len(images), self._threads))
        answers = await asyncio.gather(
            *(self._engine.infer(piece, deadline) for piece in np.array_split(images, pieces))
        )
        return [
            self._classification(answer.outputs.part(index, index + 1), answer, 0.0)
            for answer in answers
            for index in range(len(answer.outputs.logits))
        ]

    def result(self, classification: Classification, k: int, coverage: float | None = None) -> ImageResult:
        """A classification as it goes over the wire. `coverage`, one of `levels`, is that of the prediction set."""
        return ImageResult(
            predictions=self._predictions(classification, k),
            prediction_set=self._prediction_set(
                classification, self.default_coverage if coverage is None else coverage
            ),
            abstain=classification.abstain,
            ood_score=classification.ood_score,
            ood_threshold=self._ood_threshold,
            views=classification.views,
        )

    def close(self) -> None:
        self._decoders.shutdown()

    async def _submit(self, content: bytes, views: int, deadline: float, *, maps: bool = False) -> "_Submitted":
        """Decode an image and give its views to the engine, in one thread: every change of threads costs a wait."""
        started = time.monotonic()

        def submit(image: EncodedImage) -> _Submitted:
            thumbnails = image.thumbnails(views, self._height, self._width)
            answer = self._engine.submit(thumbnails, deadline, maps=maps)
            return _Submitted(thumbnails, answer, time.monotonic() - started)

        def submit_if_room() -> EncodedImage | _Submitted:
            image = EncodedImage.identify(content, self._max_pixels)
            with self._pixels.hold_at_once(image.pixels) as held:
                return submit(image) if held else image

        done = await self._in_thread(deadline, submit_if_room)
        if isinstance(done, _Submitted):
            return done
        async with self._pixels.hold(done.pixels, deadline):
            return await self._in_thread(deadline, submit, done)

    async def _in_thread(self, deadline: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. Cancelled, or past the deadline, work that has not begun is withdrawn.

        What has begun is waited for all the same: its thread goes on, and holds its memory till then. What it gave to
        the engine meanwhile is withdrawn.
        """
        work = self._decoders.submit(function, *args, **kwargs)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(work)
        except (asyncio.CancelledError, TimeoutError) as error:
            if not work.cancel():  # what was awaited above is cancelled, the work is not
                await asyncio.wait({result := asyncio.wrap_future(work)})
                if result.exception() is None and isinstance(done := result.result(), _Submitted):
                    done.answer.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("no time was left to decode the image: the service is busy") from None
            raise

    def _classification(self, outputs: Outputs, answer: Answer, decode_seconds: float) -> Classification:
        """What the outputs for one image's views say of it; times are those of `answer`."""
        scores = outputs.ood_scores
        score = None if scores is None else round(sum(scores.tolist()) / len(scores), DIGITS)
        return Classification(
            probabilities=probabilities(outputs.logits, self._temperature),
            views=len(outputs.logits),
            decode_seconds=decode_seconds,
            queue_seconds=answer.queue_seconds,
            inference_seconds=answer.inference_seconds,
            ood_score=score,
            abstain=None if score is None or self._ood_threshold is None else score > self._ood_threshold,
        )

    def _predictions(self, classification: Classification, k: int) -> list[Prediction]:
        values = classification.probabilities
        return [
            Prediction(label=self.classes[index], class_id=index, probability=round(values[index], DIGITS))
            for index in classification.order[:k]
        ]

    def _prediction_set(self, classification: Classification, coverage: float | None) -> PredictionSet | None:
        if coverage is None:
            return None
        indices = prediction_set(classification.probabilities, self.levels[coverage])
        return PredictionSet(coverage=coverage, labels=[self.classes[index] for index in indices])


@dataclass(frozen=True)
class _Submitted:
    """An image's views, decoded, and the engine's answer to come."""

    thumbnails: Images
    answer: "Future[Answer]"
    decode_seconds: float
