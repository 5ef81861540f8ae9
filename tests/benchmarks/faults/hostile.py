"""What wants to bring the service down, while probes ask how it is.

    python -m tests.benchmarks.faults.hostile

Goals: at most 600 MB resident, probes answered in less than 100 ms throughout, and nobody gets a 500.
"""

import argparse
import asyncio
import gzip
import io
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import httpx
import numpy as np
from PIL import Image

from tests.app.server import serve
from tests.benchmarks.serving.http_load import Connections, percentile, post
from tests.benchmarks.serving.processes import forget_peak, peak_mb
from tests.conftest import DATA

CAT = (DATA / "cat.png").read_bytes()
BOUNDARY = "multipart/form-data; boundary=b"
Attack = Callable[[Connections], Awaitable[list[int]]]


def encoded(width: int, height: int, kind: str, mode: str = "RGB", noise: bool = False, quality: int = 80) -> bytes:
    out = io.BytesIO()
    if noise:
        tile = np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)
        image = Image.fromarray(np.tile(tile, (height // 250, width // 250, 1)))
    else:
        image = Image.new(mode, (width, height))
    image.save(out, kind, **{"JPEG": {"quality": quality}, "AVIF": {"speed": 10, "subsampling": "4:4:4"}}.get(kind, {}))
    return out.getvalue()


def part(content: bytes, name: str = "file") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def at_once(request: bytes, count: int) -> Attack:
    async def attack(connections: Connections) -> list[int]:
        return [one.status for one in await asyncio.gather(*(connections.send(request) for _ in range(count)))]

    return attack


def dribbled(pieces: list[bytes], pause: float, count: int) -> Attack:
    """Requests in pieces, with a pause after each; what was not read when the answer comes is not sent."""

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


def chunked(body: bytes) -> list[bytes]:
    head = b"POST /predict HTTP/1.1\r\nHost: load\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"1\r\n%c\r\n" % byte for byte in body), b"0\r\n\r\n"]


def attacks() -> Iterator[tuple[str, Attack]]:
    yield "20 PNGs of 100 megapixels, 100 kB each", at_once(post("/predict", encoded(10_000, 10_000, "PNG", "1")), 20)
    yield (
        "16 JPEGs of 25 megapixels at once",
        at_once(post("/predict", encoded(5000, 5000, "JPEG", quality=30, noise=True)), 16),
    )
    yield "16 PNGs of 25 megapixels at once", at_once(post("/predict", encoded(5000, 5000, "PNG")), 16)
    yield "16 WebPs of 25 megapixels at once", at_once(post("/predict", encoded(5000, 5000, "WEBP", "RGBA")), 16)
    yield "16 AVIFs of 15 megapixels at once", at_once(post("/predict", encoded(3870, 3870, "AVIF", "RGBA")), 16)
    many = b"".join(part(b"x", "files") for _ in range(10_000)) + b"--b--\r\n"
    yield "5 forms of 10,000 parts", at_once(post("/predict/batch", many, BOUNDARY), 5)
    fields = b"".join(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' for _ in range(10_000))
    yield "5 forms of 10,000 fields", at_once(post("/predict", fields + b"--b--\r\n", BOUNDARY), 5)
    yield "8 bodies of 31 MB that are no images", at_once(post("/predict/batch", part(b"\0" * 31_000_000), BOUNDARY), 8)
    ends = part(b"\r\n" * 4_000_000, "files") + b"--b--\r\n"
    yield "8 forms of 4,000,000 line ends", at_once(post("/predict/batch", ends, BOUNDARY), 8)
    near = part(b"\r\n--" * 2_000_000, "files") + b"--b--\r\n"
    yield "8 forms of 2,000,000 boundaries, almost", at_once(post("/predict/batch", near, BOUNDARY), 8)
    bomb = gzip.compress(b'{"inputs": [' + b" " * 200_000_000)
    request = post("/v2/models/cifar10/infer", bomb, "application/json").replace(
        b"Host: load", b"Host: load\r\nContent-Encoding: gzip"
    )
    yield "8 bodies of 200 kB that unpack to 200 MB", at_once(request, 8)
    yield "20 bodies a byte at a time, in chunks", dribbled(chunked(CAT), 0.0005, 20)
    head = f"POST /predict HTTP/1.1\r\nHost: load\r\nContent-Length: {len(CAT)}\r\n\r\n".encode()
    yield "200 bodies that never come", dribbled([head], 0, 200)
    yield "200 headers that never end", dribbled([b"POST /predict HTTP/1.1\r\nX: ", *[b"y" * 1000] * 100], 0.01, 200)
    fat = b"GET /livez HTTP/1.1\r\nHost: load\r\n" + b"aa:bb\r\n" * 1_500_000 + b"\r\n"
    yield "8 requests with 10 MB of headers", at_once(fat, 8)
    deep = post("/v2/models/cifar10/infer", b"[" * 5_000_000, "application/json")
    yield "8 JSON bodies of 5,000,000 brackets", at_once(deep, 8)
    tensor = {"name": "images", "shape": [2**31, 32, 32, 3], "datatype": "UINT8", "data": [0]}
    yield (
        "20 tensors that claim to be huge",
        at_once(post("/v2/models/cifar10/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json"), 20),
    )
    yield "one good image", at_once(post("/predict", CAT), 1)


def probe(address: tuple[str, int], stop: Event, seconds: Connection) -> None:
    """Ask both probes every 20 ms, in a process of its own: what the attack costs its sender is no delay of theirs."""
    found = []
    seconds.send("begun")
    while not stop.is_set():
        for path in ("/livez", "/readyz"):
            started, connection = time.perf_counter(), HTTPConnection(*address, timeout=10)
            try:
                connection.request("GET", path)
                good = connection.getresponse().status == 200
            except OSError:
                good = False
            found.append(time.perf_counter() - started if good else float("inf"))
            connection.close()
        stop.wait(0.02)
    seconds.send(found)


@contextmanager
def probing(url: str, seconds: list[float]) -> Iterator[None]:
    spawn, parts = multiprocessing.get_context("spawn"), httpx.URL(url)
    stop, (results, end) = spawn.Event(), spawn.Pipe(duplex=False)
    process = spawn.Process(target=probe, args=((parts.host, parts.port), stop, end))
    process.start()
    assert results.recv() == "begun"
    try:
        yield
    finally:
        stop.set()
        seconds.extend(results.recv())
        process.join()


async def run(url: str, pid: int, only: str) -> None:
    print("| attack | answers | seconds | probes, 99 % | probes, slowest | MB at most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, attack in attacks():
        if only not in name:
            continue
        forget_peak(pid)
        connections, probes = Connections(url), list[float]()
        with probing(url, probes):
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            statuses = Counter(await attack(connections))
            took = time.perf_counter() - started
            await asyncio.sleep(0.2)
        connections.close()
        answers = ", ".join(f"{count} x {status or 'cut'}" for status, count in sorted(statuses.items()))
        slowest = [f"{percentile(probes, share) * 1000:.0f} ms" for share in (0.99, 1)]
        print(f"| {name} | {answers} | {took:.1f} | {slowest[0]} | {slowest[1]} | {peak_mb(pid):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="attacks with these in their name")
    options = parser.parse_args()
    with serve(LOG_LEVEL="error", INFERENCE_THREADS=2) as (process, client):
        client.post("/predict", content=CAT)
        asyncio.run(run(str(client.base_url), process.pid, options.only))


if __name__ == "__main__":
    main()
