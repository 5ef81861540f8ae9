"""Restart one of two instances behind nginx repeatedly under constant load, and count the requests that fail.

    python -m tests.benchmarks.faults.restarts --restarts 20

Needs nginx (Debian: apt-get install nginx-light), which runs with deploy/nginx.conf. Goal: no request fails; otherwise
the exit code is 1.
"""

import argparse
import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path

from tests.benchmarks.serving.balancer import constant_load, free_port, nginx, ready, report, start
from tests.benchmarks.serving.http_load import post
from tests.conftest import DATA

RATE = 40  # requests a second, well below the capacity of one instance


async def run(port: int, instances: list[int], restarts: int, logs: Path) -> int:
    processes, codes = [start(instance) for instance in instances], []
    try:
        await asyncio.gather(*map(ready, instances))
        async with constant_load(port, [post("/predict", (DATA / "cat.png").read_bytes())], RATE) as outcomes:
            for _ in range(restarts):
                processes[0].send_signal(signal.SIGTERM)
                codes.append(await asyncio.to_thread(processes[0].wait))
                processes[0] = start(instances[0])
                await ready(instances[0])
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    print(f"{restarts} restarts, exit codes {dict(Counter(codes))}; {RATE} requests a second")
    return report(outcomes, logs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    options = parser.parse_args()
    port, *instances = (free_port() for _ in range(3))
    with nginx(port, instances) as logs:
        sys.exit(asyncio.run(run(port, instances, options.restarts, logs)) > 0)


if __name__ == "__main__":
    main()
