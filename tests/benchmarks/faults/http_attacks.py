"""Attacks on HTTP itself, for tests.benchmarks.faults.hostile: many or endless requests, without a key.

All data is constant or made from a seed.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from tests.benchmarks.serving.http_load import Connections
from tests.conftest import DATA

CAT = (DATA / "cat.png").read_bytes()
Attack = Callable[[Connections], Awaitable[list[int]]]

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
MESSAGES = "/v2/models/cifar10/infer"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def announced(length: int, path: str = "/predict") -> bytes:
    """The head of a request whose body is a form of that length: no route refuses it for what its headers say."""
    kind = "multipart/form-data; boundary=x"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def seeded(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def _sent(connections: Connections, pieces: Iterator[bytes], seconds: float, read: bool) -> int:
    """Send on one connection for at most `seconds`. Returns the status of the first answer, or 0."""
    reader, writer = await connections.open()
    try:
        async with asyncio.timeout(seconds):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if read and reader.at_eof():
                    break
            if not read:
                await asyncio.sleep(seconds)
            return int((await reader.readline())[9:12] or 0)
    except TimeoutError:
        return 0
    except (OSError, ValueError):
        return 0
    finally:
        writer.transport.abort()


def attack(pieces: Callable[[], Iterator[bytes]], count: int, seconds: float, *, read: bool = True) -> Attack:
    """`count` concurrent connections that send `pieces`. Each reads one answer, or none if `read` is false."""

    async def run(connections: Connections) -> list[int]:
        return list(await asyncio.gather(*(_sent(connections, pieces(), seconds, read) for _ in range(count))))

    return run


def once(content: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter((content,))


def endless(head: bytes, more: bytes, megabytes: int, end: bytes = b"") -> Callable[[], Iterator[bytes]]:
    """`head`, then `more` repeated, in pieces of about 64 kB, then `end`."""
    piece = more * max(1, 65536 // len(more))

    def pieces() -> Iterator[bytes]:
        yield head
        for _ in range(megabytes * 1_000_000 // len(piece)):
            yield piece
        yield end

    return pieces


def slowly(head: bytes, more: bytes, pause: float, count: int) -> Attack:
    """`count` connections that repeat `more` with pauses until they are answered."""

    async def one(connections: Connections) -> int:
        reader, writer = await connections.open()
        try:
            writer.write(head)
            answer = asyncio.ensure_future(reader.readline())
            for _ in range(int(20 / pause)):
                if answer.done():
                    break
                writer.write(more)
                await asyncio.sleep(pause)
            return int((await answer)[9:12] or 0)
        except (OSError, ValueError):
            return 0
        finally:
            writer.transport.abort()

    async def run(connections: Connections) -> list[int]:
        return list(await asyncio.gather(*(one(connections) for _ in range(count))))

    return run


def lasting(attack: Attack, seconds: float) -> Attack:
    """Repeat the attack until it has taken `seconds`."""

    async def run(connections: Connections) -> list[int]:
        end = time.perf_counter() + seconds
        statuses = await attack(connections)
        while time.perf_counter() < end:
            statuses += await attack(connections)
        return statuses

    return run


def attacks() -> Iterator[tuple[str, Attack]]:
    """Names and attacks."""
    without_host = once(b"GET /livez HTTP/1.1\r\n\r\n" * 13_000)
    yield "pipelining: 30 connections with 13,000 requests without Host", attack(without_host, 30, 4, read=False)
    unread = attack(once(GET * 13_000), 30, 4, read=False)
    yield "pipelining: 30 connections with 13,000 requests, answers unread", unread
    small = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(CAT) + CAT
    yield "pipelining: 30 connections with 100 images", attack(once(small * 100), 30, 6, read=False)
    head = CHUNKED + b"1\r\nx\r\n0\r\n"
    yield "trailers: one line of 90 MB", attack(endless(head + b"X: ", b"y", 90), 1, 20)
    yield "trailers: 90 MB of lines", attack(endless(head, b"aa: bb\r\n", 90), 1, 20)
    yield "chunks: an extension of 90 MB", attack(endless(CHUNKED + b"1;", b"y", 90), 1, 20)
    yield "chunks: a size of 90 MB", attack(endless(CHUNKED, b"0", 90), 1, 20)
    yield (
        "chunks: extensions longer than chunks",
        attack(endless(CHUNKED, b"1;" + b"y" * 500 + b"\r\nx\r\n", 90), 4, 20),
    )
    yield "chunks: 20 bodies in chunks of a byte", attack(endless(CHUNKED, b"1\r\nx\r\n", 60, b"0\r\n\r\n"), 20, 20)
    yield "heads: 90 MB of empty lines", attack(endless(b"", b"\r\n", 90), 4, 20)
    yield "announced bodies: 2 of 32 MiB that never come", slowly(announced(33_554_432, MESSAGES), b"", 0.5, 2)
    yield "announced bodies: 256 of 100 bytes that never come", slowly(announced(100), b"", 0.5, 256)
    yield "announced bodies: 256 batches that never come", slowly(announced(100, "/predict/batch"), b"", 0.5, 256)
    yield (
        "bodies: 4 of 31 MB but for the last byte",
        attack(endless(announced(31_000_001, MESSAGES), seeded(1, 1000), 31), 4, 8),
    )
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    yield "slow bodies: 200 of a byte in 0.1 s", slowly(announced(1000) + part, b"x", 0.1, 200)
    picture = b"GET /metrics/report/confusion_matrix.png HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "unread answers: 200 connections that want 100 pictures", attack(once(picture * 100), 200, 12, read=False)
    yield "idle connections: 3,000", attack(once(b""), 3000, 12, read=False)
    yield "idle connections: 1,000 with half a head", attack(once(b"GET / HTTP/1.1\r\nX: " + b"y" * 60_000), 1000, 12)
    yield "20 connections with requests without Host", attack(once(b"GET / HTTP/1.1\r\n\r\n"), 20, 5)
