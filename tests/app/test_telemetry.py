import asyncio
import json
import logging
import sys
import warnings

import pytest
from starlette.testclient import TestClient

import app.telemetry
from app.telemetry import JsonFormatter, Telemetry, TelemetryMiddleware, configure_logging, log_stray_error


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
            warnings.showwarning = app.telemetry._log_warning  # which pytest has replaced
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
