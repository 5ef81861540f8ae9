import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.errors import BY_CODE
from app.main import create_app
from app.settings import Settings
from tests.app.problems import assert_problem
from tests.conftest import BUNDLE, ROOT, SMALL_BUNDLE

WEB = ROOT / "app/web"


def links_of(text: str) -> set[str]:
    return set(re.findall(r'(?:src|href)="([^"#]+)"', text)) | set(re.findall(r'from "(\.[^"]+)"', text))


def test_the_page_and_its_files_are_served(client: TestClient) -> None:
    """Every file that it names is there, by a relative address, and every file that is there is named."""
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    kinds = {".js": "text/javascript", ".css": "text/css", ".png": "image/png", ".svg": "image/svg+xml"}
    found, new = set(), {urljoin("/", link) for link in links_of(page.text)}
    while new:
        path = new.pop()
        found.add(path)
        response = client.get(path)
        assert response.status_code == 200, path
        if path.startswith("/assets/web/"):
            suffix = Path(path).suffix
            assert response.headers["content-type"].split(";")[0] == kinds[suffix], path
            if suffix == ".js":
                new |= {urljoin(path, link) for link in links_of(response.text)} - found
    docs_only = {"docs.html", "docs.js", "index.html"}
    shipped = {path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.is_file()} - docs_only
    assert {path.removeprefix("/assets/web/") for path in found if path.startswith("/assets/web/")} == shipped


def test_the_page_s_policy_allows_nothing_inline_and_no_other_host(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "//" not in policy and "*" not in policy and "data:" not in policy


@pytest.mark.parametrize("path", ["/", "/assets/web/main.js", "/assets/web/samples/cat.png"])
def test_browsers_revalidate_cached_files(client: TestClient, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert again.headers["cache-control"] == "no-cache"
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_page_names_the_classes_of_the_model(client: TestClient) -> None:
    samples = re.findall(r'data-sample="(\w+)\.png"', client.get("/").text)
    assert set(client.get("/model").json()["classes"]) <= set(samples)


def test_the_service_abstains_for_the_chessboard(client: TestClient) -> None:
    board = (WEB / "samples/chessboard.png").read_bytes()
    assert client.post("/predict", content=board).json()["abstain"] is True


def test_the_documentation_loads_nothing_from_other_hosts(client: TestClient) -> None:
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
        "/v2/repository/models/{model}/load",
        *(
            f"/v2/models/{{model}}{version}{what}"
            for version in ("", "/versions/{version}")
            for what in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/octet-stream"} <= set(body)


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_problem_is_explained(client: TestClient, code: str) -> None:
    text = client.get(f"/problems/{code}").text
    assert BY_CODE[code].title in text
    assert str(BY_CODE[code].status) in text


def test_unknown_pages_are_404(client: TestClient) -> None:
    assert_problem(client.get("/problems/none"), 404, "not_found")
    assert_problem(client.get("/nothing"), 404, "not_found")
    assert_problem(client.get("/assets/web/../main.py"), 404, "not_found")
    assert_problem(client.get("/assets/web/none.js"), 404, "not_found")


@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE], ids=lambda folder: folder.name)
def test_each_sample_gets_the_answer_that_its_name_promises(folder: Path) -> None:
    classes = Bundle.load(folder).manifest.classes
    samples = sorted((WEB / "samples").glob("*.png"))
    assert {sample.stem for sample in samples} == {*classes, "flower", "chessboard"}
    with TestClient(create_app(Settings(_env_file=None, model_dir=folder))) as client:
        for sample in samples:
            answer = client.post("/predict", content=sample.read_bytes()).json()
            if sample.stem in classes:
                assert (answer["predictions"][0]["label"], answer["abstain"]) == (sample.stem, False)
            else:
                assert answer["abstain"], sample.stem
