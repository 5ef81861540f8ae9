"""Fixtures for all tests: an environment without settings, the shipped bundle, a running application."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.inference.sessions import Session, load_session
from app.main import create_app
from app.settings import Settings

# The time of an example depends on the load of the machine, so examples have no deadline.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "models" / "mobilenet_v2_cifar10"
SMALL_BUNDLE = ROOT / "models" / "mobilenet_v2_cifar10_small"
INT8_BUNDLE = ROOT / "models" / "mobilenet_v2_cifar10_int8"
DATA = ROOT / "tests" / "data"
# Folders whose tests share what is slow to start: a browser and a server; a Ray cluster.
SHARING = ("tests/page/", "tests/app/cluster/")
# Modules whose processes are measured for coverage, too, which makes their start half as long again. What the others'
# processes run, these or tests in this process run as well.
MEASURED = (
    *("tests/app/process/test_connection.py", "tests/app/process/test_server.py"),
    "tests/app/workers/test_supervisor.py",
)
TRACER = "COVERAGE_PROCESS_CONFIG"  # the variable by which coverage.py reaches processes
TRACER_KEY = pytest.StashKey[str]()


def in_a_clone(source: str) -> str:
    """A documented program or command of the installed package, spelt as in a clone."""
    return source.replace("cifar10_classifier", "app").replace("cifar10-classifier ", "python -m app ")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, which leaves a module to one worker, leaves it a whole folder if its tests share something.

    The marker xdist_group is made for this, but pytest-xdist 3.8 ignores it with pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class LoadFolderScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in SHARING if nodeid.startswith(folder)), super()._split_scope(nodeid))

    return LoadFolderScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of a test, which may start processes."""
    if tracer := os.environ.pop(TRACER, None):
        item.config.stash[TRACER_KEY] = tracer
    if item.nodeid.startswith(MEASURED) and (tracer := item.config.stash.get(TRACER_KEY, None)):
        os.environ[TRACER] = tracer


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for variable in (name, name.upper()):
            if variable in os.environ:
                monkeypatch.delenv(variable)
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="session")
def loaded() -> tuple[Bundle, Session]:
    """The shipped bundle and its ONNX session."""
    return load_session(Settings(_env_file=None, model_dir=BUNDLE))


MakeClient = Callable[..., TestClient]


@contextmanager
def _clients(loaded: tuple[Bundle, Session]) -> Iterator[MakeClient]:
    with ExitStack() as running:

        def make(session: Session | None = None, **settings: object) -> TestClient:
            values = {"model_dir": BUNDLE, "inference_threads": 1, **settings}
            # By default an engine that dies ends the process, which would be that of the tests.
            app = create_app(Settings(**values), (loaded[0], session or loaded[1]), on_death=lambda: None)
            return running.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def make_client(loaded: tuple[Bundle, Session]) -> Iterator[MakeClient]:
    """A function that starts an application with the given settings. It stops when the test ends."""
    with _clients(loaded) as make:
        yield make


@pytest.fixture(scope="module")
def client(loaded: tuple[Bundle, Session]) -> Iterator[TestClient]:
    """An application with the default settings, for all tests of a module. `make_client` makes one for a test alone."""
    with _clients(loaded) as make:
        yield make()


@pytest.fixture
def own_client(make_client: MakeClient) -> TestClient:
    """One for a test that counts what it did."""
    return make_client()


@pytest.fixture
def cat() -> bytes:
    """A 32x32 PNG: the first cat in the test set."""
    return (DATA / "cat.png").read_bytes()


@pytest.fixture(scope="session")
def cat_label(loaded: tuple[Bundle, Session]) -> str:
    """The shipped model's label for the cat, from its session. It may be wrong."""
    with Image.open(DATA / "cat.png") as picture:
        logits = loaded[1].run(np.array(picture.convert("RGB"))[None]).logits
    return loaded[0].manifest.classes[int(logits[0].argmax())]


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder of the real CIFAR-10. Without it the test is skipped; in CI it fails."""
    folder = os.environ.get("CIFAR10_DIR")
    if folder is None and os.environ.get("CI") == "true":
        pytest.fail("CIFAR10_DIR must name the folder that holds cifar-10-batches-py")
    if folder is None:
        pytest.skip("CIFAR10_DIR does not name the folder that holds cifar-10-batches-py")
    return Path(folder)
