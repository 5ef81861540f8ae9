"""Services that answer gRPC in the tests' own event loop, and clients of theirs."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from app.bundle.reader import Bundle
from app.inference.sessions import Session
from app.main import create_app
from app.settings import Settings
from tests.conftest import BUNDLE, DATA

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its messages were generated for an older protobuf
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio


@dataclass(frozen=True)
class Served:
    """A running service: `address` is gRPC's, `http` calls the same application."""

    app: FastAPI
    http: httpx.AsyncClient

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.state.rpc.port}"

    @asynccontextmanager
    async def channel(self, *options: tuple[str, Any]) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(self.address, options) as channel:
            yield channel


@asynccontextmanager
async def serving(
    loaded: tuple[Bundle, Session], session: Session | None = None, **settings: object
) -> AsyncIterator[Served]:
    values = {"model_dir": BUNDLE, "inference_threads": 1, "grpc_port": 0, **settings}
    app = create_app(Settings(_env_file=None, **values), (loaded[0], session or loaded[1]), on_death=lambda: None)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as http,
    ):
        yield Served(app, http)


@pytest.fixture(scope="module")
async def served(loaded: tuple[Bundle, Session]) -> AsyncIterator[Served]:
    async with serving(loaded) as served:
        yield served


@pytest.fixture
async def serve(loaded: tuple[Bundle, Session]) -> AsyncIterator[Callable[..., Any]]:
    """A function that starts a service of its own for a test: `await serve(api_keys="secret")`."""
    async with AsyncExitStack() as running:

        async def start(session: Session | None = None, **settings: object) -> Served:
            return await running.enter_async_context(serving(loaded, session, **settings))

        yield start


class Client:
    """tritonclient's synchronous client or its asynchronous one, with the same calls to await."""

    def __init__(self, kind: str, address: str) -> None:
        self._aio = kind == "aio"
        self._client = (triton_aio if self._aio else triton).InferenceServerClient(address)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)
        return call if self._aio else lambda *given, **named: asyncio.to_thread(call, *given, **named)


@pytest.fixture(params=["sync", "aio"])
async def remote(request: pytest.FixtureRequest, served: Served) -> AsyncIterator[Client]:
    client = Client(request.param, served.address)
    yield client
    await client.close()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [2, 32, 32, 3]: the cat and the ship."""
    return np.stack([np.array(Image.open(DATA / name).convert("RGB")) for name in ("cat.png", "ship.png")])


@pytest.fixture(scope="module")
def files() -> np.ndarray:
    """The same two, as files: object [2]."""
    return np.array([(DATA / name).read_bytes() for name in ("cat.png", "ship.png")], dtype=object)


def tensor(values: np.ndarray, name: str = "images", datatype: str = "UINT8") -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def wanted(classes: int = 0, name: str = "probabilities") -> Any:
    return triton.InferRequestedOutput(name, class_count=classes)
