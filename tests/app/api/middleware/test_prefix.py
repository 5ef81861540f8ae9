"""Under the prefix of a proxy that strips it from the paths, and of one that does not."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

MakeClient = Callable[..., TestClient]
PREFIX = "/images/cifar10"


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client(root_path=PREFIX)


@pytest.fixture(params=["", PREFIX], ids=["stripped", "kept"])
def sent(request: pytest.FixtureRequest) -> str:
    """What the service gets to see of the prefix."""
    return request.param


def test_all_routes_are_found_under_the_prefix(client: TestClient, sent: str, cat: bytes) -> None:
    assert client.post(f"{sent}/predict", content=cat).status_code == 200
    for path in ("/readyz", "/model", "/v2", "/v2/health/ready", "/docs", "/assets/web/docs.js"):
        assert client.get(f"{sent}{path}").status_code == 200, path


def test_the_openapi_document_names_the_server(client: TestClient, sent: str) -> None:
    document = client.get(f"{sent}/openapi.json").json()
    assert document["servers"] == [{"url": PREFIX}]
    assert "/predict" in document["paths"]


def test_problems_point_to_pages_that_a_browser_finds(client: TestClient, sent: str, cat: bytes) -> None:
    files = [("files", ("a.png", cat)), ("files", ("b.png", b"x"))]
    documents = [
        client.post(f"{sent}/predict", content=b"x").json(),
        client.get(f"{sent}/nowhere").json(),
        client.get(f"{sent}/assets/web/none.js").json(),  # from a mounted application
        client.post(f"{sent}/predict", content=b"x", headers={"Content-Length": "99999999"}).json(),
        client.post(f"{sent}/predict/batch?partial=true", files=files).json()["results"][1]["error"],
    ]
    for document in documents:
        assert document["type"] == f"{PREFIX}/problems/{document['code']}"
        assert client.get(document["type"]).status_code == 200


def test_pages_refer_to_their_files_by_relative_urls(client: TestClient, sent: str) -> None:
    # Relative, so that it is right wherever the browser found the page.
    assert 'url: "openapi.json"' in client.get(f"{sent}/assets/web/docs.js").text
    page = client.get(f"{sent}/").text
    assert 'src="assets/web/main.js"' in page and '="/' not in page


def test_redirects_stay_under_the_prefix(client: TestClient, sent: str) -> None:
    for path in ("/model/", "/docs/"):
        location = client.get(f"{sent}{path}", follow_redirects=False).headers["location"]
        assert location == f"{PREFIX}{path.rstrip('/')}"
    bare = client.get(PREFIX, follow_redirects=False)
    assert bare.headers["location"] == f"{PREFIX}/"


def test_metrics_have_the_same_labels_with_and_without_a_prefix(client: TestClient, sent: str) -> None:
    client.get(f"{sent}/model")
    client.get(f"{sent}/readyz")
    metrics = client.get(f"{sent}/metrics").text
    assert 'predict_requests_total{outcome="ok",route="/model"} 1.0' in metrics
    assert "readyz" not in metrics


def test_only_probes_and_the_page_need_no_key_under_the_prefix(make_client: MakeClient, sent: str) -> None:
    client = make_client(root_path=PREFIX, api_keys="key")
    for path in ("/readyz", "/", "/assets/web/main.js"):
        assert client.get(f"{sent}{path}").status_code == 200, path
    for path in ("/model", "/readyz/", "/readyz/../model", f"/{sent}/readyz", "/livez%2F..%2Fmodel"):
        # With the host, or two slashes would begin one.
        address = f"http://testserver{sent}{path}"
        assert client.get(address, follow_redirects=False).status_code == 401, path


def test_a_path_that_only_begins_like_the_prefix_is_not_under_it(client: TestClient) -> None:
    assert client.get(f"{PREFIX}0/model").status_code == 404
