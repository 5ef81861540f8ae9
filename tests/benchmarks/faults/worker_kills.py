"""Kill the workers of one service by SIGKILL, one at a time under constant load, and tell how long each is missing.

    python -m tests.benchmarks.faults.worker_kills --kills 20

A worker is replaced when the new one says in the log that it serves. Goal: 2 s each time; otherwise the exit code
is 1. What a killed worker was answering fails; the command tells how many requests those are.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.app.server import serve
from tests.benchmarks.serving.balancer import constant_load
from tests.benchmarks.serving.http_load import post
from tests.benchmarks.serving.processes import workers
from tests.conftest import DATA

GOAL_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
REPLACED = '"message": "a worker was replaced"'


async def kill_one(supervisor: int, log: Path, rng: random.Random) -> float:
    """Seconds until another worker serves in its place. Raises TimeoutError."""
    before = log.read_text().count(REPLACED)
    began = time.perf_counter()
    os.kill(rng.choice(workers(supervisor)), signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while log.read_text().count(REPLACED) == before:
            await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def run(kills: int, rate: float, seed: int) -> bool:
    """Whether the goals are met."""
    rng, image = random.Random(seed), post("/predict", (DATA / "cat.png").read_bytes())
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        settings = {"WORKERS": 2, "LOG_LEVEL": "warning", "LOG_FORMAT": "json"}
        with serve(stderr=log, **settings) as (process, client):
            seconds = []
            async with constant_load(client.base_url.port, [image], rate) as outcomes:
                for _ in range(kills):
                    await asyncio.sleep(rng.uniform(0.2, 0.7))
                    seconds.append(await kill_one(process.pid, Path(log.name), rng))
    statuses = Counter(one.status for one in outcomes)
    failed = len(outcomes) - statuses[200]
    print(f"{kills} kills of one of two workers; {rate:g} requests a second")
    print(f"replaced after {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s (goal: {GOAL_SECONDS:g} s)")
    print(f"{len(outcomes)} requests; answers by status: {dict(statuses)}; failed: {failed}")
    return max(seconds) <= GOAL_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=40, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(not asyncio.run(run(options.kills, options.rate, options.seed)))


if __name__ == "__main__":
    main()
