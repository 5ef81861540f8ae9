import asyncio
import json
import logging
import sys
import warnings

import pytest
from starlette.testclient import TestClient

import app.api.middleware.telemetry
from app.api.middleware.telemetry import (
    JsonFormatter,
    Telemetry,
    TelemetryMiddleware,
    configure_logging,
    log_stray_error,
)


def test_a_good_request_id_is_kept(client: TestClient) -> None:
    assert client.get("/model", headers={"X-Request-ID": "a-b_c.1"}).headers["x-request-id"] == "a-b_c.1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a\tb", "é", '"'])
def test_any_other_is_replaced(client: TestClient, bad: str) -> None:
    given = client.get("/model", headers={"X-Request-ID": bad.encode()}).headers["x-request-id"]
    assert given != bad
    assert len(given) == 32


def test_urls_that_do_not_exist_share_one_label(client: TestClient) -> None:
    for n in range(20):
        client.get(f"/scan/{n}")
    metrics = client.get("/metrics").text
    assert "scan" not in metrics
    assert 'predict_requests_total{outcome="not_found",route="unmatched"} 20.0' in metrics


def test_templates_not_paths_are_labels(client: TestClient) -> None:
    client.get("/metrics/report/none.png")
    assert 'route="/metrics/report/{picture}.png"' in client.get("/metrics").text


def test_the_model_is_named(client: TestClient) -> None:
    version = client.get("/model").json()["version"]
    assert f'model_info{{name="mobilenet_v2_cifar10",version="{version}"}} 1.0' in client.get("/metrics").text


def test_the_edges_of_histograms_stay_as_dashboards_know_them() -> None:
    edges = {}
    for metric in Telemetry().registry.collect():
        found = dict.fromkeys(sample.labels["le"] for sample in metric.samples if "le" in sample.labels)
        if found:
            edges[metric.name] = " ".join(found)
    assert edges == {
        "predict_stage_seconds": "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 +Inf",
        "predict_batch_images": "1.0 2.0 3.0 4.0 6.0 8.0 16.0 32.0 64.0 +Inf",
        "prediction_confidence": "0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 0.95 0.99 1.0 +Inf",
        "prediction_ood_score": "-2.0 -1.0 0.0 1.0 2.0 3.0 4.0 6.0 8.0 12.0 16.0 32.0 +Inf",
    }


def test_requests_under_way_come_back_to_zero(client: TestClient) -> None:
    client.post("/predict", content=b"x")
    metrics = client.get("/metrics").text
    assert "predict_inflight_requests 1.0" in metrics  # this one
    assert "predict_queue_images 0.0" in metrics


def test_a_log_line_is_one_json_object() -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "two\nlines %s", ("é",), None)
    record.fields = {"status": 200}
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["level"], line["status"]) == ("two\nlines é", "info", 200)


def test_a_logged_error_shows_its_place_but_no_value_or_path() -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "bad", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert json.loads(text)["error"] == "ValueError"
    assert json.loads(text)["at"].startswith(__name__)
    assert "secret" not in text
    assert "/" not in text


def test_logging_is_configured_once_for_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        logging.getLogger("anything").info("hello")
        logging.getLogger("anything").debug("not this")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = app.api.middleware.telemetry._log_warning  # which pytest has replaced
            warnings.warn("odd", RuntimeWarning, stacklevel=1)
        hello, odd = (json.loads(line) for line in capsys.readouterr().err.splitlines())
        assert hello["message"] == "hello"
        assert odd["message"] == "RuntimeWarning: odd"
    finally:
        root.handlers[:], root.level = before, level
        logging.getLogger("uvicorn.access").disabled = False


async def test_a_stray_error_is_logged_without_files(caplog: pytest.LogCaptureFixture) -> None:
    async def stray() -> None:
        raise ValueError("secret")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_stray_error)
    task = asyncio.create_task(stray())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "Task exception was never retrieved"
    assert line["error"] == "ValueError"
    assert "secret" not in str(line) and "/" not in str(line)


async def test_a_request_that_is_cut_off_at_the_end_counts_as_such() -> None:
    telemetry, begun = Telemetry(), asyncio.Event()

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.create_task(TelemetryMiddleware(endless, telemetry)(scope, None, None))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert 'predict_requests_total{outcome="unavailable",route="unmatched"} 1.0' in telemetry.render().decode()
    assert "predict_inflight_requests 0.0" in telemetry.render().decode()
