"""The service on real Ray. Replicas are other processes."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import ray
import yaml
from prometheus_client import Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from ray import serve
from ray.serve.schema import ServeDeploySchema
from starlette.testclient import TestClient

from app.cluster import serve as cluster
from app.errors import Unavailable
from app.settings import Settings
from tests.conftest import BUNDLE, ROOT

pytestmark = pytest.mark.timeout(600)  # seconds; Ray starts many processes, and other tests use the cores, too

PATIENCE_SECONDS = 300
SETTINGS = {"model_dir": BUNDLE, "inference_threads": 1, "grace_seconds": 0.5, "deadline_seconds": 60}


@pytest.fixture(scope="module")
def url(nodes: None) -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(_env_file=None, **SETTINGS)
    # A mean of ten seconds, not of half a minute: the test that waits for a second replica keeps all cores busy.
    scaled = {**cluster.autoscaling(1), "upscale_delay_s": 1, "look_back_period_s": 11}
    serve.run(cluster.replicas(settings).options(autoscaling_config=scaled).bind(settings), name="cifar10")
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def service(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not check():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def running() -> int:
    (state,) = serve.status().applications["cifar10"].deployments.values()
    return state.replica_states.get("RUNNING", 0)


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    """A metric's sum by replica."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["replica"]] = found.get(sample.labels["replica"], 0) + sample.value
    return found


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/predict?top_k=3", "cat"),
        ("POST", "/predict?top_k=11", "cat"),
        ("POST", "/predict", "words"),
        ("POST", "/predict", "large"),
        ("GET", "/predict", ""),
        ("GET", "/nothing", ""),
        ("GET", "/model", ""),
        ("GET", "/readyz", ""),
        ("GET", "/v2/models/cifar10", ""),
        ("GET", "/openapi.json", ""),
        ("POST", "/explain", "cat"),
    ],
)
def test_answers_are_those_of_the_plain_service(
    service: httpx.Client, client: TestClient, cat: bytes, method: str, path: str, content: str
) -> None:
    body = {"cat": cat, "words": b"words", "large": bytes(11 * 1024 * 1024), "": None}[content]
    one, other = (each.request(method, path, content=body) for each in (service, client))
    assert one.status_code == other.status_code
    assert one.headers["content-type"] == other.headers["content-type"]
    if one.headers["content-type"] == "image/png":
        assert one.content == other.content
    else:
        given, expected = ({**each.json(), "instance": "", "timing_ms": ""} for each in (one, other))
        assert given == expected


def test_a_request_has_one_id(service: httpx.Client) -> None:
    given = service.get("/nothing", headers={"X-Request-ID": "mine"})
    assert given.headers.get_list("x-request-id") == ["mine"]
    made = service.get("/nothing")
    assert made.headers.get_list("x-request-id") == [made.json()["instance"]]


def test_a_replica_whose_engine_died_is_replaced(service: httpx.Client, site: Path, cat: bytes) -> None:
    (before,) = samples(service, "model_info")
    (site / "break").touch()
    assert service.post("/predict", content=cat).status_code in (500, 503)
    eventually(lambda: service.post("/predict", content=cat).status_code == 200)
    (after,) = samples(service, "model_info")
    assert after != before


@pytest.mark.slow
def test_load_starts_a_second_replica_and_metrics_cover_both(service: httpx.Client, url: str, cat: bytes) -> None:
    over = threading.Event()
    answered = []

    def load() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not over.is_set():
                answered.append(client.post("/predict/batch", files=[("files", cat)] * 32).status_code)

    before = sum(samples(service, "predictions_total").values())
    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(answered) > 10 and running() == 2)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(answered) <= {200, 408, 429, 503, 504}
    eventually(lambda: len(samples(service, "model_info")) == 2)
    after = samples(service, "predictions_total")
    assert sum(after.values()) - before >= 32 * answered.count(200)
    assert ray.available_resources().get("CPU", 0) == 0  # a core each


def test_a_request_under_way_is_answered_before_the_end(service: httpx.Client, cat: bytes) -> None:
    address = (service.base_url.host, service.base_url.port)
    with socket.create_connection(address, timeout=60) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(cat)}\r\n\r\n"
        connection.sendall(head.encode() + cat[:100])
        eventually(lambda: sum(samples(service, "predict_inflight_requests").values()) == 2)  # this scrape is one
        serve.delete("cifar10", _blocking=False)
        eventually(lambda: service.get("/readyz").status_code == 404)  # the proxy's: there is no such application
        connection.sendall(cat[100:])
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")
    eventually(lambda: "cifar10" not in serve.status().applications)


def test_threads_are_the_cores_that_ray_assigned(nodes: None) -> None:
    settings = Settings(inference_threads=64)
    assert cluster.replica_settings(settings, {"CPU": 2.0}).inference_threads == 2
    assert cluster.replica_settings(settings, {"CPU": 0.5}).inference_threads == 1
    assert cluster.replica_settings(settings, {}).inference_threads == 1


def test_nobody_loads_a_model_into_one_replica_of_several(nodes: None) -> None:
    assert cluster.replica_settings(Settings(admin_keys="admin"), {}).admin_keys == ()


@pytest.mark.parametrize(("settings", "cores"), [({}, 1), ({"inference_threads": 3}, 3)])
def test_a_replica_reserves_its_threads(settings: dict[str, object], cores: int) -> None:
    described = cluster.replicas(Settings(**settings))
    assert described.ray_actor_options["num_cpus"] == cores


def test_arguments_are_settings_and_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    monkeypatch.setenv("VIEWS", "3")
    monkeypatch.setenv("INFERENCE_THREADS", "4")
    built = build(cluster.deployment, {"inference_threads": "2"})._bound_deployment
    assert built.ray_actor_options["num_cpus"] == 2
    assert built.init_args[0].views == 3


def test_metrics_of_replicas_are_one_text() -> None:
    def metrics(count: int) -> list:
        registry = CollectorRegistry()
        Counter("things", "Things.", ["kind"], registry=registry).labels("a").inc(count)
        return list(registry.collect())

    text = generate_latest(cluster.ReplicaMetrics([("one", metrics(1)), ("two", metrics(2))])).decode()
    assert text.count("# TYPE things_total counter") == 1
    assert 'things_total{kind="a",replica="one"} 1.0' in text
    assert 'things_total{kind="a",replica="two"} 2.0' in text


async def test_a_replica_is_healthy_as_long_as_the_service_is_ready_and_logs_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Context:
        def get_assigned_resources(self) -> dict[str, float]:
            return {"CPU": 1.0}

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(cluster, "configure_logging", lambda *_: None)  # the test's own stays
    replica = cluster.Replica(Settings(model_dir=BUNDLE, trusted_proxies="10.0.0.1"))
    app = replica.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        with caplog.at_level("INFO", "app"):
            await replica.check_health()
            await replica.check_health()
        (ready,) = (record for record in caplog.records if record.getMessage() == "ready")
        assert ready.fields["authentication"] == "open"
        app.state.service.draining = True
        with pytest.raises(Unavailable, match="shutting down"):
            await replica.check_health()


def test_the_configuration_file_is_one_that_ray_takes() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text()))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert getattr(sys.modules[module], name) is cluster.deployment
    assert {each.name for each in application.deployments} == {cluster.replicas(Settings()).name}
    Settings(**application.args)
    assert set(application.args) <= set(Settings.model_fields)


def test_without_the_extra_one_line_names_it(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    done = subprocess.run(
        [sys.executable, "-m", "app", "classify", "--ray", "--output", "x", "tests/data"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "error: --ray needs the extra 'ray' (No module named 'ray')"
