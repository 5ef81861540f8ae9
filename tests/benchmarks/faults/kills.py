"""Kill instances behind nginx one by one with SIGKILL under constant load, and count the requests that fail.

    python -m tests.benchmarks.faults.kills --kills 20

Each instance is killed while it has work, and restarted. When it is ready, the next one is killed. A third of the
requests are photos of 2 MB, a third are forms of ten images, so nginx must often send a body again. Needs nginx
(Debian: apt-get install nginx-light), which runs with deploy/nginx.conf. Goal: no request fails; otherwise the exit
code is 1.
"""

import argparse
import asyncio
import os
import random
import sys
from pathlib import Path

from tests.benchmarks.faults.image_attacks import BOUNDARY, encoded, part
from tests.benchmarks.serving.balancer import constant_load, free_port, nginx, ready, report, start
from tests.benchmarks.serving.http_load import post
from tests.conftest import DATA


def requests() -> list[bytes]:
    images = [path.read_bytes() for path in sorted(DATA.glob("*.png"))]
    form = b"".join(part(image, "files") for image in images) + b"--b--\r\n"
    photo = encoded(2000, 1500, "JPEG", noise=True)
    return [
        post("/predict", images[3]),
        post("/predict", photo),
        post("/predict/batch", form, BOUNDARY),
    ]


async def run(port: int, instances: list[int], kills: int, rate: float, seed: int, logs: Path) -> int:
    processes, rng = [start(instance) for instance in instances], random.Random(seed)
    try:
        await asyncio.gather(*map(ready, instances))
        async with constant_load(port, requests(), rate) as outcomes:
            for number in range(kills):
                victim = number % len(instances)
                await asyncio.sleep(rng.uniform(0, 0.5))  # a random moment of its work
                processes[victim].kill()
                processes[victim].wait()
                processes[victim] = start(instances[victim])
                await ready(instances[victim])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(f"{kills} kills of {len(instances)} instances on {os.cpu_count()} cores; {rate:g} requests a second")
    return report(outcomes, logs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--rate", type=float, default=24, help="requests a second that one instance can answer")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    port, *instances = (free_port() for _ in range(1 + options.instances))
    with nginx(port, instances) as logs:
        sys.exit(asyncio.run(run(port, instances, options.kills, options.rate, options.seed, logs)) > 0)


if __name__ == "__main__":
    main()
