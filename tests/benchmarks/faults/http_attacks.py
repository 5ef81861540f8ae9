"""Attack HTTP itself from one address, while a bystander at another address sends ordinary requests.

    python -m tests.benchmarks.faults.http_attacks
    python -m tests.benchmarks.faults.http_attacks --only pipelining

Each attack has a bounded number of requests, without a key, from 127.0.0.1. The bystander at 127.0.0.2 requests /livez
and classifies an image. All data is constant or made from a seed. Goals: the bystander is always answered with 200
within 500 ms; the memory returns to its level before the attack.
"""

import argparse
import asyncio
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from http.client import HTTPConnection, HTTPException

from tests.app.server import serve
from tests.benchmarks.serving.http_load import Connections
from tests.benchmarks.serving.processes import forget_peak, peak_mb, resident_mb
from tests.conftest import DATA

CAT = (DATA / "cat.png").read_bytes()
BYSTANDER = "127.0.0.2"
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


def repeated(attack: Attack, times: int) -> Attack:
    async def run(connections: Connections) -> list[int]:
        return [status for _ in range(times) for status in await attack(connections)]

    return run


def attacks() -> Iterator[tuple[str, Attack]]:
    """Names and attacks."""
    pipelined = attack(once(b"GET /livez HTTP/1.1\r\n\r\n" * 13_000), 30, 4, read=False)
    yield "pipelining: 3 times 30 connections with 13,000 requests without Host", repeated(pipelined, 3)
    pipelined = attack(once(GET * 13_000), 30, 4, read=False)
    yield "pipelining: 3 times 30 connections with 13,000 requests, answers unread", repeated(pipelined, 3)
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
    yield "slow bodies: 200 of a byte in 0.1 s", slowly(announced(1000), b"x", 0.1, 200)
    picture = b"GET /metrics/report/confusion_matrix.png HTTP/1.1\r\nHost: x\r\n\r\n"
    yield "unread answers: 200 connections that want 100 pictures", attack(once(picture * 100), 200, 12, read=False)
    yield "idle connections: 3,000", attack(once(b""), 3000, 12, read=False)
    yield "idle connections: 1,000 with half a head", attack(once(b"GET / HTTP/1.1\r\nX: " + b"y" * 60_000), 1000, 12)
    yield "requests without Host", repeated(attack(once(b"GET / HTTP/1.1\r\n\r\n"), 20, 5), 5)


def _attack(name: str, url: str) -> None:
    async def run() -> None:
        connections = Connections(url)
        await dict(attacks())[name](connections)
        connections.close()

    asyncio.run(run())


def ask(host: str, port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, float]:
    """Status and seconds of one request of the bystander, on a new connection. The status is 0 after an error."""
    started = time.perf_counter()
    connection = HTTPConnection(host, port, timeout=30, source_address=(BYSTANDER, 0))
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - started
    except (OSError, HTTPException):
        return 0, time.perf_counter() - started
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="only attacks whose name has these words")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print("| attack | seconds | bystander's answers | slowest /livez | slowest /predict | MB before, at most, after |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, _ in attacks():
        if options.only not in name:
            continue
        with serve(LOG_LEVEL="error", INFERENCE_THREADS=2) as (process, client):
            client.post("/predict", content=CAT)
            host, port = client.base_url.host, client.base_url.port
            before = resident_mb(process.pid)
            forget_peak(process.pid)
            attacker = spawn.Process(target=_attack, args=(name, str(client.base_url)))
            started = time.perf_counter()
            attacker.start()
            probes, images = [], []
            while attacker.is_alive():
                probes.append(ask(host, port, "GET", "/livez"))
                images.append(ask(host, port, "POST", "/predict", CAT))
                attacker.join(0.02)
            took = time.perf_counter() - started
            time.sleep(1)
            statuses = sorted({status for status, _ in [*probes, *images]})
            slowest = [f"{max(seconds for _, seconds in answers) * 1000:.0f} ms" for answers in (probes, images)]
            memory = f"{before:.0f}, {peak_mb(process.pid):.0f}, {resident_mb(process.pid):.0f}"
            print(f"| {name} | {took:.1f} | {statuses} | {slowest[0]} | {slowest[1]} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
