import re

import pytest
from starlette.testclient import TestClient

from app.problems import PROBLEMS
from tests.app.problems import assert_problem


def test_home_leads_to_the_documentation(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert str(response.url).endswith("/docs")


def test_the_documentation_asks_no_other_host(client: TestClient) -> None:
    response = client.get("/docs")
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe-inline" not in re.search(r"script-src [^;]*", response.headers["content-security-policy"]).group()
    links = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert len(links) >= 4
    for link in links:
        assert not link.startswith(("http", "/"))
        assert client.get(f"/{link}").status_code == 200, link
    assert "http" not in client.get("/assets/web/docs.js").text.split("//")[0]
    assert '"openapi.json"' in client.get("/assets/web/docs.js").text


def test_openapi_names_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/predict",
        "/predict/batch",
        "/explain",
        "/metrics/report",
        "/metrics/report/{picture}.png",
        "/metrics",
        "/model",
        "/livez",
        "/readyz",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/stats",
        "/v2/repository/index",
        *(
            f"/v2/models/{{model}}{version}{what}"
            for version in ("", "/versions/{version}")
            for what in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/octet-stream"} <= set(body)


@pytest.mark.parametrize("code", sorted(PROBLEMS))
def test_every_problem_is_explained(client: TestClient, code: str) -> None:
    text = client.get(f"/problems/{code}").text
    assert PROBLEMS[code].title in text
    assert str(PROBLEMS[code].status) in text


def test_unknown_pages(client: TestClient) -> None:
    assert_problem(client.get("/problems/none"), 404, "not_found")
    assert_problem(client.get("/nothing"), 404, "not_found")
    assert_problem(client.get("/assets/web/../main.py"), 404, "not_found")
    assert_problem(client.get("/assets/web/none.js"), 404, "not_found")
