import logging

import pytest
from starlette.testclient import TestClient

from tests.app.problems import assert_problem


def test_a_running_service_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_a_service_that_shuts_down_is_alive_but_not_ready(client: TestClient) -> None:
    client.app.state.service.draining = True
    assert client.get("/livez").status_code == 200
    assert_problem(client.get("/readyz"), 503, "unavailable")


def test_probes_are_neither_counted_nor_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/livez")
        client.get("/readyz")
    assert [record for record in caplog.records if record.name == "app.access"] == []
    assert "livez" not in client.get("/metrics").text
