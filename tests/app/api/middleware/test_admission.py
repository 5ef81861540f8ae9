from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.api.paths import IMAGE_UPLOADS


@pytest.mark.parametrize("prefix", ["", "/images"])
@pytest.mark.parametrize("path", sorted(IMAGE_UPLOADS))
def test_a_full_queue_refuses_an_upload_before_its_body_is_read(
    make_client: Callable[..., TestClient], path: str, prefix: str
) -> None:
    client = make_client(queue_images=8, root_path=prefix)
    metric = f'predict_requests_total{{outcome="overloaded",route="{path}"}} 1.0'
    with client.app.state.service.places.reserve(8):
        # Routing would say 422 of the parameter, and the route 415 of the body.
        refused = client.post(f"{path}?top_k=none&class_id=none", json={})
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert refused.headers["Retry-After"]
        assert client.get(path).status_code == 405
        assert client.post("/nowhere").status_code == 404
        assert client.get("/model").status_code == 200
    assert metric in client.get("/metrics").text
    assert client.post(f"{path}?top_k=none&class_id=none", json={}).status_code in (415, 422)


def test_one_free_place_admits_an_upload(make_client: Callable[..., TestClient], cat: bytes) -> None:
    client = make_client(queue_images=8)
    with client.app.state.service.places.reserve(7):
        assert client.post("/predict", content=cat).status_code == 200
