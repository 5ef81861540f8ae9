"""Run two instances with traffic, and Prometheus, and check that the query of every panel has data.

make monitoring-test

Needs Prometheus (Debian: apt-get install prometheus). Prometheus runs with deploy/monitoring/, but with addresses
instead of the names that Docker would resolve, and with shorter intervals. Grafana is not started.
"""

import asyncio
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from tests.benchmarks.serving.balancer import free_port, ready, start
from tests.conftest import DATA, ROOT

MONITORING = ROOT / "deploy/monitoring"
KEY, METRICS_KEY = "monitoring-test", "monitoring-test-scraper"
SETTINGS = {"DRIFT_WINDOW_IMAGES": 20, "QUEUE_IMAGES": 3, "API_KEYS": KEY, "METRICS_KEY": METRICS_KEY}
INTERVAL = "10s"  # Grafana's value for $__rate_interval
WAIT_SECONDS = 60


def panels() -> list[dict]:
    """All panels with queries; rows are left out."""
    dashboard = json.loads((MONITORING / "classifier.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def configuration(targets: Sequence[str]) -> str:
    """deploy/monitoring/prometheus.yml with addresses instead of names, and intervals of 1 s instead of 15 s."""
    text = (MONITORING / "prometheus.yml").read_text()
    discovery = r"^    dns_sd_configs:\n(?:      .*\n)+"
    for pattern, replacement in {
        discovery: f"    static_configs: [{{targets: {json.dumps(targets)}}}]\n",
        r"_interval: 15s": "_interval: 1s",
    }.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, f"prometheus.yml has no {pattern}"
    return text


@contextmanager
def prometheus(targets: Sequence[str]) -> Iterator[httpx.Client]:
    """Run Prometheus. Yields a client of its HTTP API."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("Prometheus is not installed (Debian: apt-get install prometheus)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MONITORING / "alerts.yml", folder)
        Path(folder, "prometheus.yml").write_text(configuration(targets))
        Path(folder, "metrics_key").write_text(METRICS_KEY)
        options = {
            "config.file": f"{folder}/prometheus.yml",
            "storage.tsdb.path": f"{folder}/data",
            "web.listen-address": f"127.0.0.1:{port}",
            "log.level": "error",
        }
        process = subprocess.Popen([program, *(f"--{name}={value}" for name, value in options.items())])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def noise() -> bytes:
    """A JPEG of random pixels, which takes a while to decode."""
    file = io.BytesIO()
    values = np.random.default_rng(1).integers(0, 256, (1500, 2000, 3), np.uint8)
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


@contextmanager
def instance() -> Iterator[httpx.Client]:
    """Run the service. Yields a client of it."""
    port = free_port()
    process = start(port, **SETTINGS)
    try:
        asyncio.run(asyncio.wait_for(ready(port), WAIT_SECONDS))
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        ) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def make_traffic(clients: Sequence[httpx.Client]) -> None:
    """Requests for all panels: each class, other images, errors, and more concurrent images than QUEUE_IMAGES."""
    images = [path.read_bytes() for path in sorted(DATA.glob("*.png"))]
    photo = noise()
    for client in clients:
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(client.post, "/predict", content=photo) for _ in range(8)]
        assert {answer.result().status_code for answer in answers} == {200, 429}
        for image in images:
            client.post("/predict", content=image).raise_for_status()
        client.post("/predict/batch", files=[("files", image) for image in images[:3]]).raise_for_status()
        assert client.post("/predict", content=b"no image").status_code == 415


def values(client: httpx.Client, expression: str) -> list[float]:
    """One value for each series. NaN is left out, because Grafana does not draw it."""
    query = {"query": expression.replace("$__rate_interval", INTERVAL)}
    answer = client.get("/api/v1/query", params=query).raise_for_status().json()
    found = [float(one["value"][1]) for one in answer["data"]["result"]]
    return [value for value in found if not math.isnan(value)]


def check_panels(client: httpx.Client) -> list[str]:
    """Print the results of each query. Returns the titles of panels that have a query without results."""
    empty = []
    for panel in panels():
        for target in panel["targets"]:
            found = values(client, target["expr"])
            shown = ", ".join(f"{value:.3g}" for value in found[:4]) + (", ..." if len(found) > 4 else "")
            print(f"{panel['title']:28} {target['legendFormat']:24} {len(found):3} series: {shown}")
            if not found:
                empty.append(panel["title"])
    return empty


def check_rules(client: httpx.Client) -> None:
    groups = client.get("/api/v1/rules").raise_for_status().json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules and all(rule["health"] == "ok" for rule in rules), rules
    print(f"{len(rules)} alert rules, all evaluated")


def wait_for_instances(client: httpx.Client, count: int) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            if values(client, 'sum(up{job="classifier"})') == [count]:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"Prometheus did not reach {count} instances within {WAIT_SECONDS} s")


def main() -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(instance()) for _ in range(2)]
        client = stack.enter_context(prometheus([one.base_url.netloc.decode() for one in clients]))
        wait_for_instances(client, len(clients))
        # Rates need two scrapes with traffic between them, so the traffic goes on until every query has a result.
        end, expressions = (
            time.monotonic() + WAIT_SECONDS,
            [one["expr"] for panel in panels() for one in panel["targets"]],
        )
        while time.monotonic() < end:
            make_traffic(clients)
            if all(values(client, expression) for expression in expressions):
                break
        empty = check_panels(client)
        check_rules(client)
    if empty:
        sys.exit(f"panels without data: {', '.join(empty)}")
    print("passed")


if __name__ == "__main__":
    main()
