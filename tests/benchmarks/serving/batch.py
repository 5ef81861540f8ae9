"""Compare the images a second of batch requests and single requests, with the same number of images in flight.

    python tests/benchmarks/serving/batch.py --rounds 12 --seconds 3

The service runs with its default settings. Rounds of both kinds alternate, so that other load on the machine affects
both alike. This process makes the load on the same cores, at little cost: it uses plain sockets and prepared requests.
Goal: a ratio of at least 1.3.
"""

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[3]
IMAGES = [path.read_bytes() for path in sorted((ROOT / "tests/data").glob("*.png"))]
BATCH = 32
TICKS = os.sysconf("SC_CLK_TCK")


def single(image: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
    return head.encode() + image


def batch(images: list[bytes]) -> bytes:
    request = httpx.Request("POST", "http://x/", files=[("files", (f"{n}.png", i)) for n, i in enumerate(images)])
    body = request.read()
    head = (
        f"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {request.headers['content-type']}\r\n\r\n"
    )
    return head.encode() + body


async def send_until(end: float, port: int, requests: list[bytes]) -> int:
    """Send random requests one by one over one connection. Returns how many were answered before `end`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    try:
        while True:
            writer.write(random.choice(requests))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(head.decode())
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            if time.monotonic() >= end:
                return answered
            answered += 1
    finally:
        writer.close()


async def load(port: int, seconds: float, connections: int, requests: list[bytes]) -> int:
    end = time.monotonic() + seconds
    return sum(await asyncio.gather(*(send_until(end, port, requests) for _ in range(connections))))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(
    port: int, pid: int, seconds: float, connections: int, requests: list[bytes], size: int
) -> tuple[float, float]:
    """Images a second, and milliseconds of the service's CPU time for each image."""
    before = cpu_seconds(pid)
    images = asyncio.run(load(port, seconds, connections, requests)) * size
    return images / seconds, (cpu_seconds(pid) - before) * 1000 / images


@contextmanager
def service(port: int) -> Iterator[int]:
    """Run the service. Yields its process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=os.environ | {"PORT": str(port), "LOG_LEVEL": "warning"},
    )
    try:
        while process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/readyz").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            sys.exit("the service did not start")
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3, help="of each kind in a round")
    parser.add_argument("--in-flight", type=int, default=64, help="images; a multiple of 32")
    parser.add_argument("--port", type=int, default=18232)
    options = parser.parse_args()
    kinds = {
        "single": (options.in_flight, [single(image) for image in IMAGES], 1),
        "batch": (options.in_flight // BATCH, [batch(random.choices(IMAGES, k=BATCH)) for _ in range(8)], BATCH),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    with service(options.port) as pid:
        for round_number in range(options.rounds + 1):
            order = list(kinds)
            for kind in order if round_number % 2 else reversed(order):
                rate, cost = measure(options.port, pid, options.seconds, *kinds[kind])
                if round_number:  # the first one warms up
                    rates[kind].append(rate)
                    costs[kind].append(cost)
    for kind in kinds:
        print(
            f"{kind:6} {statistics.median(rates[kind]):7.0f} images/s (median; {min(rates[kind]):.0f} to "
            f"{max(rates[kind]):.0f})   {statistics.median(costs[kind]):.2f} ms of the service's CPU an image"
        )
    ratios = [b / s for b, s in zip(rates["batch"], rates["single"], strict=True)]
    print(f"ratio  {statistics.median(ratios):7.2f} (median of {len(ratios)} pairs; ", end="")
    print(f"{min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
