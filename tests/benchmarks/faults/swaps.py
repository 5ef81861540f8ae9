"""Swap the model of a running service again and again under load, and check that no request is lost and nothing leaks.

    python -m tests.benchmarks.faults.swaps --swaps 1000
    python -m tests.benchmarks.faults.swaps --swaps 1        # 120 requests while one model is swapped

The two shipped bundles take turns. Goals: no request is lost, and from the second hundred swaps to the last hundred the
medians of memory, threads and descriptors grow by less than 10 MB, 2 and 2. Otherwise the exit code is 1.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.app.server import serve
from tests.benchmarks.serving.processes import descriptors, resident_mb, threads
from tests.conftest import BUNDLE, DATA, SMALL_BUNDLE

ADMIN = "admin"
LOAD = "/v2/repository/models/cifar10/load"
REQUESTS = 120
HUNDRED = 100
GOALS = {"memory, in MB": 10, "threads": 2, "descriptors": 2}
# The bundles' folders, by version.
BUNDLES = {json.loads((folder / "bundle.json").read_text())["version"]: folder for folder in (BUNDLE, SMALL_BUNDLE)}


class Link:
    """A link to one of the bundles, as an operator leads one from version to version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_symlink():
            path.symlink_to(BUNDLE)

    def turn(self) -> str:
        """Lead it to the other bundle, in one step. Returns that bundle's version."""
        at = self.path.resolve()
        version, folder = next((version, folder) for version, folder in BUNDLES.items() if folder.resolve() != at)
        new = self.path.with_name("new")
        new.symlink_to(folder)
        os.replace(new, self.path)
        return version


@dataclass
class Outcome:
    answers: int = 0
    loads: int = 0
    lost: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)  # of the bundles that answered


async def swapped(
    url: str, link: Link, *, swaps: int, requests: int, clients: int = 3, watch: Callable[[int], None] = lambda _: None
) -> Outcome:
    """Send at least so many requests, and more until all swaps are done; `watch` gets the number of each swap."""
    outcome, done = Outcome(), asyncio.Event()
    image = (DATA / "cat.png").read_bytes()

    async def classify(client: httpx.AsyncClient) -> None:
        while not done.is_set() or outcome.answers + len(outcome.lost) < requests:
            try:
                answer = await client.post("/predict", content=image)
            except httpx.HTTPError as error:
                outcome.lost.append(repr(error))
                continue
            if answer.status_code == 200:
                outcome.answers += 1
                outcome.versions[answer.json()["model"]["version"]] += 1
            else:
                outcome.lost.append(answer.text)

    async def swap(client: httpx.AsyncClient) -> None:
        try:
            for number in range(1, swaps + 1):
                version = link.turn()
                began = time.monotonic()
                try:
                    loaded = await client.post(LOAD, headers={"Authorization": f"Bearer {ADMIN}"})
                except httpx.HTTPError as error:
                    outcome.lost.append(f"load {number}, after {time.monotonic() - began:.1f} s: {error!r}")
                    continue
                if loaded.status_code != 200 or loaded.json()["version"] != version:
                    outcome.lost.append(f"load {number}, after {time.monotonic() - began:.1f} s: {loaded.text}")
                outcome.loads += 1
                watch(number)
        finally:
            done.set()

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(swap(client), *(classify(client) for _ in range(clients)))
    return outcome


def run(swaps: int, clients: int) -> bool:
    """Whether the goals are met."""
    samples = list[tuple[float, int, int]]()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        link = Link(Path(folder) / "current")
        settings = {"MODEL_DIR": link.path, "ADMIN_KEYS": ADMIN, "INFERENCE_THREADS": 2, "LOG_LEVEL": "warning"}
        with serve(stderr=log, **settings) as (process, client):
            pid = process.pid

            def watch(number: int) -> None:
                samples.append((resident_mb(pid), threads(pid), descriptors(pid)))
                if number % HUNDRED == 0:
                    print(f"{number:5} swaps, medians of a hundred:", *medians(samples[-HUNDRED:]), flush=True)

            swapping = swapped(str(client.base_url), link, swaps=swaps, requests=REQUESTS, clients=clients, watch=watch)
            outcome = asyncio.run(swapping)
            if process.poll() is not None:
                outcome.lost.append(f"the service ended with exit code {process.returncode}")
            log.seek(0)
            print(log.read()[-2000:].decode(), end="")
    print(f"{outcome.answers} requests answered, {len(outcome.lost)} lost; by version {dict(outcome.versions)}")
    for reason, count in Counter(outcome.lost).most_common(5):
        print(f"  lost {count}: {reason[:200]}")
    met = not outcome.lost
    if swaps >= 3 * HUNDRED:
        for (name, most), first, last in zip(
            GOALS.items(), medians(samples[HUNDRED : 2 * HUNDRED]), medians(samples[-HUNDRED:]), strict=True
        ):
            print(f"{name}: {first} to {last} (goal: less than {most} more)")
            met = met and last - first < most
    return met


def medians(samples: Sequence[tuple[float, ...]]) -> list[float]:
    return [round(statistics.median(column), 1) for column in zip(*samples, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    sys.exit(not run(options.swaps, options.clients))


if __name__ == "__main__":
    main()
