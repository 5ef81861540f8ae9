"""Measure the time from the start of the service until it is ready, and its memory.

    python -m tests.benchmarks.serving.startup --runs 5
    python -m tests.benchmarks.serving.startup --runs 1 --workers 2

Goals: ready within 3 s; less than 300 MB resident, also after 200 requests. The peak is measured with eight concurrent
images of 25 megapixels, four PNGs and four JPEGs, which the default limits allow. Resident is the largest process.
Proportional is of all processes, decoding ones included, and counts pages that they share once.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx
from PIL import Image

from tests.benchmarks.serving.peers.processes import stats
from tests.benchmarks.serving.processes import forget_peak, peak_mb, proportional_mb, resident_mb

ROOT = Path(__file__).parents[3]
CAT = (ROOT / "tests/data/cat.png").read_bytes()


def large(format: str) -> bytes:
    """An image of 25 megapixels that compresses well."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((5000, 5000)).convert("RGB").save(out, format)
    return out.getvalue()


def memory(pid: int) -> tuple[float, float]:
    """MB: resident in the largest process of the service, proportional in all."""
    family = list(stats(pid))
    return max(map(resident_mb, family)), sum(map(proportional_mb, family))


class Watch:
    """The peak of the proportional memory of all processes, sampled; the resident one is the kernel's."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._most = 0.0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        for pid in stats(self._pid):
            forget_peak(pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak = max(map(peak_mb, stats(self._pid))), self._most

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            with suppress(ProcessLookupError, FileNotFoundError):  # a process ended meanwhile
                self._most = max(self._most, memory(self._pid)[1])


def measure(port: int, photos: list[bytes], workers: str) -> tuple[float, ...]:
    """Seconds until ready; MB, resident and proportional, when ready, after 200 predictions, at the peak of photos."""
    started = time.perf_counter()
    settings = {"PORT": str(port), "LOG_LEVEL": "warning", "DEADLINE_SECONDS": "60", "WORKERS": workers}
    process = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=os.environ | settings)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.005)
            seconds = time.perf_counter() - started
            ready = memory(process.pid)
            with ThreadPoolExecutor(8) as pool:
                for answer in pool.map(lambda _: client.post("/predict", content=CAT), range(200)):
                    answer.raise_for_status()
            after = memory(process.pid)
            with Watch(process.pid) as watch, ThreadPoolExecutor(len(photos)) as pool:
                for answer in pool.map(lambda photo: client.post("/predict", content=photo), photos):
                    answer.raise_for_status()
            return seconds, *ready, *after, *watch.peak
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--port", type=int, default=18231)
    parser.add_argument("--workers", default="1", help="WORKERS of the service")
    options = parser.parse_args()
    photos = [large(format) for format in ("PNG", "JPEG")] * 4
    runs = [measure(options.port, photos, options.workers) for _ in range(options.runs)]
    for name, values in zip(
        [
            "seconds to ready",
            *("MB when ready", "  proportional", "MB after 200 requests", "  proportional"),
            *("MB at the peak", "  proportional"),
        ],
        zip(*runs, strict=True),
        strict=True,
    ):
        print(f"{name:24} median {statistics.median(values):7.2f}   min {min(values):7.2f}   max {max(values):7.2f}")


if __name__ == "__main__":
    main()
