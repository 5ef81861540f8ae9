import asyncio

import pytest
from starlette.testclient import TestClient

from app.api.metrics import Metrics
from app.api.middleware.request_log import RequestLog


def test_a_valid_request_id_is_kept(client: TestClient) -> None:
    assert client.get("/model", headers={"X-Request-ID": "a-b_c.1"}).headers["x-request-id"] == "a-b_c.1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a\tb", "é", '"'])
def test_an_invalid_request_id_is_replaced(client: TestClient, bad: str) -> None:
    given = client.get("/model", headers={"X-Request-ID": bad.encode()}).headers["x-request-id"]
    assert given != bad
    assert len(given) == 32


def test_urls_that_do_not_exist_share_one_label(client: TestClient) -> None:
    for n in range(20):
        client.get(f"/scan/{n}")
    metrics = client.get("/metrics").text
    assert "scan" not in metrics
    assert 'predict_requests_total{outcome="not_found",route="unmatched"} 20.0' in metrics


def test_files_have_one_label_for_each_mount(client: TestClient) -> None:
    for path in ("web/main.js", "web/none.js", "web/../x", "swagger/swagger-ui.css", "swagger/none"):
        client.get(f"/assets/{path}")
    metrics = client.get("/metrics").text
    for mount, outcome in (("web", "ok"), ("web", "not_found"), ("swagger", "ok"), ("swagger", "not_found")):
        assert f'predict_requests_total{{outcome="{outcome}",route="/assets/{mount}/{{path}}"}} 1.0' in metrics


def test_the_label_of_a_route_is_its_template(client: TestClient) -> None:
    client.get("/metrics/report/none.png")
    assert 'route="/metrics/report/{picture}.png"' in client.get("/metrics").text


def test_the_gauge_of_requests_in_flight_returns_to_zero(client: TestClient) -> None:
    client.post("/predict", content=b"x")
    metrics = client.get("/metrics").text
    assert "predict_inflight_requests 1.0" in metrics  # this one
    assert "predict_queue_images 0.0" in metrics


async def test_a_request_cancelled_at_shutdown_is_counted_as_unavailable() -> None:
    metrics, begun = Metrics(), asyncio.Event()

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.create_task(RequestLog(endless, metrics)(scope, None, None))
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert 'predict_requests_total{outcome="unavailable",route="unmatched"} 1.0' in metrics.render().decode()
    assert "predict_inflight_requests 0.0" in metrics.render().decode()
