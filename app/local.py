"""Classifies images in the program that imports it, without a server: what the service answers, as a Python object.

    with load() as classifier:               # the shipped model; load("models/mine", views=3) for another
        answer = classifier("cat.jpg")       # or bytes, a binary file, a PIL image or a uint8 array
        print(answer.predictions[0].label, answer.abstain)

Images are decoded with the limits of the service and in its sandboxed processes, and classified by its engine. Any
number of threads may share a classifier: while they call it at once, it computes with several threads.
"""

import asyncio
import math
import os
import threading
import weakref
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import ValidationError
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict

from .bundle.manifest import Manifest
from .bundle.reader import Bundle
from .errors import InvalidParameter
from .image_source import ImageSource, encoded
from .imaging.kinds import Kind
from .inference.answers import Classification, ImageResult
from .inference.classifier import DEFAULT_TOP_K, Classifier
from .inference.sessions import Session, load_session
from .local_files import read
from .settings import Settings, SettingsError
from .validation_errors import one_line

KINDS = get_args(Kind)


def load(model: str | os.PathLike[str] | None = None, **settings: Any) -> "LocalClassifier":
    """The classifier of a bundle, by default of the shipped one.

    `settings` have the names of the service's, in lower case, such as `engine`, `views`, `inference_threads` and
    `max_pixels`. The environment and `.env` are not read: they are the importing program's.

    Raises SettingsError, which is a ValueError, for an unknown or invalid setting, and BundleError or SessionError for
    a bundle that cannot be used.
    """
    if model is not None:
        settings["model_dir"] = model
    try:
        given = GivenSettings(**settings)
    except ValidationError as error:
        raise SettingsError(one_line(error.errors(include_input=False))) from None
    return LocalClassifier(given, load_session(given))


class GivenSettings(Settings):
    """Settings that come from a program, not from its environment."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[Settings],  # type: ignore[override]  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class LocalClassifier:
    """Call it with an image. It may be called by several threads at once; `close` it, or leave its `with` block.

    `manifest`: of the bundle. A classifier that is not closed ends with the last reference to it, or with the program.
    """

    def __init__(self, settings: Settings, loaded: tuple[Bundle, Session]) -> None:
        bundle, session = loaded
        self.manifest: Manifest = bundle.manifest
        self._max_file_bytes = settings.max_file_bytes
        self._classifier = Classifier.start(bundle.manifest, session, settings)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="classifier", daemon=True)
        thread.start()
        self._process = os.getpid()
        self._beginning = threading.Lock()
        self._finalizer = weakref.finalize(
            self, _stop, self._classifier, self._loop, thread, self._beginning, self._process
        )

    def __call__(
        self, image: ImageSource, *, top_k: int = DEFAULT_TOP_K, coverage: float | None = None, kind: Kind | None = None
    ) -> ImageResult:
        """What the image shows: the `top_k` most probable classes, and how far to trust them; as `POST /predict`.

        `coverage`: of the prediction set, one of the bundle's levels. `kind`: overrules the image's size.

        Raises a Problem (see `errors`) for an image or a parameter that the service would refuse, OSError for a file
        that cannot be read, TypeError or ValueError for what is no image, and RuntimeError when it is closed.
        """
        self._check_running()
        self._classifier.check(top_k, coverage)
        if kind is not None and kind not in KINDS:
            raise InvalidParameter(f"kind: it must be one of {', '.join(KINDS)} (given: {str(kind)[:40]!r})")
        return self._classify(self._content(image), kind).answer(top_k, coverage)

    def close(self) -> None:
        """Finish the calls of other threads, and stop all threads and processes. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_running(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("this process was forked after load(), and has no threads: call load() in it")
        if not self._finalizer.alive:
            raise RuntimeError("the classifier is closed")

    def _content(self, image: ImageSource) -> bytes:
        if isinstance(image, str | os.PathLike):
            return read(Path(image), self._max_file_bytes)  # refuses a large file before it reads it
        return encoded(image)

    def _classify(self, content: bytes, kind: Kind | None) -> Classification:
        with self._beginning:
            self._check_running()
            classifying = self._classifier.classify(content, math.inf, kind=kind)
            future = asyncio.run_coroutine_threadsafe(classifying, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, too
            future.cancel()
            raise


def _stop(
    classifier: Classifier,
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    beginning: threading.Lock,
    process: int,
) -> None:
    if os.getpid() != process:
        return  # a fork of it: the threads are its parent's
    with beginning:  # from here on no call begins
        finishing = asyncio.run_coroutine_threadsafe(_finish(), loop)
    finishing.result()
    classifier.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _finish() -> None:
    """Wait for all other tasks of the event loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
