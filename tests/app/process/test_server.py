"""How the process starts, sees proxies, and leaves."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from app.api.middleware.request_log import TRACEPARENT
from app.bundle.reader import Bundle
from app.inference.sessions import Images, OnnxSession, Outputs, Session
from app.main import create_app
from app.process import server
from app.process.listener import BindError, bound
from app.settings import Settings
from tests.app.conftest import Command
from tests.app.server import READY_SECONDS, serve
from tests.conftest import ROOT

MakeClient = Callable[..., TestClient]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_during_the_grace_period_the_service_is_not_ready_but_answers_and_closes_connections(cat: bytes) -> None:
    with serve(GRACE_SECONDS=3600) as (process, client):
        before = client.post("/predict", content=cat)
        assert before.headers.get("connection") != "close"
        process.send_signal(signal.SIGTERM)
        while client.get("/readyz").status_code == 200:
            pass
        assert client.get("/readyz").status_code == 503
        answer = client.post("/predict", content=cat)
        assert answer.status_code == 200 and answer.headers["connection"] == "close"
        assert answer.json()["predictions"] == before.json()["predictions"]
        process.send_signal(signal.SIGTERM)  # a second one ends the grace
        assert process.wait(30) == 0


def test_after_the_grace_period_no_connection_is_accepted() -> None:
    with serve(GRACE_SECONDS=0.2) as (process, client):
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/livez")


@pytest.mark.parametrize("workers", [1, 2])
def test_further_signals_change_nothing_up_to_the_end_of_the_process(workers: int) -> None:
    with serve(WORKERS=workers) as (process, client):
        while client.get("/readyz").status_code != 200:
            pass
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.returncode == 0


def test_a_single_worker_is_accepted_and_ctrl_c_skips_the_grace_period() -> None:
    with serve(GRACE_SECONDS=3600, WEB_CONCURRENCY=1) as (process, client):
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


# For each setting of TRUSTED_PROXIES, what is forwarded and the client that is seen.
FORWARDED = {
    "": {"203.0.113.9": "127.0.0.1"},
    "10.0.0.0/8": {"203.0.113.9": "127.0.0.1"},
    "127.0.0.1": {
        "203.0.113.9": "203.0.113.9",
        "[2001:db8::1]:443": "2001:db8::1",
        "x" * 60_000: "",
        "x\x80": "",
        "203.0.113.9, fe80::1%\x85": "",
    },
}


@pytest.mark.parametrize(("proxies", "clients_seen"), FORWARDED.items(), ids=FORWARDED)
def test_only_valid_forwarded_addresses_from_trusted_proxies_count(proxies: str, clients_seen: dict[str, str]) -> None:
    with serve(TRUSTED_PROXIES=proxies) as (process, client):
        for forwarded in clients_seen:
            client.get("/model", headers={"X-Forwarded-For": forwarded.encode("latin-1"), "X-Forwarded-Proto": "https"})
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr if '"app.access"' in line]
    assert [line["client"] for line in lines] == list(clients_seen.values())


def test_several_workers_are_refused_with_a_reason(command: Command) -> None:
    done = command(WEB_CONCURRENCY=2)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "error: several worker processes" in line and "set WORKERS" in line


def test_several_workers_of_uvicorn_are_refused() -> None:
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stderr is not None
        assert any("several worker processes" in line for line in process.stderr)
    finally:
        process.terminate()
        process.communicate(timeout=READY_SECONDS)


def test_the_garbage_collector_skips_long_lived_objects() -> None:
    """In a process of its own: a collector that is set so would stay so for all other tests."""
    code = """
import gc
from app.process.runtime import spare_the_collector
before = gc.get_threshold()
spare_the_collector()
assert gc.get_freeze_count() > 10_000, gc.get_freeze_count()
assert all(now >= was for was, now in zip(before, gc.get_threshold())) and gc.get_threshold()[0] > 10 * before[0]
assert gc.isenabled()
cycle = type("Cycle", (), {})()
cycle.itself = cycle
import weakref
gone = weakref.ref(cycle)
del cycle
gc.collect()
assert gone() is None
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=READY_SECONDS)
    assert done.returncode == 0, done.stderr


