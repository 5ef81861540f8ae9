"""Measure the capacity of this machine: bare inference, and the service under wrk (Debian: apt-get install wrk).

    python -m tests.benchmarks.serving.capacity --seconds 8 --rounds 3 --bundle models/mobilenet_v2_cifar10
    python -m tests.benchmarks.serving.capacity --workers 1,2
    python -m tests.benchmarks.serving.capacity --bundle models/mobilenet_v2_cifar10 models/mobilenet_v2_cifar10_int8

wrk posts a 32x32 PNG over keep-alive connections. It runs on the same cores as the service. Each line is the median of
the rounds, which alternate between measurements; services of several bundles and WORKERS run side by side, all but one
of them idle.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np

from app.bundle.reader import Bundle
from app.cores import available_cores
from app.inference.sessions import load_session
from app.settings import Settings

ROOT = Path(__file__).parents[3]
IMAGE = ROOT / "tests/data/cat.png"
CONCURRENCY = (1, 8, 32, 64)
SCRIPT = """
local file = io.open("{image}", "rb")
wrk.method, wrk.body = "POST", file:read("*all")
wrk.headers["Content-Type"] = "image/png"
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %f %f %f %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.timeout + errors.connect + errors.read + errors.write))
end
"""


def bare(bundle: Path, engine: str, threads: int, seconds: float) -> float:
    """Images a second of `threads` threads that run inference on single images."""
    _, session = load_session(Settings(model_dir=bundle, engine=engine))
    image = np.zeros((1, 32, 32, 3), np.uint8)
    session.run(image)  # the first call initialises the session
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            session.run(image)
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def wrk(url: str, connections: int, seconds: float, script: Path) -> tuple[float, float, float]:
    """Requests a second, and the median and 99th percentile of the latency in ms."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), f"{url}/predict"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+)", done.stdout)
    assert found and found[4] == "0", done.stdout
    return float(found[1]), float(found[2]), float(found[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18232)
    default = ROOT / Settings().model_dir
    parser.add_argument("--bundle", type=Path, nargs="+", default=[default], help="folders of the served bundles")
    parser.add_argument("--workers", default="1", help="comma-separated: WORKERS of one service each")
    options = parser.parse_args()
    bundles = [bundle.resolve() for bundle in options.bundle]  # the service runs in another folder
    combinations = list(itertools.product(bundles, options.workers.split(",")))
    services = {one: f"http://127.0.0.1:{options.port + place}" for place, one in enumerate(combinations)}
    inference: dict[tuple[Path, str, int], list[float]] = {}
    for threads in sorted({1, available_cores()}):
        inference |= {(bundle, "onnx", threads): [] for bundle in bundles}
    floats = [bundle for bundle in bundles if not Bundle.load(bundle).manifest.quantisation]
    inference |= {(bundle, "torch", 1): [] for bundle in floats}
    found: dict[tuple[tuple[Path, str], int], list[tuple[float, float, float]]] = {
        (one, connections): [] for connections in CONCURRENCY for one in services
    }
    with ExitStack() as stack:
        for (bundle, workers), url in services.items():
            stack.enter_context(serving(url, bundle, workers))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_text(SCRIPT.format(image=IMAGE))
        for _ in range(options.rounds):
            for (bundle, engine, threads), rates in inference.items():
                rates.append(bare(bundle, engine, threads, options.seconds / 2))
            for (one, connections), results in found.items():
                results.append(wrk(services[one], connections, options.seconds, script))
    print("| what | images/s | median ms | 99 % ms |\n| --- | --- | --- | --- |")
    for (bundle, engine, threads), rates in inference.items():
        rate = statistics.median(rates)
        name = f"bare inference, {engine}, {threads} thread{'s' * (threads > 1)}"
        print(f"| {bundle.name}: {name} | {rate:.0f} | {1000 * threads / rate:.2f} | |")
    for ((bundle, workers), connections), results in found.items():
        rate, median, tail = (statistics.median(column) for column in zip(*results, strict=True))
        name = f"`/predict`, WORKERS={workers}, {connections} at once"
        print(f"| {bundle.name}: {name} | {rate:.0f} | {median:.2f} | {tail:.2f} |")


@contextmanager
def serving(url: str, bundle: Path, workers: str) -> Iterator[None]:
    """The service, until the block ends. Exits if it cannot start."""
    settings = {"PORT": url.rpartition(":")[2], "LOG_LEVEL": "warning", "MODEL_DIR": str(bundle), "WORKERS": workers}
    server = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=os.environ | settings)
    try:
        wait(url, server)
        yield
    finally:
        server.terminate()
        server.wait()


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the service is ready. Exits if the service exits."""
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    sys.exit(1)


if __name__ == "__main__":
    main()
