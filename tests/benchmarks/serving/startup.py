"""Measure the time from the start of the service until it is ready, and its memory.

    python tests/benchmarks/serving/startup.py --runs 5

Goals: ready within 3 s; less than 300 MB resident, also after 200 requests. The peak is measured with eight concurrent
images of 25 megapixels, four PNGs and four JPEGs, which the default limits allow.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image

ROOT = Path(__file__).parents[3]
CAT = (ROOT / "tests/data/cat.png").read_bytes()


def large(format: str) -> bytes:
    """An image of 25 megapixels that compresses well."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((5000, 5000)).convert("RGB").save(out, format)
    return out.getvalue()


def resident_mb(pid: int, field: str = "VmRSS") -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(port: int, photos: list[bytes]) -> tuple[float, float, float, float]:
    """Seconds until ready, MB when ready, MB after 200 predictions, peak MB with the photos."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=os.environ | {"PORT": str(port), "LOG_LEVEL": "warning", "DEADLINE_SECONDS": "60"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.005)
            seconds = time.perf_counter() - started
            ready = resident_mb(process.pid)
            for _ in range(200):
                client.post("/predict", content=CAT).raise_for_status()
            after = resident_mb(process.pid)
            with ThreadPoolExecutor(len(photos)) as pool:
                for answer in pool.map(lambda photo: client.post("/predict", content=photo), photos):
                    answer.raise_for_status()
            return seconds, ready, after, resident_mb(process.pid, "VmHWM")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--port", type=int, default=18231)
    options = parser.parse_args()
    photos = [large(format) for format in ("PNG", "JPEG")] * 4
    runs = [measure(options.port, photos) for _ in range(options.runs)]
    for name, values in zip(
        ["seconds to ready", "MB when ready", "MB after 200 requests", "MB at the peak"],
        zip(*runs, strict=True),
        strict=True,
    ):
        print(f"{name:24} median {statistics.median(values):7.2f}   min {min(values):7.2f}   max {max(values):7.2f}")


if __name__ == "__main__":
    main()