async def test_objects_are_frozen_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    async def startup(*_: object, **__: object) -> None:
        order.append("started")

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr(server, "spare_the_collector", lambda: order.append("spared"))
    await server.Server(create_app(Settings()), Settings()).startup()
    assert order == ["started", "spared"]


async def test_a_port_on_which_another_listens_meanwhile_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def startup(*_: object, **__: object) -> None:
        """As with uvloop, which says nothing of a socket that cannot listen."""

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    with bound(Settings(port=0)) as [ours], socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(ours.getsockname())
        other.listen()
        with pytest.raises(
            BindError, match="^HOST, PORT: cannot serve at '127.0.0.1', port 0: Address already in use$"
        ):
            await server.Server(create_app(Settings()), Settings(port=0)).startup([ours])


@pytest.mark.parametrize(("seconds", "alone"), [(0.0, True), (math.inf, False)])
async def test_a_request_of_the_only_client_is_computed_by_the_event_loop(
    loaded: tuple[Bundle, Session], cat: bytes, monkeypatch: pytest.MonkeyPatch, seconds: float, alone: bool
) -> None:
    monkeypatch.setattr("app.process.lone_connection.ALONE_AFTER_SECONDS", seconds)
    threads: list[int] = []

    class Noting(OnnxSession):
        def __init__(self) -> None:
            pass

        def run(self, images: Images, maps: bool = False) -> Outputs:
            threads.append(threading.get_ident())
            return loaded[1].run(images, maps)

    settings = Settings(port=0, inference_threads=1)
    with bound(settings) as [ours]:
        serving = server.Server(create_app(settings, (loaded[0], Noting())), settings)
        serving.config.load()
        serving.lifespan = serving.config.lifespan_class(serving.config)
        await serving.startup([ours])
        async with httpx.AsyncClient(base_url="http://{}:{}".format(*ours.getsockname())) as client:
            answer = await client.post("/predict", content=cat)
        await serving.shutdown([ours])
    assert answer.json()["predictions"][0]["label"] == "cat"
    assert (threads == [threading.get_ident()]) is alone


@pytest.mark.parametrize("prefix", ["images", "/images/", "/a b", "//"])
def test_an_invalid_root_path_stops_the_start(command: Command, prefix: str) -> None:
    done = command(ROOT_PATH=prefix)
    assert done.returncode == 1 and "ROOT_PATH" in done.stderr


def test_a_traceparent_is_continued_with_a_new_span(client: TestClient) -> None:
    given, answered = TRACE.split("-"), client.get("/model", headers={"traceparent": TRACE}).headers["traceparent"]
    version, trace, span, flags = answered.split("-")
    assert (version, trace, flags) == ("00", given[1], "01")
    assert span != given[2] and TRACEPARENT.fullmatch(answered)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        TRACE.upper(),
        f"ff{TRACE[2:]}",
        f"{TRACE}-more",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
def test_an_invalid_traceparent_is_replaced(client: TestClient, bad: str) -> None:
    answered = client.get("/model", headers={"traceparent": bad}).headers["traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", answered)
    assert TRACE.split("-")[1] not in answered


def test_a_unix_socket_is_served_alone_and_removed_at_the_end(
    command: Command, tmp_path: Path, cat: bytes, cat_label: str
) -> None:
    path = tmp_path / "service.sock"
    failed = command("serve", UDS=path, MODEL_DIR="nowhere")
    assert (failed.returncode, path.exists()) == (1, False)
    with serve(UDS=path, TRUSTED_PROXIES="*") as (process, client):
        forwarded = {"X-Forwarded-For": "203.0.113.9"}
        answer = client.post("/predict", content=cat, headers=forwarded)
        assert answer.json()["predictions"][0]["label"] == cat_label
        second = command("serve", UDS=path)
        assert (second.returncode, second.stderr) == (
            1,
            f"error: UDS: cannot serve at '{path}': Address already in use\n",
        )
        assert client.head("/model").status_code == client.get("/model").status_code == 200  # on one connection
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
        assert process.wait(30) == 0
    assert not path.exists()
    (ready,) = (line for line in lines if line["message"] == "ready")
    assert ready["addresses"] == [f"unix:{path}"]
    assert [line["client"] for line in lines if line.get("route") == "/predict"] == ["203.0.113.9"]
