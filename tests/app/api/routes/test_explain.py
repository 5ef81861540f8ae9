import io
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.imaging.activation_map import draw
from app.inference.sessions import Outputs, Session
from tests.app.problems import assert_problem
from tests.conftest import DATA

MakeClient = Callable[..., TestClient]


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def test_the_picture_is_that_of_the_model(
    client: TestClient, cat: bytes, cat_label: str, loaded: tuple[Bundle, Session]
) -> None:
    image = np.asarray(Image.open(io.BytesIO(cat)).convert("RGB"))
    maps = loaded[1].run(image[None], maps=True).class_maps[0]
    for query in ("", "?class_id=5"):
        response = client.post(f"/explain{query}", content=cat)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/png"
        class_id = int(response.headers["x-class-id"])
        assert response.content == draw(image, maps, class_id)
    assert class_id == 5


def test_the_headers_name_the_class(client: TestClient, cat: bytes, cat_label: str) -> None:
    predicted = {
        item["class_id"]: (item["label"], item["probability"])
        for item in client.post("/predict?top_k=10", content=cat).json()["predictions"]
    }
    default = client.post("/explain", files={"file": ("cat.png", cat)}).headers
    assert default["x-class-label"] == cat_label
    for class_id, (label, probability) in predicted.items():
        headers = client.post(f"/explain?class_id={class_id}", content=cat).headers
        assert (int(headers["x-class-id"]), headers["x-class-label"]) == (class_id, label)
        assert float(headers["x-class-probability"]) == pytest.approx(probability, abs=2e-6)


@pytest.mark.parametrize("class_id", ["-1", "10", "9" * 100, "cat", "1.5", ""])
def test_an_unknown_class_is_refused(client: TestClient, cat: bytes, class_id: str) -> None:
    problem = assert_problem(client.post(f"/explain?class_id={class_id}", content=cat), 422, "invalid_parameter")
    assert "class_id" in problem["detail"]


def test_explain_refuses_the_same_requests_as_predict(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(max_pixels=1024, max_file_bytes=5000, queue_images=3)
    assert_problem(client.post("/explain", content=b"hello"), 415, "unsupported_media_type")
    assert_problem(client.post("/explain", json={}), 415, "unsupported_media_type")
    assert_problem(client.post("/explain", content=cat[:-40]), 422, "undecodable_image")
    assert_problem(client.post("/explain", content=b""), 422, "undecodable_image")
    assert_problem(client.post("/explain", content=bytes(5001)), 413, "payload_too_large")
    assert_problem(client.post("/explain", content=jpeg(Image.new("L", (33, 32)))), 413, "image_too_large")
    assert_problem(client.get("/explain"), 405, "method_not_allowed")
    with client.app.state.service.places.reserve(3):
        assert_problem(client.post("/explain", content=cat), 429, "overloaded")
    assert client.post("/explain", content=cat).status_code == 200


def test_an_explanation_after_the_deadline_is_504(
    make_client: MakeClient, cat: bytes, loaded: tuple[Bundle, Session]
) -> None:
    release = threading.Event()

    class Slow(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            release.wait(30)
            return loaded[1].run(images, maps)

    response = make_client(session=Slow(), deadline_seconds=0.2).post("/explain", content=cat)
    release.set()
    assert_problem(response, 504, "deadline_exceeded")


def test_a_model_without_class_maps_explains_nothing(
    make_client: MakeClient, cat: bytes, loaded: tuple[Bundle, Session]
) -> None:
    class Older(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return loaded[1].run(images)

    client = make_client(session=Older())
    assert "class maps" in assert_problem(client.post("/explain", content=cat), 404, "not_found")["detail"]
    assert client.post("/predict", content=cat).status_code == 200


def test_a_photo_is_explained_as_a_whole(make_client: MakeClient) -> None:
    photo = jpeg(Image.open(DATA / "cat.png").resize((200, 120)))
    one, three = (make_client(views=views).post("/explain?class_id=3", content=photo) for views in (1, 3))
    assert one.content == three.content
    assert one.headers["x-class-probability"] == three.headers["x-class-probability"]


def test_metrics_and_log_show_the_explanation(
    own_client: TestClient, cat: bytes, cat_label: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        own_client.post("/explain", content=cat)
    (line,) = (record.fields for record in caplog.records if record.name == "app.access")
    assert (line["route"], line["outcome"], line["label"]) == ("/explain", "ok", cat_label)
    metrics = own_client.get("/metrics").text
    assert 'predict_requests_total{outcome="ok",route="/explain"} 1.0' in metrics
    assert f'predictions_total{{label="{cat_label}"}} 0.0' in metrics


def test_a_page_of_another_origin_may_read_the_headers(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(cors_origins="https://example.org")
    response = client.post("/explain", content=cat, headers={"Origin": "https://example.org"})
    exposed = {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}
    assert {"X-Class-Id", "X-Class-Label", "X-Class-Probability"} <= exposed
