import io
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.schemas import PredictResponse
from tests.conftest import DATA

MakeClient = Callable[..., TestClient]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def assert_problem(response: object, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["type"] == f"/problems/{code}"
    assert document["error"] == document["detail"]
    assert document["instance"] == response.headers["x-request-id"]
    return document


def test_multipart_and_raw_body_give_the_same_answer(client: TestClient, cat: bytes) -> None:
    multipart = client.post("/predict", files={"file": ("cat.png", cat, "image/png")})
    raw = client.post("/predict", content=cat, headers={"Content-Type": "image/png"})
    assert multipart.status_code == raw.status_code == 200
    assert multipart.json()["predictions"] == raw.json()["predictions"]


def test_the_answer_has_the_promised_form(client: TestClient, cat: bytes) -> None:
    answer = client.post("/predict", content=cat).json()
    PredictResponse.model_validate(answer)
    assert set(answer) == {"model", "predictions", "views", "timing_ms"}
    assert set(answer["model"]) == {"name", "version"}
    assert len(answer["predictions"]) == 5
    assert answer["views"] == 1
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "total"}
    assert 0 < answer["timing_ms"]["inference"] <= answer["timing_ms"]["total"]


def test_all_classes_rank_and_sum_to_one(client: TestClient, cat: bytes) -> None:
    predictions = client.post("/predict?top_k=10", content=cat).json()["predictions"]
    probabilities = [prediction["probability"] for prediction in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert sorted(prediction["class_id"] for prediction in predictions) == list(range(10))


def test_the_answer_is_the_models(client: TestClient, cat: bytes, cat_label: str) -> None:
    (best,) = client.post("/predict?top_k=1", content=cat).json()["predictions"]
    assert best["label"] == cat_label
    assert client.get("/model").json()["classes"][best["class_id"]] == cat_label


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/png", "nonsense"])
def test_the_content_type_of_a_raw_body_is_ignored(client: TestClient, cat: bytes, kind: str) -> None:
    assert client.post("/predict", content=cat, headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_read(client: TestClient, format: str) -> None:
    image = Image.open(DATA / "ship.png").convert("RGB")
    assert client.post("/predict", content=encoded(image, format)).status_code == 200


def test_a_photo_gets_the_views_that_are_set(make_client: MakeClient, cat: bytes) -> None:
    photo = encoded(Image.open(DATA / "cat.png").resize((200, 120)), "JPEG")
    three = make_client(views=3)
    assert three.post("/predict", content=photo).json()["views"] == 3
    assert three.post("/predict", content=cat).json()["views"] == 1
    assert make_client(views=1).post("/predict", content=photo).json()["views"] == 1


@pytest.mark.parametrize("top_k", ["0", "-1", "11", "many", "1.5", ""])
def test_top_k_out_of_range(client: TestClient, cat: bytes, top_k: str) -> None:
    document = assert_problem(client.post(f"/predict?top_k={top_k}", content=cat), 422, "invalid_parameter")
    assert "top_k" in document["detail"]


def test_no_image_at_all(client: TestClient) -> None:
    assert_problem(client.post("/predict"), 422, "undecodable_image")
    assert_problem(client.post("/predict", files={"file": ("empty.png", b"")}), 422, "undecodable_image")


def test_multipart_without_the_file(client: TestClient, cat: bytes) -> None:
    wrong_name = client.post("/predict", files={"image": ("cat.png", cat)})
    assert "'image'" in assert_problem(wrong_name, 422, "invalid_parameter")["detail"]
    text = client.post("/predict", files={"file": (None, "a cat")})
    assert "as text" in assert_problem(text, 422, "invalid_parameter")["detail"]
    parameter = client.post("/predict", files={"file": ("cat.png", cat)}, data={"top_k": "3"})
    assert "query string" in assert_problem(parameter, 422, "invalid_parameter")["detail"]
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    nothing = client.post("/predict", content=b"--x--\r\n", headers=boundary)
    assert "missing" in assert_problem(nothing, 422, "invalid_parameter")["detail"]


def test_two_files(client: TestClient, cat: bytes) -> None:
    two = client.post("/predict", files=[("file", ("a.png", cat)), ("file", ("b.png", cat))])
    assert_problem(two, 400, "malformed_request")


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"garbage", "multipart/form-data"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\nno colon\r\n\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_broken_multipart(client: TestClient, content: bytes, content_type: str) -> None:
    assert_problem(
        client.post("/predict", content=content, headers={"Content-Type": content_type}), 400, "malformed_request"
    )


def test_json_and_compressed_bodies_are_not_accepted(client: TestClient, cat: bytes) -> None:
    assert_problem(client.post("/predict", json={"file": "cat"}), 415, "unsupported_media_type")
    compressed = client.post("/predict", content=cat, headers={"Content-Encoding": "gzip"})
    assert "gzip" in assert_problem(compressed, 415, "unsupported_media_type")["detail"]


def test_other_formats_and_damage(client: TestClient, cat: bytes) -> None:
    assert_problem(client.post("/predict", content=b"%PDF-1.7 hello"), 415, "unsupported_media_type")
    assert_problem(client.post("/predict", content=b"hello"), 415, "unsupported_media_type")
    assert_problem(client.post("/predict", content=cat[:-40]), 422, "undecodable_image")


def test_too_many_pixels(make_client: MakeClient) -> None:
    image = encoded(Image.new("L", (101, 100)))
    document = assert_problem(make_client(max_pixels=10_000).post("/predict", content=image), 413, "image_too_large")
    assert "10,000" in document["detail"]


def test_too_many_bytes(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(max_file_bytes=len(cat) - 1, max_request_bytes=len(cat) + 1000)
    assert_problem(client.post("/predict", content=cat), 413, "payload_too_large")
    assert_problem(client.post("/predict", content=iter([cat[:9], cat[9:]])), 413, "payload_too_large")
    assert_problem(client.post("/predict", files={"file": ("cat.png", cat)}), 413, "payload_too_large")
    assert_problem(client.post("/predict", content=bytes(len(cat) + 2000)), 413, "payload_too_large")
    large = client.post("/predict", content=iter([bytes(1000)] * 9))
    assert_problem(large, 413, "payload_too_large")
    assert large.headers["connection"] == "close"


def test_memory_for_bodies_is_shared(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(max_inflight_body_bytes=len(cat) - 1)
    refused = client.post("/predict", content=cat)
    assert_problem(refused, 429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    chunked = client.post("/predict", content=iter([cat[:50], cat[50:]]))
    assert_problem(chunked, 429, "overloaded")
    exactly = make_client(max_inflight_body_bytes=len(cat))
    for _ in range(3):  # what was taken is given back, errors included
        assert exactly.post("/predict", content=cat).status_code == 200
        assert_problem(exactly.post("/predict", content=cat[:50]), 422, "undecodable_image")


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "٣"])
def test_a_content_length_that_is_no_number(client: TestClient, length: str) -> None:
    response = client.post("/predict", headers={"Content-Length": length.encode()})
    assert_problem(response, 400, "malformed_request")


def test_when_all_places_are_taken(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(queue_images=3)
    with client.app.state.service.engine.reserve(3):
        refused = client.post("/predict", content=cat)
    assert_problem(refused, 429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert client.post("/predict", content=cat).status_code == 200


def test_an_answer_that_takes_too_long(make_client: MakeClient, cat: bytes, loaded: tuple) -> None:
    release = threading.Event()

    class Slow:
        def logits(self, images: np.ndarray) -> np.ndarray:
            release.wait(30)
            return loaded[1].logits(images)

    client = make_client(session=Slow(), deadline_seconds=0.2)
    response = client.post("/predict", content=cat)
    release.set()
    assert_problem(response, 504, "deadline_exceeded")


def test_a_dead_engine(make_client: MakeClient, cat: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def logits(self, images: np.ndarray) -> np.ndarray:
            raise RuntimeError("the reason is for the log")

    monkeypatch.setattr("app.main._end_process", lambda: None)
    client = make_client(session=Broken())
    for _ in range(2):
        response = client.post("/predict", content=cat)
        assert "reason" not in assert_problem(response, 503, "unavailable")["detail"]
    assert_problem(client.get("/readyz"), 503, "unavailable")
    assert client.get("/livez").status_code == 200


def test_a_bug_is_opaque(
    client: TestClient, cat: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(client.app.state.service.classifier, "classify", broken)
    with caplog.at_level(logging.ERROR, "app"):
        document = assert_problem(client.post("/predict", content=cat), 500, "internal")
    assert "secret" not in str(document)
    assert caplog.records[0].fields["request_id"] == document["instance"]


def test_metrics_and_log_tell_what_was_answered(
    client: TestClient, cat: bytes, cat_label: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        client.post("/predict", content=cat)
        client.post("/predict", content=b"")
    answered, refused = (record.fields for record in caplog.records if record.name == "app.access")
    assert answered["route"] == "/predict"
    assert answered["label"] == cat_label
    assert answered["outcome"] == "ok"
    assert (refused["status"], refused["outcome"]) == (422, "undecodable_image")
    metrics = client.get("/metrics").text
    assert 'predict_requests_total{outcome="ok",route="/predict"} 1.0' in metrics
    assert 'predict_requests_total{outcome="undecodable_image",route="/predict"} 1.0' in metrics
    assert f'predictions_total{{label="{cat_label}"}} 1.0' in metrics
    assert metrics.count("predictions_total{") == 10
    assert 'predict_stage_seconds_count{stage="inference"} 1.0' in metrics
    assert "prediction_confidence_count 1.0" in metrics


def test_only_post_is_allowed(client: TestClient) -> None:
    response = client.get("/predict")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
