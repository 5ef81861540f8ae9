"""The models that are served, each a bundle, and their replacement while requests are under way.

    repository = Repository(settings)
    repository.models["cifar10"].classifier
    await repository.load("cifar10")          # LoadInProgress, LoadFailed: what answered before goes on
    repository.close()

A load reads the model's folder anew, or fetches what is now at its address: the new bundle is verified, and its
session passes its self-check, beside the old one. Then one assignment replaces the model. Requests that use the former
one finish on it, and its memory is freed after the last of them. So two bundles of one model are in memory for a while,
never three.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ..bundle.manifest import Manifest
from ..bundle.reader import Bundle, BundleError
from ..errors import DeadlineExceeded, Internal, LoadFailed, LoadInProgress, Problem, Unavailable
from ..imaging.borrowed_processes import BorrowedProcesses
from ..imaging.decoder import Decoder
from ..imaging.kinds import Kind
from ..memory import available_memory
from ..remote import local_folder
from ..settings import DEFAULT_MODEL, Settings
from ..workers.worker import Worker
from .classifier import Classifier, decoder_of, sizes_of
from .drift import Drift, DriftOfWorkers, references_of
from .engine import ThreadsError
from .loaded_model import LoadedModel
from .sessions import Session, SessionError, load_session

# A load takes up to 2.4 bytes for each byte of the folder's files, and the first batches take more.
MEMORY_PER_BYTE = 4
Loaded: TypeAlias = dict[str, tuple[Bundle, Session]]  # by the models' names
logger = logging.getLogger("app.repository")


class Repository:
    """For one event loop; `close` it when done. `models`: by name; the first is the default.

    `loaded` is what folders hold that are loaded already, by the models' names; it is emptied. `worker`: if this is one
    of several, which have limits and drift together; then `prepare` and `end_load` take the place of `load`, as the
    supervisor says. `on_batch` gets a model's name and a
    number of images, `on_kill` and `on_death` are those of Decoder and Engine. `on_load` gets each model that replaces
    another, as soon as it answers.

    Raises BundleError, SessionError or ThreadsError.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: Loaded | None = None,
        *,
        worker: Worker | None = None,
        on_batch: Callable[[str, int], None] = lambda _, __: None,
        on_death: Callable[[], None] = lambda: None,
        on_kill: Callable[[str], None] = lambda _: None,
        on_load: Callable[[LoadedModel], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._on_batch = on_batch
        self._on_death = on_death
        self._on_load = on_load
        self._worker = worker
        self._decoders = _Decoders(settings, on_kill, worker)
        self._prepared: LoadedModel | None = None
        self._loading: str | None = None
        self._task: asyncio.Task[LoadedModel | Problem] | None = None
        self._ending: dict[LoadedModel, asyncio.Task[None]] = {}  # former models that requests still use
        self._failures: dict[str, str] = {}
        self._closed = False
        self.models: dict[str, LoadedModel] = {}
        try:
            for name, folder in settings.folders.items():
                given = loaded.pop(name, None) if loaded else None
                self.models[name] = self._start(name, *(given or load_session(at(settings, folder))))
                del given  # a model that is replaced is freed
        except BaseException:
            self.close()
            raise

    @property
    def default(self) -> LoadedModel:
        return self.models[DEFAULT_MODEL]

    @property
    def alive(self) -> bool:
        """Whether all models answer."""
        return all(model.classifier.engine.alive for model in self.models.values())

    @property
    def died(self) -> bool:
        """Whether the engine of a model has met an error."""
        return any(model.classifier.engine.died for model in (*self.models.values(), *self._ending))

    def reason(self, name: str) -> str:
        """What is to be said of a model beside that it answers: that it is being loaded, or why that failed."""
        return "it is being loaded anew" if self._loading == name else self._failures.get(name, "")

    async def load(self, name: str, deadline: float) -> LoadedModel:
        """Replace a model by what its folder holds now. `deadline` is in seconds of time.monotonic().

        The load goes on after the deadline, and when the caller is cancelled.

        Raises LoadInProgress, LoadFailed, Internal, DeadlineExceeded or Unavailable.
        """
        if self._loading is not None:
            raise LoadInProgress(f"{self._loading!r} is being loaded: load the next model after that")
        self._loading = name
        self._task = asyncio.create_task(self._load(name))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                outcome = await asyncio.shield(self._task)
        except TimeoutError:
            raise DeadlineExceeded("the load goes on: the repository's index says when it ends") from None
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    def announce(self, name: str) -> None:
        """The supervisor has begun to load this model."""
        self._loading = name

    async def prepare(self, name: str, digest: str) -> str | None:
        """Load what a model's folder holds now, which must be the bundle of that digest. Returns why it cannot be."""
        try:
            if self._ending:
                await asyncio.wait(self._ending.values())
            prepared = await self._load_anew(name)
        except Problem as problem:
            return problem.detail
        found = prepared.bundle.manifest.digest
        if found != digest:
            await asyncio.to_thread(prepared.classifier.engine.close)
            return "the folder has changed meanwhile; the model that was there goes on"
        self._prepared = prepared
        return None

    async def end_load(self, name: str, reason: str | None) -> LoadedModel | None:
        """Let what was prepared answer. With a reason, drop it, and go on as before."""
        self._loading = None
        prepared, self._prepared = self._prepared, None
        if reason is None and prepared:
            self._failures.pop(name, None)
            self._take_over(prepared)
            return prepared
        self._failures[name] = reason or ""
        if prepared:
            await asyncio.to_thread(prepared.classifier.engine.close)
        return None

    def close(self) -> None:
        """Finish the work that was accepted, and stop all threads."""
        self._closed = True
        for model in (*self.models.values(), *self._ending, *([self._prepared] if self._prepared else [])):
            model.classifier.engine.close()
        self._decoders.close()

    async def _load(self, name: str) -> LoadedModel | Problem:
        started = time.monotonic()
        try:
            if self._ending:
                await asyncio.wait(self._ending.values())
            model = await self._load_anew(name)
            self._take_over(model)
        except Problem as problem:
            if isinstance(problem, LoadFailed):
                self._failures[name] = problem.detail
                logger.warning("not loaded", extra={"fields": {"model": name, "reason": problem.detail}})
            return problem
        finally:
            self._loading = None
        self._failures.pop(name, None)
        seconds = round(time.monotonic() - started, 2)
        fields = {"model": name, "version": model.bundle.manifest.version, "seconds": seconds}
        logger.info("loaded", extra={"fields": fields})
        return model

    async def _load_anew(self, name: str) -> LoadedModel:
        """Raises LoadFailed, Internal or Unavailable."""
        folder: Path | None = None
        try:
            folder = await asyncio.to_thread(folder_of, self._settings, name)
            bundle, session = await asyncio.to_thread(load_beside, self._settings, folder)
            if self._closed:
                raise Unavailable("the service is shutting down")
            return self._start(name, bundle, session)
        except (BundleError, SessionError, ThreadsError, MemoryError) as error:
            raise not_loaded(error, folder) from None
        except Problem:
            raise
        except Exception:
            logger.exception("a bug in loading a model")
            raise Internal("the service met a bug; the model that was there goes on") from None

    def _take_over(self, model: LoadedModel) -> None:
        former, self.models[model.name] = self.models[model.name], model
        self._ending[former] = asyncio.create_task(self._end(former))
        self._on_load(model)

    def _start(self, name: str, bundle: Bundle, session: Session) -> LoadedModel:
        manifest = bundle.manifest
        classifier = Classifier.start(
            manifest,
            session,
            self._settings,
            decoder=lambda: self._decoders.of(manifest),
            on_batch=partial(self._on_batch, name),
            on_death=self._on_death,
        )
        return LoadedModel(name, bundle, classifier, self._drift(name, manifest))

    def _drift(self, name: str, manifest: Manifest) -> Drift | None:
        references, window = references_of(manifest), self._settings.drift_window_images
        if not references:
            return None
        if worker := self._worker:
            return DriftOfWorkers(references, window, worker.board.rings[name], worker.number, manifest.digest)
        return Drift(references, window)

    async def _end(self, former: LoadedModel) -> None:
        await former.end()
        await asyncio.to_thread(self._decoders.keep, [model.bundle.manifest for model in self.models.values()])
        del self._ending[former]


_Key: TypeAlias = tuple[tuple[Kind, tuple[int, int]], ...]


def _key(manifest: Manifest) -> _Key:
    return tuple(sizes_of(manifest).items())


class _Decoders:
    """One decoder for all models whose images have the same sizes: processes and limits are the service's."""

    def __init__(self, settings: Settings, on_kill: Callable[[str], None], worker: Worker | None) -> None:
        self._settings = settings
        self._on_kill = on_kill
        self._borrowed = (
            BorrowedProcesses(worker.pool, cpu_seconds=settings.max_decode_seconds, on_kill=on_kill)
            if worker and worker.pool
            else None
        )
        self._by_sizes: dict[_Key, Decoder] = {}

    def of(self, manifest: Manifest) -> Decoder:
        key = _key(manifest)
        if key not in self._by_sizes:
            self._by_sizes[key] = decoder_of(manifest, self._settings, self._on_kill, self._borrowed)
        return self._by_sizes[key]

    def keep(self, manifests: Iterable[Manifest]) -> None:
        """Close the decoders that no other model has."""
        used = set(map(_key, manifests))
        for key in self._by_sizes.keys() - used:
            self._by_sizes.pop(key).close()

    def close(self) -> None:
        if self._borrowed:
            self._borrowed.close()
        self.keep(())


def at(settings: Settings, folder: Path | str) -> Settings:
    """The same settings for the model in this folder."""
    return settings.model_copy(update={"model_dir": folder})


def folder_of(settings: Settings, name: str) -> Path:
    """Of what is to be loaded of a model now, since a link may be led elsewhere while it is read. Raises BundleError.

    Path.resolve would raise RuntimeError for a link that leads to itself; here reading it fails, as for other faults.
    """
    return Path(os.path.realpath(local_folder(settings.folders[name], settings.model_cache, settings.model_digest)))


def not_loaded(error: Exception, folder: Path | None) -> LoadFailed:
    """What is said of an error in loading a folder, without its place. `folder`: None if it could not be fetched."""
    reason = str(error)
    if folder is None:
        reason = reason.partition(": ")[2]  # the address comes first
    else:
        reason = reason.replace(f"{folder}/", "").replace(str(folder), "the folder")
    return LoadFailed(f"{reason or 'too little memory'}; the model that was there goes on")


def load_beside(settings: Settings, folder: Path, copies: int = 1) -> tuple[Bundle, Session]:
    """Raises LoadFailed if there is too little memory for so many of this bundle beside those that are loaded.

    Raises BundleError or SessionError.
    """
    try:
        needed = copies * MEMORY_PER_BYTE * sum(path.stat().st_size for path in folder.iterdir())
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from None
    free = available_memory()
    if needed > free:
        raise LoadFailed(
            f"too little memory: for a while the old bundle and the new one are in it, which takes about"
            f" {needed / 1e6:.0f} MB more, and {free / 1e6:.0f} MB are free; the model that was there goes on"
        )
    return load_session(at(settings, folder))
