"""From an encoded image to its classification: the decoder, the engine and the bundle's rules put together.

classifier = Classifier.start(bundle.manifest, session, settings)
classification = await classifier.classify(content, deadline)
classification.answer(top_k=3)
classifier.close()
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..bundle.manifest import Input, Manifest, Photographs
from ..errors import InvalidParameter, NotFound, Problem, forget_tracebacks
from ..imaging import activation_map
from ..imaging.decoder import Decoder, Processes
from ..imaging.formats import check_size
from ..imaging.job import Images
from ..imaging.kinds import Kind, Sizes
from ..imaging.limits import Limits
from ..settings import Settings
from .answers import Classification, rules_of
from .engine import Answer, Engine
from .sessions import Session

DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG of what speaks for the class; `result` is the classification of the same view."""

    result: Classification
    class_id: int
    picture: bytes


class Classifier:
    """For one event loop; `close` it when done. `rules`: for each kind of pictures; `labels`: in index order."""

    def __init__(self, manifest: Manifest, engine: Engine, settings: Settings, decoder: Decoder | None = None) -> None:
        self.rules = rules_of(manifest)
        self.labels = manifest.classes
        self.engine = engine
        self._views = settings.views
        self._threads = settings.inference_threads
        self._max_batch_images = settings.max_batch_images
        self._max_file_bytes = settings.max_file_bytes
        self.decoder = decoder or decoder_of(manifest, settings)

    @classmethod
    def start(
        cls,
        manifest: Manifest,
        session: Session,
        settings: Settings,
        *,
        decoder: Callable[[], Decoder] | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> Self:
        """A classifier with an engine of its own, then a decoder, its own by default. Engine explains the callbacks."""
        engine = Engine(
            session.run,
            threads=settings.inference_threads,
            max_batch_images=settings.max_batch_images,
            on_batch=on_batch,
            on_idle=session.release_memory,
            on_death=on_death,
        )
        return cls(manifest, engine, settings, decoder() if decoder else None)

    def check(self, top_k: int, coverage: float | None) -> None:
        """Raises InvalidParameter for a value that this model does not have.

        DEFAULT_TOP_K is no error for a model with fewer classes.
        """
        if not 1 <= top_k <= max(DEFAULT_TOP_K, len(self.labels)):
            raise InvalidParameter(f"top_k: it must be from 1 to {len(self.labels)} (given: {top_k})")
        if coverage is not None and coverage not in self.levels:
            levels = ", ".join(map(str, self.levels))
            allowed = f"it must be one of {levels}" if levels else "this model has no prediction sets"
            raise InvalidParameter(f"coverage: {allowed} (given: {coverage})")

    @property
    def levels(self) -> list[float]:
        """The coverages of prediction sets that the model has for thumbnails or photographs."""
        return list(dict.fromkeys(level for rules in self.rules.values() for level in rules.levels))

    async def classify(
        self, content: bytes, deadline: float, client: str = "", kind: Kind | None = None, *, here: bool = False
    ) -> Classification:
        """What an encoded image shows. `deadline` is in seconds of time.monotonic(); clients share decoders fairly.

        `kind` overrules what app.imaging.kinds says of the image. With `here` the thread that decodes the image also
        computes, for a minute picture that of the event loop: for callers who know that nobody else waits.

        Raises UndecodableImage, UnsupportedMediaType, PayloadTooLarge, ImageTooLarge, TooExpensive, DeadlineExceeded
        or Unavailable.
        """
        check_size(content, self._max_file_bytes)
        began = time.monotonic()
        decoded = await self.decoder.decode(
            content,
            self._views,
            deadline,
            lambda thumbnails: self.engine.submit(thumbnails, deadline, here=here),
            client,
            kind,
        )
        return self._classification(decoded.answer, decoded.kind, decoded.seconds, began, decoded.thumbnails[0])

    async def classify_batch(
        self, contents: Iterable[bytes], deadline: float, client: str = "", kind: Kind | None = None
    ) -> list[Classification | Problem]:
        """What each encoded image shows, in order; a Problem for an image that cannot be used.

        Raises the first error that is not an image's own: DeadlineExceeded, Unavailable or a bug.
        """
        # All are waited for: nothing goes on after this returns, and which error is raised does not depend on timing.
        outcomes = await asyncio.gather(
            *(self.classify(content, deadline, client, kind) for content in contents), return_exceptions=True
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

    async def explain(
        self, content: bytes, class_id: int | None, deadline: float, client: str = "", kind: Kind | None = None
    ) -> Explanation:
        """What in an encoded image speaks for a class, by default for the most probable one.

        Only one view, the whole image, is explained, since maps of different views do not add up.
        Raises what `classify` does, and NotFound for a model without class maps.
        """
        check_size(content, self._max_file_bytes)
        began = time.monotonic()
        decoded = await self.decoder.decode(
            content, 1, deadline, lambda thumbnails: self.engine.submit(thumbnails, deadline, maps=True), client, kind
        )
        answer = decoded.answer
        maps = answer.outputs.class_maps
        if maps is None:
            raise NotFound("this model has no class maps: its bundle was made without")
        result = self._classification(answer, decoded.kind, decoded.seconds, began)
        if class_id is None:
            class_id = result.class_id
        picture = await asyncio.to_thread(activation_map.draw, decoded.thumbnails[0], maps[0], class_id)
        return Explanation(result, class_id, picture)

    async def classify_pixels(self, images: Images, deadline: float) -> list[Classification]:
        """What each thumbnail of uint8 RGB [N, height, width, 3] shows; each is one view.

        The engine gets them in as few pieces as keep all its workers busy. Raises DeadlineExceeded or Unavailable.
        """
        pieces = max(math.ceil(len(images) / self._max_batch_images), min(len(images), self._threads))
        answers = await asyncio.gather(
            *(self.engine.infer(piece, deadline) for piece in np.array_split(images, pieces))
        )
        return [self._classification(one, "thumbnails") for answer in answers for one in answer.by_image()]

    def close(self) -> None:
        """Finish the work that was accepted, and stop all threads."""
        self.engine.close()
        self.decoder.close()

    def _classification(
        self,
        answer: Answer,
        kind: Kind,
        decode_seconds: float = 0.0,
        began: float | None = None,
        thumbnail: Images | None = None,
    ) -> Classification:
        return self.rules[kind].classify(
            answer.outputs,
            decode_seconds=decode_seconds,
            queue_seconds=answer.queue_seconds,
            inference_seconds=answer.inference_seconds,
            began=began,
            ended=answer.ended,
            thumbnail=thumbnail,
        )


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.max_pixels, settings.max_inflight_pixels, settings.max_decode_seconds)


def decoder_of(
    manifest: Manifest,
    settings: Settings,
    on_kill: Callable[[str], None] = lambda _: None,
    borrowed: Processes | None = None,
) -> Decoder:
    """A decoder with the settings' limits, to the sizes of the manifest; see Decoder for the rest."""
    return Decoder(
        processes=settings.inference_threads,
        limits=limits_of(settings),
        sizes=sizes_of(manifest),
        on_kill=on_kill,
        borrowed=borrowed,
    )


def sizes_of(manifest: Manifest) -> Sizes:
    """Height and width of each kind of images, in pixels."""
    return {"thumbnails": _size(manifest.input), "photographs": _size(manifest.photographs or manifest.input)}


def _size(of: Input | Photographs) -> tuple[int, int]:
    return of.height, of.width
