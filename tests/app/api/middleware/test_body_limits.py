"""Bodies that are announced, slow or too many, on a real server; somebody at another address must not notice."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from http.client import HTTPConnection

import httpx
import pytest

from app.api.fair_share import FairShare
from app.api.middleware.body_limits import BodyLimits
from app.api.request_context import KEY, RequestContext
from app.errors import MalformedRequest, RequestTimeout
from tests.app.server import serve

BYSTANDER = "127.0.0.2"


def head(path: str, length: int) -> bytes:
    """Of a form, so that no route refuses it for what its headers say."""
    kind = "multipart/form-data; boundary=x"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def ask(client: httpx.Client, method: str, path: str, body: bytes | None = None) -> int:
    """The status that the bystander gets."""
    with contextlib.closing(
        HTTPConnection(client.base_url.host, client.base_url.port, timeout=30, source_address=(BYSTANDER, 0))
    ) as connection:
        connection.request(method, path, body)
        return connection.getresponse().status


@contextlib.contextmanager
def sent(client: httpx.Client, requests: list[bytes]) -> Iterator[list[socket.socket]]:
    """A connection of the attacker for each; everything is sent, and nothing read."""
    with contextlib.ExitStack() as stack:
        connections = []
        for request in requests:
            address = client.base_url.host, client.base_url.port
            connections.append(stack.enter_context(socket.create_connection(address, timeout=30)))
            connections[-1].sendall(request)
        while f"predict_inflight_requests {len(requests) + 1}.0" not in client.get("/metrics").text:
            pass
        yield connections


ANNOUNCED = {
    "two of 32 MiB": [head("/predict", 33_554_432)] * 2,
    "two messages of 32 MiB": [head("/v2/models/cifar10/infer", 33_554_432)] * 2,
    "as many as there are places": [head("/predict", 100)] * 256,
    "batches": [head("/predict/batch", 100)] * 256,
    "explanations": [head("/explain", 100)] * 256,
    "messages": [head("/v2/models/cifar10/infer", 100)] * 256,
    "chunks": [head("/predict", 1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")] * 256,
}


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serve(DEADLINE_SECONDS=60, LOG_LEVEL="error") as (_, client):
        yield client


@pytest.mark.parametrize("name", ANNOUNCED)
def test_announced_bodies_reserve_no_memory(server: httpx.Client, cat: bytes, name: str) -> None:
    with sent(server, ANNOUNCED[name]):
        for _ in range(5):
            assert ask(server, "POST", "/predict", cat) == 200
            assert server.post("/predict", content=cat).status_code == 200  # nor from the same address


LARGE = head("/v2/models/cifar10/infer", 31_000_001) + bytes(31_000_000)


def test_incomplete_bodies_give_way_to_others(server: httpx.Client) -> None:
    with sent(server, [LARGE, LARGE]) as connections:
        for _ in range(5):
            assert ask(server, "POST", "/predict", bytes(8_000_000)) == 415  # it was read
        # The one that had to go is told so, and the other goes on.
        answers = []
        for connection in connections:
            connection.sendall(b"x")
            answers.append(connection.recv(65536).partition(b"\r\n")[0])
    assert sorted(answers) == [b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 429 Too Many Requests"]


def test_one_address_may_use_all_memory_but_no_more(server: httpx.Client, cat: bytes) -> None:
    with sent(server, [LARGE, LARGE]):
        assert server.post("/predict", content=cat).status_code == 200
        assert server.post("/predict", content=bytes(9_000_000)).status_code == 429


class Slow:
    """Stands for a client that sends a byte every `pause` seconds."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.sent = 0

    async def receive(self) -> dict:
        await asyncio.sleep(self.pause)
        self.sent += 1
        return {"type": "http.request", "body": b"x", "more_body": True}


async def read_all(scope: dict, receive: Callable[[], Awaitable[dict]], send: object) -> None:
    while (await receive())["more_body"]:
        pass


@pytest.mark.parametrize(("pause", "least", "most"), [(0.001, 2, 10_000), (3600, 0, 0)])
async def test_a_body_that_is_too_slow_ends_before_the_deadline(pause: float, least: int, most: int) -> None:
    limits = BodyLimits(read_all, max_bytes=10**6, deadline_seconds=1, min_rate=10**9, share=FairShare(10**6))
    client, begun = Slow(pause), time.monotonic()
    with pytest.raises(RequestTimeout):
        await limits({"type": "http", "headers": []}, client.receive, None)
    assert time.monotonic() - begun >= 0.5
    assert least <= client.sent <= most


async def test_a_body_at_the_minimum_rate_is_read_until_the_deadline() -> None:
    limits = BodyLimits(read_all, max_bytes=10**6, deadline_seconds=0.5, min_rate=1, share=FairShare(10**6))
    client, begun = Slow(0.001), time.monotonic()
    with pytest.raises(RequestTimeout):
        await limits({"type": "http", "headers": []}, client.receive, None)
    assert time.monotonic() - begun >= 0.5


async def test_reading_on_while_answering_raises_no_problem() -> None:
    """As Starlette's FileResponse does, to see whether its client leaves: it could not answer with the problem."""
    context = RequestContext(fault=MalformedRequest("no chunk"))
    messages = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]

    async def answering(scope: dict, receive: Callable[[], Awaitable[dict]], send: Callable[..., Awaitable]) -> None:
        waiting = asyncio.ensure_future(receive())  # begun before the answer, and late after it
        await asyncio.sleep(0)
        await send({"type": "http.response.start"})
        await asyncio.sleep(0.02)
        assert [await waiting, await receive()] == messages

    served: list[None] = []
    limits = BodyLimits(answering, max_bytes=0, deadline_seconds=0.02, min_rate=1, share=FairShare(0))

    async def receive() -> dict:
        await asyncio.sleep(0.05)
        served.append(None)
        return messages[len(served) - 1]

    async def send(message: dict) -> None:
        pass

    await limits({"type": "http", "headers": [], KEY: context}, receive, send)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/explain", "/v2/models/cifar10/infer"])
def test_a_slow_body_is_answered_408(slow: httpx.Client, path: str) -> None:
    with socket.create_connection((slow.base_url.host, slow.base_url.port), timeout=30) as connection:
        connection.sendall(head(path, 1000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.fixture(scope="module")
def slow() -> Iterator[httpx.Client]:
    with serve(DEADLINE_SECONDS=1, LOG_LEVEL="error") as (_, client):
        yield client
