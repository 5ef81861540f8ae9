"""Send all kinds of valid and invalid requests for ten minutes, and check memory, descriptors and metrics.

    python -m tests.benchmarks.faults.soak --minutes 10

Goals: after the first two minutes, memory grows by less than 0.5 MB a minute; at the end there are as many descriptors
as at the start; the metrics count every request exactly once.
"""

import argparse
import asyncio
import random
import re
import time
from collections import Counter

import httpx
import numpy as np

from tests.app.server import serve
from tests.benchmarks.faults.image_attacks import BOUNDARY, encoded, part
from tests.benchmarks.serving.http_load import Connections, dribbled, post
from tests.benchmarks.serving.processes import descriptors, resident_mb
from tests.conftest import DATA

CLIENTS, SETTLED_SECONDS, SAMPLE_SECONDS = 6, 120, 2


def kinds() -> dict[str, bytes | list[bytes]]:
    """A request for each kind. Requests that are slow or incomplete are lists of pieces."""
    images = [path.read_bytes() for path in sorted(DATA.glob("*.png"))]
    photo = encoded(2000, 1500, "JPEG", noise=True)
    form = b"".join(part(image, "files") for image in images) + b"--b--\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: load\r\nConnection: close\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
    third = len(photo) // 3
    return {
        "an image": post("/predict", images[3]),
        "a form": post("/predict", part(images[5]) + b"--b--\r\n", BOUNDARY),
        "a photo": post("/predict?top_k=3&coverage=0.95", photo),
        "a batch": post("/predict/batch", form, BOUNDARY),
        "an explanation": post("/explain", images[1]),
        "the report": b"GET /metrics/report HTTP/1.1\r\nHost: load\r\n\r\n",
        "corrupt": post("/predict", photo[:third] + b"\0" * third),
        "too large": post("/predict", b"\0" * 11_000_000),
        "too many pixels": post("/predict", encoded(6000, 6000, "PNG", "1")),
        "no image": post("/predict", b"hello", "text/plain"),
        "nowhere": b"GET /nowhere HTTP/1.1\r\nHost: load\r\n\r\n",
        "slow": [head, photo[:third], photo[third : 2 * third], photo[2 * third :]],
        "cut off": [head, photo[:third]],
    }


async def client(url: str, requests: dict[str, bytes | list[bytes]], end: float, seed: int) -> Counter[tuple[str, int]]:
    connections, rng, statuses = Connections(url), random.Random(seed), Counter[tuple[str, int]]()
    while time.monotonic() < end:
        kind = rng.choice(list(requests))
        request = requests[kind]
        if isinstance(request, bytes):
            status = (await connections.send(request)).status
        elif kind == "cut off":
            _, writer = await connections.open()
            writer.write(b"".join(request))
            await writer.drain()
            writer.close()
            status = 0
        else:
            (status,) = await dribbled(request, 0.3, 1)(connections)
        statuses[kind, status] += 1
    connections.close()
    return statuses


async def run(url: str, pid: int, seconds: float) -> None:
    requests, end, samples = kinds(), time.monotonic() + seconds, list[tuple[float, float, int]]()
    before = descriptors(pid)

    async def watch() -> None:
        while True:
            samples.append((time.monotonic(), resident_mb(pid), descriptors(pid)))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.ensure_future(watch())
    sent = sum(await asyncio.gather(*(client(url, requests, end, seed) for seed in range(CLIENTS))), Counter())
    watching.cancel()
    started = samples[0][0]
    late = [(at / 60, mb) for at, mb, _ in samples if at - started >= min(SETTLED_SECONDS, seconds / 2)]
    slope = np.polyfit(*zip(*late, strict=True), 1)[0]
    print(f"{sum(sent.values())} requests in {seconds / 60:g} minutes")
    for (kind, status), count in sorted(sent.items()):
        print(f"  {kind:16} {status or 'cut off':>7} {count:6}")
    by_minute = {int((at - started) / 60): f"{mb:.0f}" for at, mb, _ in samples}
    print(f"memory at the end of each minute, in MB: {' '.join(by_minute.values())}")
    print(f"memory: {late[0][1]:.0f} MB to {late[-1][1]:.0f} MB, {slope:+.2f} MB a minute (goal: below 0.5)")
    await asyncio.sleep(1)
    print(f"descriptors: {before} before, {descriptors(pid)} after, {max(one[2] for one in samples)} at most")
    metrics = httpx.get(f"{url}/metrics").text
    outcomes = sum(float(value) for value in re.findall(r"^predict_requests_total{.*} (\S+)$", metrics, re.M))
    print(f"in the metrics: {outcomes:.0f} outcomes of {sum(sent.values())} requests")
    left = re.findall(r"^(predict_(?:queue_images|inflight_requests)) (\S+)$", metrics, re.M)
    print(f"still in flight: {dict(left)} (the request for the metrics is one of them)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    with serve(LOG_LEVEL="error", INFERENCE_THREADS=2) as (process, client_of_it):
        asyncio.run(run(str(client_of_it.base_url), process.pid, options.minutes * 60))


if __name__ == "__main__":
    main()
