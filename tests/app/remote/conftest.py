import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from onnx import helper

from app.bundle.manifest import sha256
from app.bundle.names import CHECKPOINT, GRAPH, REPORT, REPORT_TEXT
from tests.app.forged import forge
from tests.conftest import BUNDLE
from tests.hub import Hub, running_hub


def forge_tiny(folder: Path, version: str = "1.0.0") -> Path:
    """A bundle of a few kilobytes that can be verified, not served, and a file that its manifest does not name."""
    graph = helper.make_model(helper.make_graph([], "nothing", [], [])).SerializeToString()
    kept = {name: sha256((BUNDLE / name).read_bytes()) for name in (REPORT, REPORT_TEXT)}
    forge(folder, {GRAPH: graph, CHECKPOINT: b"weights"}, files=kept, version=version)
    for path in folder.iterdir():
        if path.name not in (*kept, GRAPH, CHECKPOINT, "bundle.json"):
            path.unlink()
    (folder / "extra.txt").write_text("not the bundle's")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return forge_tiny(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """What memory:// means: files that live no longer than a test."""
    yield MemoryFileSystem()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A web server: its `folder`, its `url`, and the `requests` that it got."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            requests.append(f"{self.command} {self.path}")

        def log_message(self, *_: Any) -> None:
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}", requests=requests)
        server.shutdown()
        thread.join()
