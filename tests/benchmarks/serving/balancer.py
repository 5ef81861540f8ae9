"""Start instances of the service on this machine behind nginx, with the configuration that is deployed.

Needs nginx (Debian: apt-get install nginx-light).
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx

from tests.benchmarks.serving.http_load import Connections, Outcome, percentile
from tests.conftest import ROOT


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def configuration(port: int, instances: Sequence[int], folder: str) -> str:
    """deploy/nginx.conf with addresses instead of the names that Docker would resolve, and with files in `folder`."""
    text = (ROOT / "deploy/nginx.conf").read_text()
    replacements = {
        r"^ *resolver .*\n": "",
        r"server api:8000 resolve (.*?);": "".join(rf"server 127.0.0.1:{instance} \1; " for instance in instances),
        r"listen 8000;": f"listen 127.0.0.1:{port};",
        r"/tmp/": f"{folder}/",
        r"/dev/std(\w+)": rf"{folder}/\1",
    }
    for shown, ours in replacements.items():
        text, found = re.subn(shown, ours, text, flags=re.MULTILINE)
        assert found, f"deploy/nginx.conf has no {shown}"
    return text


def executable() -> str | None:
    """The path of nginx. Debian installs it in /usr/sbin, which is not in the PATH of ordinary users."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextmanager
def nginx(port: int, instances: Sequence[int], changes: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Runs it, with `changes` of its text; yields the folder of its logs.

    `out` has the requests that took more than one attempt, `err` its errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = configuration(port, instances, folder)
        for shown, ours in (changes or {}).items():
            assert shown in text, f"deploy/nginx.conf has no {shown}"
            text = text.replace(shown, ours)
        with running_nginx(text, port, Path(folder)):
            yield Path(folder)


@contextmanager
def running_nginx(text: str, port: int, folder: Path) -> Iterator[None]:
    """Runs nginx with this configuration, which listens at the port, until the end of the block."""
    program = executable()
    if program is None:
        sys.exit("nginx is not installed (Debian: apt-get install nginx-light)")
    folder.chmod(0o755)  # if root starts nginx, its workers run as another user
    path = folder / "nginx.conf"
    path.write_text(text)
    command = [program, "-p", str(folder), "-e", str(folder / "err"), "-c", str(path), "-g", "daemon off;"]
    process = subprocess.Popen(command)
    try:
        _wait_until_it_listens(process, port)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"nginx ended with exit code {process.returncode}")


def start(port: int, **environment: object) -> subprocess.Popen[bytes]:
    settings = {"PORT": port, "INFERENCE_THREADS": 1, "LOG_LEVEL": "error", "TRUSTED_PROXIES": "127.0.0.1"}
    variables = {name: str(value) for name, value in (settings | environment).items()}
    return subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=os.environ | variables)


async def ready(port: int) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


@asynccontextmanager
async def constant_load(port: int, requests: Sequence[bytes], rate: float) -> AsyncIterator[list[Outcome]]:
    """Send `rate` of the requests a second, in turn, during the block. The yielded list is complete at its end."""
    connections, outcomes, over = Connections(f"http://127.0.0.1:{port}"), list[Outcome](), asyncio.Event()

    async def load() -> None:
        tasks, began = [], time.perf_counter()
        while not over.is_set():
            due = began + len(tasks) / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(connections.send(requests[len(tasks) % len(requests)], due)))
        outcomes.extend(await asyncio.gather(*tasks))

    loading = asyncio.create_task(load())
    await asyncio.sleep(1)
    try:
        yield outcomes
    finally:
        await asyncio.sleep(1)
        over.set()
        await loading
        connections.close()


def report(outcomes: Sequence[Outcome], logs: Path) -> int:
    """Print the outcomes. Returns the number of requests that failed."""
    statuses = Counter(one.status for one in outcomes)
    seconds = [one.seconds for one in outcomes]
    failed = len(outcomes) - statuses[200]
    print(f"{len(outcomes)} requests; answers by status: {dict(statuses)}; failed: {failed} (goal: 0)")
    median, most, all_of_them = percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds)
    print(f"50 % in {median * 1000:.0f} ms, 99 % in {most * 1000:.0f} ms, all in {all_of_them * 1000:.0f} ms")
    for name, what in (
        ("out", "requests that nginx gave to more than one instance"),
        ("err", "lines in its error log"),
    ):
        print(f"{what}: {len((logs / name).read_text().splitlines())}")
    return failed
