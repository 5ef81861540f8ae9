import json

import pytest
from starlette.testclient import TestClient

from tests.app.problems import assert_problem
from tests.conftest import BUNDLE


def test_the_json_report_is_that_of_the_bundle(client: TestClient) -> None:
    response = client.get("/metrics/report")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads((BUNDLE / "report.json").read_text())
    report = response.json()
    assert [scores["label"] for scores in report["per_class"]][3] == "cat"
    assert {"precision", "recall", "f1", "support"} <= set(report["per_class"][0])
    assert sum(map(sum, report["confusion_matrix"])) == report["n"] == 10_000


@pytest.mark.parametrize(
    "accept",
    ["text/plain", "text/plain, application/json;q=0.5", "text/plain;q=0.9, */*;q=0.1", "TEXT/PLAIN; charset=utf-8"],
)
def test_the_report_is_text_if_the_client_accepts_text(client: TestClient, accept: str) -> None:
    response = client.get("/metrics/report", headers={"Accept": accept})
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == (BUNDLE / "report.txt").read_text()
    assert "precision" in response.text


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "application/json, text/plain;q=0.9", "text/html", "text/plain;q=x", ""]
)
def test_the_report_is_json_by_default(client: TestClient, accept: str) -> None:
    response = client.get("/metrics/report", headers={"Accept": accept})
    assert response.headers["content-type"] == "application/json"


def test_an_unchanged_report_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/metrics/report").headers["etag"]
    for asked in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get("/metrics/report", headers={"If-None-Match": asked})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/metrics/report", headers={"If-None-Match": '"other"'}).status_code == 200
    as_text = client.get("/metrics/report", headers={"If-None-Match": etag, "Accept": "text/plain"})
    assert as_text.status_code == 200


@pytest.mark.parametrize("picture", ["accuracy_and_loss", "confusion_matrix", "reliability"])
def test_the_pictures_of_the_report_are_served(client: TestClient, picture: str) -> None:
    response = client.get(f"/metrics/report/{picture}.png")
    assert response.headers["content-type"] == "image/png"
    assert response.content == (BUNDLE / f"{picture}.png").read_bytes()


@pytest.mark.parametrize("picture", ["other", "..%2Fbundle", "model"])
def test_no_other_file_of_the_bundle_is_served(client: TestClient, picture: str) -> None:
    assert_problem(client.get(f"/metrics/report/{picture}.png"), 404, "not_found")
