"""How long the service takes from its start to ready, and how much memory it then holds.

    python tests/benchmarks/startup.py --runs 5

Goals: ready in under 3 s, under 300 MB resident (after 200 requests, too).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
CAT = (ROOT / "tests/data/cat.png").read_bytes()


def resident_mb(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(port: int) -> tuple[float, float, float]:
    """Seconds to ready, MB when ready, MB after 200 predictions."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=os.environ | {"PORT": str(port), "LOG_LEVEL": "warning"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
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
            return seconds, ready, resident_mb(process.pid)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--port", type=int, default=18231)
    options = parser.parse_args()
    runs = [measure(options.port) for _ in range(options.runs)]
    for name, values in zip(
        ["seconds to ready", "MB when ready", "MB after 200 requests"], zip(*runs, strict=True), strict=True
    ):
        print(f"{name:24} median {statistics.median(values):7.2f}   min {min(values):7.2f}   max {max(values):7.2f}")


if __name__ == "__main__":
    main()
