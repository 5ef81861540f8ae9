"""Measure the service on Ray: failures after a node is killed, and Ray's overhead for requests and for many files.

    python -m tests.benchmarks.serving.cluster faults    # two nodes on this machine, load, one node killed and replaced
    python -m tests.benchmarks.serving.cluster overhead  # one replica against the plain service, requests alternate
    python -m tests.benchmarks.serving.cluster files     # `classify --ray` against `classify`

Needs the extra `ray`. `overhead --fast` runs Ray Serve with the flags that its manual recommends for throughput.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app import local_files as files
from app.client import AsyncClient
from app.inference.sessions import load_session
from app.settings import Settings
from tests.benchmarks.faults.restarts import free_port
from tests.benchmarks.serving.http_load import Connections, closed_loop, percentile, post
from tests.conftest import DATA, ROOT

RATE = 30  # requests a second, well below the capacity of one replica
OBJECT_STORE_BYTES = 100 * 1024 * 1024
FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}


async def expected(top_k: int) -> dict[bytes, dict[str, Any]]:
    """The answers of the plain command to the ten images."""
    settings = Settings(inference_threads=1)
    stream = files.classify(sorted(DATA.glob("*.png")), settings, load_session(settings), top_k)
    return {Path(item.path).read_bytes(): item.answer.model_dump() async for item in stream}


class Attempts(httpx.AsyncHTTPTransport):
    """A transport that counts the result of each attempt, also of those that the client retries."""

    def __init__(self) -> None:
        super().__init__(limits=httpx.Limits(max_connections=200))
        self.ends: Counter[str] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
            await response.aread()
        except httpx.TransportError as error:
            self.ends[type(error).__name__] += 1
            raise
        self.ends[str(response.status_code)] += 1
        return response


class Load(threading.Thread):
    """RATE requests a second through our client, in a thread because Ray starts and kills nodes in the main one."""

    def __init__(self, url: str, answers: dict[bytes, dict[str, Any]]) -> None:
        super().__init__()
        self._url = url
        self._answers = answers
        self._over = threading.Event()
        self.transport = Attempts()
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0

    def run(self) -> None:
        asyncio.run(self._send())

    def end(self) -> None:
        self._over.set()
        self.join()

    async def _send(self) -> None:
        began, tasks, images = time.perf_counter(), [], list(self._answers)
        async with AsyncClient(self._url, transport=self.transport) as client:
            while not self._over.is_set():
                await asyncio.sleep(max(0.0, began + len(tasks) / RATE - time.perf_counter()))
                tasks.append(asyncio.create_task(self._one(client, images[len(tasks) % len(images)])))
            await asyncio.gather(*tasks)

    async def _one(self, client: AsyncClient, image: bytes) -> None:
        began = time.perf_counter()
        try:
            answer = (await client.predict(image)).model_dump(exclude={"model", "timing_ms"})
            self.outcomes["right" if answer == self._answers[image] else "wrong"] += 1
        except Exception as error:
            self.outcomes[f"failed: {error!r}"] += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)


def kill(node: Any, nodes: Any) -> None:
    """Kill all processes of the node at once, its proxy and replica, as when its machine fails."""
    pid = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    nodes.remove_node(node, allow_graceful=False)


def faults(seconds: float) -> None:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from app.cluster import serve as cluster

    answers = asyncio.run(expected(top_k=5))
    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        victim = nodes.add_node(**node)
        ray.init(address=nodes.address, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(inference_threads=1)
        two = cluster.replicas(settings).options(autoscaling_config={"min_replicas": 2, "max_replicas": 2})
        serve.run(two.bind(settings), name="cifar10")

        def wait_for(count: int) -> None:
            """Wait until Ray reports `count` running replicas and `count` healthy proxies."""
            while True:
                status = serve.status()
                (state,) = status.applications["cifar10"].deployments.values()
                proxies = list(status.proxies.values()).count("HEALTHY")
                if (state.replica_states.get("RUNNING", 0), proxies) == (count, count):
                    return
                time.sleep(0.1)

        wait_for(2)
        load, began = Load(f"http://127.0.0.1:{port}", answers), time.perf_counter()

        def show(what: str) -> None:
            print(f"{time.perf_counter() - began:6.1f} s  {what}; attempts: {dict(load.transport.ends)}", flush=True)

        load.start()
        time.sleep(seconds)
        show("2 nodes, 2 replicas; killing a node")
        kill(victim, nodes)
        wait_for(1)
        show("Ray counts 1 replica")
        time.sleep(seconds)
        show("a new node joins")
        nodes.add_node(**node)
        wait_for(2)
        show("2 replicas again")
        time.sleep(seconds)
        load.end()
        show("the end")
        print(f"{sum(load.outcomes.values())} requests, {RATE} a second: {dict(load.outcomes)}, ", end="")
        print(f"the slowest in {load.slowest:.1f} s")
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def plain(port: int) -> Iterator[None]:
    environment = os.environ | {"PORT": str(port), "INFERENCE_THREADS": "1", "LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment)
    try:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def on_ray(port: int) -> Iterator[None]:
    import ray
    from ray import serve

    from app.cluster import serve as cluster

    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(cluster.deployment(Settings(inference_threads=1, log_level="error")), name="cifar10")
        yield
        serve.shutdown()
    finally:
        ray.shutdown()


async def by_turns(ports: dict[str, int], requests: int, seconds: float) -> None:
    request = post("/predict", (DATA / "cat.png").read_bytes())
    connections = {name: Connections(f"http://127.0.0.1:{port}") for name, port in ports.items()}
    times: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(-100, requests):  # the first ones warm up
        for name, connection in connections.items():
            outcome = await connection.send(request)
            assert outcome.status == 200, (name, outcome)
            if number >= 0:
                times[name].append(outcome.seconds)
    for name, values in times.items():
        print(f"{name}: one at a time: 50 % in {1000 * statistics.median(values):.2f} ms, ", end="")
        print(f"99 % in {1000 * percentile(values, 0.99):.2f} ms")
    first, second = times.values()
    added = statistics.median(b - a for a, b in zip(first, second, strict=True))
    print(f"Ray adds {1000 * added:.2f} ms to a request (median of {requests} pairs)")
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(3):
        for name, connection in connections.items():
            outcomes = await closed_loop(lambda connection=connection: connection.send(request), 16, seconds)
            assert {outcome.status for outcome in outcomes} == {200}
            rates[name].append(len(outcomes) / seconds)
    for name, values in rates.items():
        print(
            f"{name}: 16 at a time: {statistics.median(values):.0f} requests a second of {[round(v) for v in values]}"
        )
        connections[name].close()


def overhead(requests: int, seconds: float) -> None:
    ports = {"plain": free_port(), "ray": free_port()}
    with plain(ports["plain"]), on_ray(ports["ray"]):
        asyncio.run(by_turns(ports, requests, seconds))


def bulk(images: int) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        album = Path(folder, "album")
        album.mkdir()
        samples = sorted(DATA.glob("*.png"))
        for number in range(images):
            shutil.copy(samples[number % len(samples)], album / f"{number:06}.png")

        def timed(*arguments: str) -> tuple[str, float]:
            began = time.perf_counter()
            command = [sys.executable, "-m", "app", "classify", *arguments]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            return done.stdout, time.perf_counter() - began

        lines, here = timed("--json", str(album))
        _, ray = timed("--ray", "--output", f"{folder}/answers", str(album))
        _, again = timed("--ray", "--output", f"{folder}/answers", str(album))
        _, start_here = timed("--json", str(album / "000000.png"))
        _, start_ray = timed("--ray", "--output", f"{folder}/one", str(album / "000000.png"))
        expected = {row["path"]: row for row in map(json.loads, lines.splitlines())}
        rows = pq.read_table(f"{folder}/answers").to_pylist()
        same = sum(expected[row["path"]].items() <= row.items() for row in rows)
        print(f"{images} files, all cores; answers equal: {same} of {len(rows)}")
        for name, whole, start in (("plain", here, start_here), ("--ray", ray, start_ray)):
            print(f"{name}: {whole:.1f} s, {images / whole:.0f} images a second; one file {start:.1f} s, ", end="")
            print(f"so {images / (whole - start):.0f} images a second once it runs")
        print(f"--ray again, nothing left to do: {again:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "overhead", "files"))
    parser.add_argument("--seconds", type=float, default=6, help="of each phase")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # all on this machine, for a minute
    if options.fast:
        os.environ |= FAST
    if options.what == "faults":
        faults(options.seconds)
    elif options.what == "overhead":
        overhead(options.requests, options.seconds)
    else:
        bulk(options.images)


if __name__ == "__main__":
    main()
