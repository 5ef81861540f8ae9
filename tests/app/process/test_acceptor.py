"""Connections on a socket that two workers share, which are here two acceptors in one event loop."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from app.process import acceptor as module
from app.process.acceptor import Acceptor
from app.process.connection_limit import ConnectionLimit
from app.workers.board import CONNECTIONS, SERVING, Board
from app.workers.post import Post
from app.workers.worker import Worker

pytestmark = pytest.mark.anyio


class Protocol(asyncio.Protocol):
    client = None
    idle = True

    def __init__(self, limit: ConnectionLimit) -> None:
        self.limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.limit.add(self)  # type: ignore[arg-type]

    def connection_lost(self, _: Exception | None) -> None:
        self.limit.remove(self)  # type: ignore[arg-type]


class Pair:
    def __init__(self) -> None:
        self.board, self.post = Board(2), Post(2)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.workers = [Worker(self.board, self.post, number) for number in range(2)]
        self.limits = [ConnectionLimit(100, worker.tally(CONNECTIONS)) for worker in self.workers]
        self.clients: list[socket.socket] = []

    def accept(self, number: int) -> Acceptor:
        self.workers[number].part.numbers[SERVING] = 1
        limit = self.limits[number]
        return Acceptor([self.socket], lambda: Protocol(limit), limit, self.workers[number])

    async def connect(self, count: int) -> list[int]:
        """Connections that come at once. Returns how many each worker has afterwards."""
        before = sum(limit.count for limit in self.limits)
        self.clients += [socket.create_connection(self.socket.getsockname()) for _ in range(count)]
        while sum(limit.count for limit in self.limits) < before + count:
            await asyncio.sleep(0.001)
        return [limit.count for limit in self.limits]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    for one in (*made.clients, made.socket):
        one.close()
    while any(limit.count for limit in made.limits):
        await asyncio.sleep(0.001)
    assert [part.numbers[CONNECTIONS] for part in made.board.parts] == [0, 0, 0]
    made.post.close()


async def test_a_worker_leaves_connections_to_one_that_has_fewer(pair: Pair) -> None:
    pair.board.parts[1].numbers[SERVING] = 1
    pair.board.parts[1].numbers[CONNECTIONS] = 3
    one = pair.accept(0)
    assert await pair.connect(3) == [3, 0]
    pair.board.parts[1].numbers[CONNECTIONS] = 0
    paused: list[float] = []
    pause = one._pause

    def note(listening: socket.socket, seconds: float, *, accept: bool = False) -> None:
        paused.append(seconds)
        pause(listening, seconds, accept=accept)

    one._pause = note  # type: ignore[method-assign]
    assert await pair.connect(2) == [5, 0]  # the other does not take them
    assert paused and set(paused) == {module.LEAVE_SECONDS}
    one.close()


async def test_a_worker_takes_all_when_no_other_serves(pair: Pair) -> None:
    pair.board.parts[1].numbers[CONNECTIONS] = 0
    one = pair.accept(0)
    assert await pair.connect(4) == [4, 0]
    one.close()


async def test_too_many_open_files_pause_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    one = pair.accept(0)

    class Full:
        def __init__(self) -> None:
            self.times = 0

        def fileno(self) -> int:
            return pair.socket.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            self.times += 1
            if self.times == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            if self.times == 2:
                raise BlockingIOError
            return pair.socket.accept()

    one.close()
    other = Acceptor([Full()], lambda: Protocol(pair.limits[0]), pair.limits[0], pair.workers[0])  # type: ignore[list-item]
    assert await pair.connect(1) == [1, 0]
    assert "no connection can be accepted: Too many open files" in caplog.text
    other.close()


async def test_a_client_that_has_left_is_forgotten(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise ConnectionResetError

    one = pair.accept(0)
    monkeypatch.setattr(one._loop, "connect_accepted_socket", gone)
    pair.clients.append(socket.create_connection(pair.socket.getsockname()))
    assert await asyncio.to_thread(pair.clients[0].recv, 1) == b""
    one.close()
