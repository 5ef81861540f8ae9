"""From an encoded image to its classification: the decoder, the engine and the bundle's rules put together.

classifier = Classifier.start(bundle.manifest, session, settings)
classification = await classifier.classify(content, deadline)
classification.answer(top_k=3)
classifier.close()
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..bundle.manifest import Manifest
from ..errors import NotFound, Problem, forget_tracebacks
from ..imaging import activation_map
from ..imaging.decoder import Decoder, Images, Limits
from ..imaging.formats import check_size
from ..settings import Settings
from .answers import Classification, Rules
from .engine import Answer, Engine, answer_to
from .sessions import Session


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG of what speaks for the class; `result` is the classification of the same view."""

    result: Classification
    class_id: int
    picture: bytes


class Classifier:
    """For one event loop; `close` it when done."""

    def __init__(
        self, manifest: Manifest, engine: Engine, settings: Settings, on_kill: Callable[[str], None] = lambda _: None
    ) -> None:
        self.rules = Rules.of(manifest)
        self.engine = engine
        self._views = settings.views
        self._threads = settings.inference_threads
        self._max_batch_images = settings.max_batch_images
        self._max_file_bytes = settings.max_file_bytes
        self.decoder = Decoder(
            processes=settings.inference_threads,
            limits=Limits(settings.max_pixels, settings.max_inflight_pixels, settings.max_decode_seconds),
            height=manifest.input.height,
            width=manifest.input.width,
            on_kill=on_kill,
        )

    @classmethod
    def start(
        cls,
        manifest: Manifest,
        session: Session,
        settings: Settings,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
        on_kill: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """A classifier with an engine of its own; see Engine for `on_batch` and `on_death`, Decoder for `on_kill`."""
        engine = Engine(
            session.run,
            threads=settings.inference_threads,
            max_batch_images=settings.max_batch_images,
            queue_images=settings.queue_images,
            on_batch=on_batch,
            on_death=on_death,
        )
        return cls(manifest, engine, settings, on_kill)

    async def classify(self, content: bytes, deadline: float, client: str = "") -> Classification:
        """What an encoded image shows. `deadline` is in seconds of time.monotonic(); clients share decoders fairly.

        Raises UndecodableImage, UnsupportedMediaType, PayloadTooLarge, ImageTooLarge, TooExpensive, DeadlineExceeded
        or Unavailable.
        """
        check_size(content, self._max_file_bytes)
        decoded = await self.decoder.decode(
            content, self._views, deadline, lambda thumbnails: self.engine.submit(thumbnails, deadline), client
        )
        return self._classification(await answer_to(decoded.handed_on, deadline), decoded.seconds)

    async def classify_batch(
        self, contents: Iterable[bytes], deadline: float, client: str = ""
    ) -> list[Classification | Problem]:
        """What each encoded image shows, in order; a Problem for an image that cannot be used.

        Raises the first error that is not an image's own: DeadlineExceeded, Unavailable or a bug.
        """
        # All are waited for: nothing goes on after this returns, and which error is raised does not depend on timing.
        outcomes = await asyncio.gather(
            *(self.classify(content, deadline, client) for content in contents), return_exceptions=True
        )
        for problem in outcomes:
            if isinstance(problem, Problem):
                forget_tracebacks(problem)
        results: list[Classification | Problem] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not (isinstance(outcome, Problem) and outcome.status < 500):
                raise outcome
            results.append(outcome)
        return results

    async def explain(self, content: bytes, class_id: int | None, deadline: float, client: str = "") -> Explanation:
        """What in an encoded image speaks for a class, by default for the most probable one.

        Only one view, the whole image, is explained, since maps of different views do not add up.
        Raises what `classify` does, and NotFound for a model without class maps.
        """
        check_size(content, self._max_file_bytes)
        decoded = await self.decoder.decode(
            content, 1, deadline, lambda thumbnails: self.engine.submit(thumbnails, deadline, maps=True), client
        )
        answer = await answer_to(decoded.handed_on, deadline)
        maps = answer.outputs.class_maps
        if maps is None:
            raise NotFound("this model has no class maps: its bundle was made without")
        result = self._classification(answer, decoded.seconds)
        if class_id is None:
            class_id = result.class_id
        picture = await asyncio.to_thread(activation_map.draw, decoded.thumbnails[0], maps[0], class_id)
        return Explanation(result, class_id, picture)

    async def classify_pixels(self, images: Images, deadline: float) -> list[Classification]:
        """What each image of uint8 RGB [N, height, width, 3] shows; each is one view.

        The engine gets them in as few pieces as keep all its workers busy. Raises DeadlineExceeded or Unavailable.
        """
        pieces = max(math.ceil(len(images) / self._max_batch_images), min(len(images), self._threads))
        answers = await asyncio.gather(
            *(self.engine.infer(piece, deadline) for piece in np.array_split(images, pieces))
        )
        return [self._classification(one) for answer in answers for one in answer.by_image()]

    def close(self) -> None:
        """Finish the work that was accepted, and stop all threads."""
        self.engine.close()
        self.decoder.close()

    def _classification(self, answer: Answer, decode_seconds: float = 0.0) -> Classification:
        return self.rules.classify(
            answer.outputs,
            decode_seconds=decode_seconds,
            queue_seconds=answer.queue_seconds,
            inference_seconds=answer.inference_seconds,
        )
