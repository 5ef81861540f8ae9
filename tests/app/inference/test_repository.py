"""Models that are replaced while they answer. Sessions are stubs here, so that a load takes no time."""

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.bundle.manifest import Manifest
from app.bundle.names import GRAPH
from app.bundle.reader import Bundle, BundleError
from app.errors import DeadlineExceeded, Internal, LoadFailed, LoadInProgress, Problem, Unavailable
from app.imaging.own_processes import OwnProcesses
from app.inference import repository as module
from app.inference.engine import ThreadsError
from app.inference.loaded_model import LoadedModel
from app.inference.preloaded import Preloaded
from app.inference.repository import MEMORY_PER_BYTE, Repository
from app.inference.sessions import Images, Outputs, Session, SessionError
from app.local import GivenSettings as Settings  # the environment is not read, which would take most of the time
from tests.app.forged import forge, write
from tests.conftest import BUNDLE, SMALL_BUNDLE

Make = Callable[..., Repository]
LOAD_SESSION = module.load_session


class Stub:
    """A session whose outputs are zeros, and wait until it is opened."""

    def __init__(self, opened: bool = True) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        if opened:
            self.opened.set()

    def run(self, images: Images, maps: bool = False) -> Outputs:
        self.entered.set()
        assert self.opened.wait(30)
        return Outputs(np.zeros((len(images), 10), np.float32), np.zeros(len(images), np.float32))

    def release_memory(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, loaded: tuple[Bundle, Session]) -> Iterator[Make]:
    """A function that makes a repository, and closes it when the test ends. A load gives a stub, at once."""
    monkeypatch.setattr(module, "load_session", lambda _: (loaded[0], Stub()))
    running = []

    def repository(session: object = None, on_load: Any = lambda _: None, **settings: object) -> Repository:
        values = {"model_dir": BUNDLE, "inference_threads": 1, **settings}
        given = {"cifar10": (loaded[0], session or Stub())}
        running.append(Repository(Settings(**values), given, on_load=on_load))
        return running[-1]

    yield repository
    for one in running:
        one.close()


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


async def ended(repository: Repository) -> None:
    """Until the former models have ended."""
    while repository._ending:
        await asyncio.wait(repository._ending.values())


async def test_a_request_under_way_finishes_on_the_model_that_it_began_with(make: Make, cat: bytes) -> None:
    former, answering = Stub(opened=False), list[LoadedModel]()
    repository = make(former, on_load=answering.append)
    old = repository.default

    async def request() -> None:
        with repository.default as model:
            assert (await model.classifier.classify(cat, soon())).probabilities is not None

    under_way = asyncio.create_task(request())
    await asyncio.to_thread(former.entered.wait)
    new = await repository.load("cifar10", soon())
    assert answering == [new] and repository.default is new is not old
    await request()  # the new model answers, while the old one still computes
    assert not under_way.done() and old.classifier.engine.alive
    former.opened.set()
    await under_way
    await ended(repository)
    assert not old.classifier.engine.alive and not old.classifier.engine.died
    assert new.classifier.engine.alive


async def test_a_request_that_has_not_reached_the_engine_keeps_its_model(make: Make, cat: bytes) -> None:
    repository = make()
    with repository.default as model:
        await repository.load("cifar10", soon())
        await asyncio.sleep(0)
        await model.classifier.classify(cat, soon())  # as one whose body came slowly
        assert repository.default is not model
    await ended(repository)
    with pytest.raises(Unavailable):
        await model.classifier.classify(cat, soon())


async def test_twenty_loads_leave_no_thread_and_no_session_behind(make: Make, cat: bytes) -> None:
    repository = make()
    sessions = list[weakref.ref[object]]()
    for _ in range(20):
        model = await repository.load("cifar10", soon())
        with model:
            await model.classifier.classify(cat, soon())
        sessions.append(weakref.ref(model.classifier.engine._compute.__self__))
    await ended(repository)
    del model
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("inference-0") == sum(name.startswith("decode-general") for name in names) == 1
    assert [session() is None for session in sessions] == [True] * 19 + [False]  # without the garbage collector


async def test_one_model_is_loaded_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make()
    begun, go_on = threading.Event(), threading.Event()
    quick = module.load_session

    def slow(settings: Settings) -> tuple[Bundle, Session]:
        begun.set()
        assert go_on.wait(30)
        return quick(settings)

    monkeypatch.setattr(module, "load_session", slow)
    first = asyncio.create_task(repository.load("cifar10", soon()))
    await asyncio.to_thread(begun.wait)
    assert repository.reason("cifar10") == "it is being loaded anew"
    with pytest.raises(LoadInProgress, match="'cifar10' is being loaded"):
        await repository.load("cifar10", soon())
    go_on.set()
    await first
    assert repository.reason("cifar10") == ""


