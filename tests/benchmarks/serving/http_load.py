"""A small HTTP/1.1 client for load tests. It uses raw sockets and keep-alive connections, so it costs little CPU."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class Outcome:
    """`status` is 0 if the connection broke. `seconds` count from the time the request was due, not sent."""

    status: int
    seconds: float


def post(path: str, content: bytes, content_type: str = "application/octet-stream") -> bytes:
    """The bytes of a request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Connections:
    """A pool of keep-alive connections to one address, without a limit."""

    def __init__(self, url: str) -> None:
        parts = httpx.URL(url)
        self._address = parts.host, parts.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes, due: float | None = None) -> Outcome:
        due = time.perf_counter() if due is None else due
        try:
            status = await self._send(request)
        except (OSError, EOFError, ValueError):
            status = 0
        return Outcome(status, time.perf_counter() - due)

    async def _send(self, request: bytes) -> int:
        reader, writer = self._kept() or await self.open()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head[9:12])

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the service closes idle connections
                return reader, writer
            writer.close()
        return None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection, which the caller must close."""
        return await asyncio.open_connection(*self._address)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def closed_loop(send: Callable[[], Awaitable[Outcome]], concurrency: int, seconds: float) -> list[Outcome]:
    """Keep `concurrency` requests in flight for `seconds`."""
    end = time.perf_counter() + seconds
    outcomes: list[Outcome] = []

    async def one_after_the_other() -> None:
        while time.perf_counter() < end:
            outcomes.append(await send())

    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return outcomes


async def open_loop(send: Callable[[float], Awaitable[Outcome]], rate: float, seconds: float) -> list[Outcome]:
    """Send `rate` requests a second without waiting for earlier answers. Latency counts from the due time."""
    start = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(due)))
    return list(await asyncio.gather(*tasks))


def percentile(values: list[float], share: float) -> float:
    """The value at `share`, 0 to 1, of the sorted values; NaN if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def dribbled(pieces: list[bytes], pause: float, count: int) -> Callable[[Connections], Awaitable[list[int]]]:
    """Requests in pieces, with a pause after each. When the answer comes, the rest is not sent. The statuses."""

    async def one(connections: Connections) -> int:
        reader, writer = await connections.open()
        try:
            answer = asyncio.ensure_future(reader.readline())
            for piece in pieces:
                if answer.done():
                    break
                writer.write(piece)
                await asyncio.sleep(pause)
            return int((await answer)[9:12] or 0)
        except OSError:
            return 0
        finally:
            writer.close()

    async def attack(connections: Connections) -> list[int]:
        return list(await asyncio.gather(*(one(connections) for _ in range(count))))

    return attack
