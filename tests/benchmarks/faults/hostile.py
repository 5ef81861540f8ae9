"""Attack the service from one address, while probes and a bystander at another address send ordinary requests.

    python -m tests.benchmarks.faults.hostile                      # all attacks, about 45 minutes, on an idle machine
    python -m tests.benchmarks.faults.hostile --only AVIF --seconds 5
    python -m tests.benchmarks.faults.hostile --workers 2          # several processes that serve as one
    python -m tests.benchmarks.faults.hostile --url http://127.0.0.1:8000 --pid 4711    # a service that runs already

Most attacks repeat a request on 30 connections from 127.0.0.1; those of http_attacks say how many they open. The
bystander sends ten small PNGs a second from 127.0.0.2, and probes come from 127.0.0.3. Both run in separate processes.

Goals for each attack: the serving process takes at most 400 MB, all processes together at most 550 MB (shared pages
count once); 99 % of probes are answered within 100 ms; all requests of the bystander are answered, 99 % of them within
500 ms; no answer is a 500. Goals at the end: ten seconds after the last attack, the memory of the serving process is
within 10 % of that after 100 ordinary requests; another minute later no decoding process is left. With several workers
the goals for memory are those of each worker, and 800 MB, docker-compose.yml's limit, for all processes together.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import httpx

from tests.app.server import serve
from tests.benchmarks.faults import http_attacks, image_attacks, v2_attacks
from tests.benchmarks.faults.http_attacks import Attack, lasting
from tests.benchmarks.faults.image_attacks import CAT
from tests.benchmarks.serving.http_load import Connections, closed_loop, percentile
from tests.benchmarks.serving.processes import children, proportional_mb, resident_mb, workers

CONNECTIONS = 30
BYSTANDER, PROBES = "127.0.0.2", "127.0.0.3"
SERVING_MB, TOGETHER_MB, COMPOSE_MB = 400, 550, 800
PROBE_SECONDS, BYSTANDER_SECONDS = 0.1, 0.5


def repeated(request: bytes, seconds: float) -> Attack:
    """Repeat the request on 30 connections."""

    async def attack(connections: Connections) -> list[int]:
        outcomes = await closed_loop(lambda: connections.send(request), CONNECTIONS, seconds)
        return [one.status for one in outcomes]

    return attack


def attacks(seconds: float) -> Iterator[tuple[str, Attack]]:
    """Names and attacks."""
    for name, attack in http_attacks.attacks():
        yield name, lasting(attack, seconds)
    for name, request in chain(image_attacks.requests(), v2_attacks.requests()):
        yield name, repeated(request, seconds)


def ask(
    address: tuple[str, int], source: str, path: str, body: bytes | None, every: float, stop: Event, end: Connection
) -> None:
    """Repeat a request on new connections from `source` until `stop`. Sends the seconds of each, inf if it failed."""
    found = []
    end.send("begun")
    while not stop.is_set():
        started = time.perf_counter()
        connection = HTTPConnection(*address, timeout=10, source_address=(source, 0))
        try:
            connection.request("POST" if body else "GET", path, body)
            good = connection.getresponse().status == 200
        except (OSError, HTTPException):
            good = False
        took = time.perf_counter() - started
        found.append(took if good else float("inf"))
        connection.close()
        stop.wait(max(0.0, every - took))
    end.send(found)


@contextmanager
def asking(url: str, source: str, path: str, body: bytes | None, every: float) -> Iterator[list[float]]:
    """Run `ask` in another process during the block. The yielded list has the seconds of each answer at the end."""
    spawn, parts, seconds = multiprocessing.get_context("spawn"), httpx.URL(url), list[float]()
    stop, (results, end) = spawn.Event(), spawn.Pipe(duplex=False)
    process = spawn.Process(target=ask, args=((parts.host, parts.port), source, path, body, every, stop, end))
    process.start()
    assert results.recv() == "begun"
    try:
        yield seconds
    finally:
        stop.set()
        seconds.extend(results.recv())
        process.join()


@contextmanager
def probing(url: str, seconds: list[float]) -> Iterator[None]:
    """Request /readyz every 20 ms from another process. At the end, `seconds` has the times of the answers, too."""
    with asking(url, PROBES, "/readyz", None, 0.02) as found:
        yield
    seconds.extend(found)


@dataclass(frozen=True)
class Processes:
    """Of a service. `pid`: its serving process, or the supervisor of its workers."""

    pid: int
    workers: int

    @property
    def serving(self) -> list[int]:
        return [self.pid] if self.workers == 1 else workers(self.pid)

    @property
    def others(self) -> list[int]:
        """Processes that decode images or parse JSON."""
        serving = self.serving
        return [child for pid in {self.pid, *serving} for child in children(pid) if child not in serving]

    @property
    def most_together(self) -> int:
        """In MB."""
        return TOGETHER_MB if self.workers == 1 else COMPOSE_MB

    def largest(self) -> float:
        """The memory of the largest that serves, in MB."""
        return max(resident_mb(pid) for pid in self.serving)


@dataclass
class Memory:
    """Peak memory in MB: of a serving process, and of all processes together."""

    processes: Processes
    serving: float = 0
    together: float = 0

    async def watch(self) -> None:
        while True:
            serving, together = self.processes.serving, 0.0
            for process in {self.processes.pid, *serving, *self.processes.others}:
                with suppress(OSError, ProcessLookupError):  # the process has ended
                    if process in serving:
                        self.serving = max(self.serving, resident_mb(process))
                    together += proportional_mb(process)
            self.together = max(self.together, together)
            await asyncio.sleep(0.1)


async def run(url: str, processes: Processes, only: list[str], seconds: float) -> bool:
    """Whether all goals are met."""
    kept = True
    print("| attack | answers | probes, 99 % | bystander, 99 % | unanswered | serving, MB | all, MB | goals |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, attack in attacks(seconds):
        if not any(words in name for words in only):
            continue
        connections, memory, probes = Connections(url), Memory(processes), list[float]()
        watching = asyncio.create_task(memory.watch())
        with probing(url, probes), asking(url, BYSTANDER, "/predict", CAT, 0.1) as bystander:
            statuses = Counter(await attack(connections))
        watching.cancel()
        connections.close()
        answers = ", ".join(f"{count} x {status or 'cut'}" for status, count in sorted(statuses.items()))
        probe, other = percentile(probes, 0.99), percentile(bystander, 0.99)
        unanswered = bystander.count(float("inf"))
        met = (
            probe < PROBE_SECONDS
            and other < BYSTANDER_SECONDS
            and not unanswered
            and memory.serving <= SERVING_MB
            and memory.together <= processes.most_together
            and not statuses[500]
        )
        kept = kept and met
        print(
            f"| {name} | {answers} | {probe * 1000:.0f} ms | {other * 1000:.0f} ms | {unanswered} of {len(bystander)} |"
            f" {memory.serving:.0f} | {memory.together:.0f} | {'met' if met else 'MISSED'} |",
            flush=True,
        )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORDS", help="only attacks whose name has one of these"
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    parser.add_argument("--url", help="of a running service, without API keys; the default is to start one")
    parser.add_argument("--pid", type=int, help="of its serving process")
    parser.add_argument("--workers", type=int, default=1, help="of the service that is started")
    options = parser.parse_args()
    if (options.url is None) != (options.pid is None):
        parser.error("--url and --pid belong together")
    started = (
        serve(LOG_LEVEL="error", INFERENCE_THREADS=2, WORKERS=options.workers) if options.url is None else nullcontext()
    )
    with started as service:
        url, pid = (str(service[1].base_url), service[0].pid) if service else (options.url, options.pid)
        processes = Processes(pid, options.workers)
        for _ in range(100):
            httpx.post(f"{url.rstrip('/')}/predict", content=CAT).raise_for_status()
        before = processes.largest()
        kept = asyncio.run(run(url, processes, options.only, options.seconds))
        time.sleep(10)
        after = processes.largest()
        print(f"serving process: {before:.0f} MB after 100 requests, {after:.0f} MB ten seconds after the last attack")
        time.sleep(65)
        left = processes.others
        print(f"decoding processes left after another minute: {len(left)}")
    raise SystemExit(0 if kept and after <= 1.1 * before and not left else 1)


if __name__ == "__main__":
    main()