async def test_a_load_goes_on_after_its_deadline_and_without_its_caller(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = asyncio.Queue[LoadedModel]()
    repository = make(on_load=answering.put_nowait)
    go_on = threading.Event()
    quick = module.load_session
    monkeypatch.setattr(module, "load_session", lambda settings: go_on.wait(30) and quick(settings))
    with pytest.raises(DeadlineExceeded):
        await repository.load("cifar10", soon(-1))
    go_on.set()
    assert await answering.get() is repository.default
    await ended(repository)

    go_on.clear()
    caller = asyncio.create_task(repository.load("cifar10", soon()))
    await asyncio.sleep(0)
    caller.cancel()
    go_on.set()
    assert await answering.get() is repository.default


def missing(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def damaged(folder: Path) -> None:
    content = bytearray((folder / GRAPH).read_bytes())
    content[1000] ^= 1
    write(folder / GRAPH, bytes(content))


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FAULTS = [
    (missing, {}, LoadFailed, "cannot read the folder: No such file or directory"),
    (damaged, {}, LoadFailed, "model.onnx is damaged: its sha256 is not the one in bundle.json"),
    (None, {"available_memory": lambda: 1e6}, LoadFailed, "too little memory: .* MB more, and 1 MB are free"),
    (None, {"load_session": failing(SessionError("it fails its self-check"))}, LoadFailed, "it fails its self-check"),
    (None, {"load_session": failing(MemoryError())}, LoadFailed, "too little memory"),
    (None, {"load_session": failing(ZeroDivisionError())}, Internal, "a bug"),
    (None, {"Classifier.start": failing(ThreadsError("only 0 of 1 threads"))}, LoadFailed, "only 0 of 1 threads"),
]


@pytest.mark.parametrize(("spoil", "patches", "error", "reason"), FAULTS)
async def test_a_load_that_fails_changes_nothing(
    make: Make,
    tmp_path: Path,
    cat: bytes,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    patches: dict[str, Any],
    error: type[Problem],
    reason: str,
) -> None:
    folder = forge(tmp_path / "bundle")
    answering = list[LoadedModel]()
    repository = make(model_dir=folder, on_load=answering.append)
    before = repository.default
    quick = module.load_session
    if spoil:
        monkeypatch.setattr(module, "load_session", LOAD_SESSION)
        spoil(folder)
    with monkeypatch.context() as patched:
        for name, replacement in patches.items():
            patched.setattr(f"{module.__name__}.{name}", replacement)
        with pytest.raises(error, match=reason) as refused:
            await repository.load("cifar10", soon())
    assert "the model that was there goes on" in refused.value.detail
    assert str(tmp_path) not in refused.value.detail
    assert repository.default is before and not repository._ending and not answering
    with before:
        await before.classifier.classify(cat, soon())
    assert repository.reason("cifar10") == (refused.value.detail if error is LoadFailed else "")
    monkeypatch.setattr(module, "load_session", quick)
    if spoil is not missing:
        assert [await repository.load("cifar10", soon())] == [repository.default] == answering
        assert repository.reason("cifar10") == ""


async def test_a_link_that_leads_to_itself_is_a_fault_like_another(make: Make, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(link)
    repository = make(model_dir=link)
    with pytest.raises(LoadFailed, match=r"^cannot read the folder: .*; the model that was there goes on$") as refused:
        await repository.load("cifar10", soon())
    assert repository.reason("cifar10") == refused.value.detail
    with pytest.raises(LoadFailed):
        Preloaded.prepare(SimpleNamespace(_settings=Settings(model_dir=link), _processes=1), "cifar10")  # type: ignore[arg-type]


async def test_the_memory_that_a_load_needs_grows_with_the_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = MEMORY_PER_BYTE * sum(path.stat().st_size for path in BUNDLE.iterdir())
    repository = make()
    monkeypatch.setattr(module, "available_memory", lambda: needed - 1)
    with pytest.raises(LoadFailed, match=f"about {needed / 1e6:.0f} MB more"):
        await repository.load("cifar10", soon())
    monkeypatch.setattr(module, "available_memory", lambda: needed)
    await repository.load("cifar10", soon())


async def test_after_the_end_nothing_is_loaded(make: Make) -> None:
    repository = make()
    before = repository.default
    load = asyncio.create_task(repository.load("cifar10", soon()))
    await asyncio.sleep(0)
    repository.close()
    with pytest.raises(Unavailable):
        await load
    assert repository.default is before


async def test_models_share_a_decoder_where_their_images_have_the_same_sizes(
    make: Make, monkeypatch: pytest.MonkeyPatch, loaded: tuple[Bundle, Session], caplog: pytest.LogCaptureFixture
) -> None:
    repository = make(model_dirs=f"small={SMALL_BUNDLE}")
    one, other = (repository.models[name].classifier for name in ("cifar10", "small"))
    assert one.decoder is other.decoder
    assert one.engine is not other.engine
    bundle, _ = loaded
    fields = dict(bundle.manifest) | {"photographs": None, "photograph_self_check": None}
    older = Bundle(Manifest.model_construct(**fields), bundle.report, {})
    monkeypatch.setattr(module, "load_session", lambda _: (older, Stub()))
    with caplog.at_level(logging.INFO):
        await repository.load("small", soon())
    assert caplog.records[-1].fields["version"] == older.manifest.version
    assert repository.models["small"].classifier.decoder is not one.decoder
    monkeypatch.setattr(module, "load_session", lambda _: (bundle, Stub()))
    odd = repository.models["small"].classifier.decoder
    await repository.load("small", soon())
    await ended(repository)
    assert repository.models["small"].classifier.decoder is one.decoder
    assert isinstance(odd.processes, OwnProcesses)
    assert not any(thread.is_alive() for thread in odd.processes._threads)


def test_a_bundle_that_cannot_be_loaded_stops_the_start_and_leaves_no_thread(loaded: tuple[Bundle, Session]) -> None:
    threads = threading.active_count()
    settings = Settings(model_dir=BUNDLE, model_dirs="other=/nowhere", inference_threads=1)
    with pytest.raises(BundleError, match="/nowhere"):
        Repository(settings, {"cifar10": (loaded[0], Stub())})
    assert threading.active_count() == threads
