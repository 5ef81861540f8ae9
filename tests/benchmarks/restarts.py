"""Two instances behind nginx, constant load, and one of them restarted again and again: how many requests fail?

    python -m tests.benchmarks.restarts --restarts 20

Needs nginx (Debian: apt-get install nginx-light). The configuration is that of docs/operations.md. Goal: none.
"""

import argparse
import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.benchmarks.http_load import Connections, percentile, post
from tests.conftest import DATA, ROOT

RATE = 40  # requests a second, well below what one instance carries
OUTER = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{servers}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def configuration(port: int, instances: list[int], folder: str) -> str:
    """What docs/operations.md shows, with this run's addresses."""
    text = (ROOT / "docs/operations.md").read_text()
    (shown,) = re.findall(r"```nginx\n(.*?)```", text, re.S)
    servers = "".join(f"server 127.0.0.1:{instance}; " for instance in instances)
    shown = re.sub(r"server 10\S+; server 10\S+; ", servers, shown)
    return OUTER.format(folder=folder, servers=shown.replace("server {", f"server {{\n    listen 127.0.0.1:{port};", 1))


@contextmanager
def nginx(port: int, instances: list[int]) -> Iterator[Path]:
    """Runs it; yields its error log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nginx.conf")
        path.write_text(configuration(port, instances, folder))
        command = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder, "-c", str(path), "-g", "daemon off;"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield Path(folder, "error.log")
        finally:
            process.terminate()
            process.wait()


def start(port: int) -> subprocess.Popen[bytes]:
    settings = {"PORT": str(port), "INFERENCE_THREADS": "1", "LOG_LEVEL": "error", "TRUSTED_PROXIES": "127.0.0.1"}
    return subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=os.environ | settings)


async def ready(port: int) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def run(port: int, instances: list[int], restarts: int) -> None:
    processes = [start(instance) for instance in instances]
    try:
        await asyncio.gather(*map(ready, instances))
        connections, request = (
            Connections(f"http://127.0.0.1:{port}"),
            post("/predict", (DATA / "cat.png").read_bytes()),
        )
        outcomes, over = [], asyncio.Event()

        async def load() -> None:
            tasks, began = [], time.perf_counter()
            while not over.is_set():
                due = began + len(tasks) / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(connections.send(request, due)))
            outcomes.extend(await asyncio.gather(*tasks))

        loading, codes = asyncio.create_task(load()), []
        await asyncio.sleep(1)
        for _ in range(restarts):
            processes[0].send_signal(signal.SIGTERM)
            codes.append(await asyncio.to_thread(processes[0].wait))
            processes[0] = start(instances[0])
            await ready(instances[0])
        await asyncio.sleep(1)
        over.set()
        await loading
        connections.close()
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    statuses = Counter(one.status for one in outcomes)
    seconds = [one.seconds for one in outcomes]
    print(f"{restarts} restarts, exit codes {dict(Counter(codes))}; {len(outcomes)} requests, {RATE} a second")
    print(f"answers by status: {dict(statuses)}; failed: {len(outcomes) - statuses[200]} (goal: 0)")
    print(
        f"50 % in {percentile(seconds, 0.5) * 1000:.0f} ms, 99 % in {percentile(seconds, 0.99) * 1000:.0f} ms, ", end=""
    )
    print(f"all in {max(seconds) * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    options = parser.parse_args()
    port, *instances = (free_port() for _ in range(3))
    with nginx(port, instances) as errors:
        asyncio.run(run(port, instances, options.restarts))
        print(f"lines in nginx's error log: {len(errors.read_text().splitlines()) if errors.exists() else 0}")


if __name__ == "__main__":
    main()
