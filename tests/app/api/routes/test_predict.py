import asyncio
import io
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.api.schemas import BatchProblemDocument, BatchResponse, PredictResponse
from app.bundle.manifest import ConformalLevel, manifest_digest, render_manifest, sha256
from app.bundle.reader import Bundle
from app.inference.sessions import Outputs, Session
from app.main import create_app
from app.settings import Settings
from tests.app.problems import assert_problem
from tests.conftest import BUNDLE, DATA

MakeClient = Callable[..., TestClient]

RESULT = {"predictions", "prediction_set", "abstain", "ood_score", "ood_threshold", "views", "measured_on"}


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_the_answer_has_the_documented_members(client: TestClient, cat: bytes) -> None:
    answer = client.post("/predict", content=cat).json()
    PredictResponse.model_validate(answer)
    assert set(answer) == {"model", "timing_ms", *RESULT}
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


def test_the_answer_equals_that_of_the_session(client: TestClient, cat: bytes, cat_label: str) -> None:
    (best,) = client.post("/predict?top_k=1", content=cat).json()["predictions"]
    assert best["label"] == cat_label
    assert client.get("/model").json()["classes"][best["class_id"]] == cat_label


def set_of(predictions: list[dict[str, Any]], level: ConformalLevel) -> list[str]:
    """The first of all ten predictions, and those that reach the threshold of their class."""
    thresholds, (first, *others) = level.thresholds(10), predictions
    return [first["label"], *(one["label"] for one in others if one["probability"] >= thresholds[one["class_id"]])]


def test_the_prediction_set_has_the_requested_coverage(client: TestClient, loaded: tuple[Bundle, Session]) -> None:
    conformal = loaded[0].manifest.calibration.conformal
    for name in sorted(DATA.glob("*.png")):
        smaller: list[str] = []
        for level in sorted(conformal.levels, key=lambda level: level.coverage):
            url = f"/predict?top_k=10&coverage={level.coverage}"
            answer = client.post(url, content=name.read_bytes()).json()
            found = answer["prediction_set"]
            assert found["coverage"] == level.coverage
            assert found["labels"] == set_of(answer["predictions"], level)
            assert found["labels"][: len(smaller)] == smaller
            smaller = found["labels"]
    default = client.post("/predict", content=name.read_bytes()).json()["prediction_set"]
    assert default["coverage"] == conformal.default_coverage
    (result,) = client.post("/predict/batch?coverage=0.95", files=files(name.read_bytes())).json()["results"]
    assert result["prediction_set"]["coverage"] == 0.95


@pytest.mark.parametrize("coverage", ["0.5", "1", "0", "-1", "nan", "inf", "1e999"])
@pytest.mark.parametrize("route", ["/predict", "/predict/batch"])
def test_an_unavailable_coverage_is_refused(
    client: TestClient, cat: bytes, loaded: tuple[Bundle, Session], route: str, coverage: str
) -> None:
    response = client.post(f"{route}?coverage={coverage}", files=files(cat))
    problem = assert_problem(response, 422, "invalid_parameter")
    for level in loaded[0].manifest.calibration.conformal.levels:
        assert str(level.coverage) in problem["detail"]


@pytest.mark.parametrize("coverage", ["most", "", "0.99,0.95"])
def test_a_coverage_that_is_no_number_is_refused(client: TestClient, cat: bytes, coverage: str) -> None:
    response = client.post(f"/predict?coverage={coverage}", content=cat)
    assert "coverage" in assert_problem(response, 422, "invalid_parameter")["detail"]


def test_the_service_abstains_above_the_threshold(
    make_client: MakeClient, cat: bytes, loaded: tuple[Bundle, Session]
) -> None:
    threshold = loaded[0].manifest.abstention.threshold

    class Sharpened(Session):
        """The model with its logits times a factor: the smaller, the more equal are the probabilities."""

        factor = 1.0

        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            outputs = loaded[1].run(images, maps)
            return outputs._replace(logits=outputs.logits * np.float32(self.factor))

    session = Sharpened()
    client = make_client(session=session)
    for factor, abstains in [(1.0, False), (0.1, True)]:
        session.factor = factor
        answer = client.post("/predict", content=cat).json()
        assert answer["abstain"] is abstains
        assert answer["abstain"] is (answer["ood_score"] > answer["ood_threshold"])
        assert answer["ood_threshold"] == pytest.approx(threshold, abs=1e-6)
        assert len(answer["predictions"]) == 5  # whoever wants to know what it looks like may still
    (result,) = client.post("/predict/batch", files=files(cat)).json()["results"]
    assert result["abstain"] is True
    metrics = client.get("/metrics").text
    assert "prediction_abstentions_total 2.0" in metrics
    assert "prediction_ood_score_count 3.0" in metrics


def enlarged(content: bytes, side: int) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return encoded(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("side", "kind"), [(32, "thumbnails"), (63, "thumbnails"), (64, "photographs"), (256, "photographs")]
)
def test_the_size_of_an_image_decides_what_its_answer_was_measured_on(
    client: TestClient, cat: bytes, loaded: tuple[Bundle, Session], side: int, kind: str
) -> None:
    manifest = loaded[0].manifest
    fitted = manifest if kind == "thumbnails" else manifest.photographs
    content = enlarged(cat, side)
    answer = client.post("/predict?top_k=10", content=content).json()
    (result,) = client.post("/predict/batch?top_k=10", files=files(content)).json()["results"]
    for said in (answer, result):
        assert said["measured_on"] == kind
        assert said["ood_threshold"] == pytest.approx(fitted.abstention.threshold, abs=1e-6)
        (level,) = [one for one in fitted.calibration.conformal.levels if one.coverage == 0.99]
        assert said["prediction_set"]["labels"] == set_of(said["predictions"], level)


@pytest.mark.parametrize("side", [32, 256])
@pytest.mark.parametrize("kind", ["thumbnails", "photographs"])
def test_a_caller_may_say_of_which_kind_an_image_is(client: TestClient, cat: bytes, side: int, kind: str) -> None:
    content = enlarged(cat, side)
    answer = client.post(f"/predict?kind={kind}", content=content).json()
    (result,) = client.post(f"/predict/batch?kind={kind}", files=files(content)).json()["results"]
    assert answer["measured_on"] == result["measured_on"] == kind
    assert client.post(f"/explain?kind={kind}", content=content).status_code == 200


@pytest.mark.parametrize("route", ["/predict", "/predict/batch", "/explain"])
def test_an_unknown_kind_is_refused(client: TestClient, cat: bytes, route: str) -> None:
    for kind in ("photos", "", "Thumbnails"):
        sent = {"content": cat} if route == "/explain" else {"files": files(cat)}
        detail = assert_problem(client.post(f"{route}?kind={kind}", **sent), 422, "invalid_parameter")["detail"]
        assert "kind" in detail and "thumbnails" in detail and "photographs" in detail


def test_a_photograph_promises_nothing_if_the_model_was_not_measured_on_photographs(
    make_client: MakeClient, cat: bytes, loaded: tuple[Bundle, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = loaded[0].manifest.model_copy(update={"photographs": None})
    monkeypatch.setattr(loaded[0], "manifest", manifest)
    client = make_client()
    answer = client.post("/predict", content=enlarged(cat, 64)).json()
    nothing = ("measured_on", "prediction_set", "abstain", "ood_score", "ood_threshold")
    assert [answer[name] for name in nothing] == [None] * 5
    assert client.post("/predict", content=cat).json()["measured_on"] == "thumbnails"


@pytest.fixture(params=["no temperature", "a temperature"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    """A service of a bundle as they were before there were measures of trust: a graph of logits only."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "older"))
    fields = json.loads((folder / "bundle.json").read_bytes())
    del fields["reference"]
    fields |= {
        "photographs": None,
        "photograph_self_check": None,
        "abstention": None,
        "calibration": {"temperature": 1.2} if request.param == "a temperature" else None,
    }
    graph = onnx.load_model(folder / "model.onnx")
    del graph.graph.output[1:]
    for side in (1, 2):
        graph.graph.input[0].type.tensor_type.shape.dim[side].dim_value = 32
    report = json.loads((folder / "report.json").read_bytes())
    for field in ("conformal", "selective", "abstention", "robustness", "photographs", "labels"):
        report.pop(field, None)
    for name, content in (("model.onnx", graph.SerializeToString()), ("report.json", json.dumps(report).encode())):
        (folder / name).write_bytes(content)
        fields["files"][name] = sha256(content)
    fields["digest"] = manifest_digest(fields)
    (folder / "bundle.json").write_bytes(render_manifest(fields))
    with TestClient(create_app(Settings(model_dir=folder, inference_threads=1))) as client:
        yield client


def test_a_bundle_without_calibration_answers_with_null(older: TestClient, cat: bytes) -> None:
    answer = older.post("/predict", content=cat).json()
    PredictResponse.model_validate(answer)
    assert set(answer) == {"model", "timing_ms", *RESULT}
    (result,) = older.post("/predict/batch", files=files(cat)).json()["results"]
    for said in (answer, result):
        assert len(said["predictions"]) == 5
        assert [said[absent] for absent in ("prediction_set", "abstain", "ood_score", "ood_threshold")] == [None] * 4
    refused = older.post("/predict?coverage=0.99", content=cat)
    assert "no prediction sets" in assert_problem(refused, 422, "invalid_parameter")["detail"]
    assert "class maps" in assert_problem(older.post("/explain", content=cat), 404, "not_found")["detail"]
    model, report = older.get("/model").json(), older.get("/metrics/report").json()
    assert model["abstention"] is model["reference"] is None and "conformal" not in report
    metrics = older.get("/metrics").text
    assert "prediction_drift{" not in metrics and "prediction_abstentions_total 0.0" in metrics
    assert "prediction_ood_score_count 0.0" in metrics and "prediction_confidence_count 2.0" in metrics


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_is_read(client: TestClient, format: str) -> None:
    image = Image.open(DATA / "ship.png").convert("RGB")
    assert client.post("/predict", content=encoded(image, format)).status_code == 200


def test_a_photo_gets_the_configured_number_of_views(make_client: MakeClient, cat: bytes) -> None:
    photo = encoded(Image.open(DATA / "cat.png").resize((200, 120)), "JPEG")
    three = make_client(views=3)
    assert three.post("/predict", content=photo).json()["views"] == 3
    assert three.post("/predict", content=cat).json()["views"] == 1
    assert make_client(views=1).post("/predict", content=photo).json()["views"] == 1


@pytest.mark.parametrize("top_k", ["0", "-1", "11", "many", "1.5", ""])
def test_top_k_out_of_range_is_refused(client: TestClient, cat: bytes, top_k: str) -> None:
    document = assert_problem(client.post(f"/predict?top_k={top_k}", content=cat), 422, "invalid_parameter")
    assert "top_k" in document["detail"]


@pytest.mark.parametrize("route", ["/predict", "/predict/batch", "/explain"])
@pytest.mark.parametrize("name", ["topk", "Top_K", "k" * 1000])
def test_a_parameter_that_there_is_not_is_refused(client: TestClient, cat: bytes, route: str, name: str) -> None:
    part = "files" if "batch" in route else "file"
    problem = assert_problem(
        client.post(route, params={name: "3", "kind": "thumbnails"}, files={part: cat}), 422, "invalid_parameter"
    )
    assert problem["detail"].startswith(f"there is no parameter {name[:40]!r}; known here: ")
    assert "kind, model" in problem["detail"]


@pytest.mark.parametrize("path", ["/model", "/metrics/report", "/metrics/report/confusion_matrix.png"])
def test_what_a_model_is_asked_for_has_no_other_parameter(client: TestClient, path: str) -> None:
    assert client.get(path, params={"model": "cifar10"}).status_code == 200
    problem = assert_problem(client.get(path, params={"modle": "small"}), 422, "invalid_parameter")
    assert problem["detail"] == "there is no parameter 'modle'; known here: model"


def test_other_formats_and_corrupt_images_are_refused(client: TestClient, cat: bytes) -> None:
    assert_problem(client.post("/predict", content=b"%PDF-1.7 hello"), 415, "unsupported_media_type")
    assert_problem(client.post("/predict", content=b"hello"), 415, "unsupported_media_type")
    assert_problem(client.post("/predict", content=cat[:-40]), 422, "undecodable_image")


def test_too_many_pixels_are_refused(make_client: MakeClient) -> None:
    image = encoded(Image.new("L", (101, 100)))
    document = assert_problem(make_client(max_pixels=10_000).post("/predict", content=image), 413, "image_too_large")
    assert "10,000" in document["detail"]


def test_the_memory_for_bodies_is_shared_by_all_requests(make_client: MakeClient, cat: bytes) -> None:
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
def test_a_content_length_that_is_no_number_is_refused(client: TestClient, length: str) -> None:
    response = client.post("/predict", headers={"Content-Length": length.encode()})
    assert_problem(response, 400, "malformed_request")


def test_requests_are_refused_while_the_queue_is_full(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(queue_images=3)
    with client.app.state.service.places.reserve(3):
        refused = client.post("/predict", content=cat)
    assert_problem(refused, 429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert client.post("/predict", content=cat).status_code == 200


def test_an_answer_after_the_deadline_is_504(make_client: MakeClient, cat: bytes, loaded: tuple) -> None:
    release = threading.Event()

    class Slow(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            release.wait(30)
            return loaded[1].run(images, maps)

    client = make_client(session=Slow(), deadline_seconds=0.2)
    response = client.post("/predict", content=cat)
    release.set()
    assert_problem(response, 504, "deadline_exceeded")


def test_a_dead_engine_is_503(make_client: MakeClient, cat: bytes) -> None:
    class Broken(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            raise RuntimeError("the reason is for the log")

    client = make_client(session=Broken())
    for _ in range(2):
        response = client.post("/predict", content=cat)
        assert "reason" not in assert_problem(response, 503, "unavailable")["detail"]
    assert_problem(client.get("/readyz"), 503, "unavailable")
    assert client.get("/livez").status_code == 200


def test_a_bug_is_500_without_details(
    client: TestClient, cat: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(client.app.state.service.classifier, "classify", broken)
    with caplog.at_level(logging.ERROR, "app"):
        document = assert_problem(client.post("/predict", content=cat), 500, "internal")
    assert "secret" not in str(document)
    assert caplog.records[0].fields["request_id"] == document["instance"]


def test_metrics_and_log_show_the_answer(
    own_client: TestClient, cat: bytes, cat_label: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        said = own_client.post("/predict", content=cat).json()
        own_client.post("/predict", content=b"")
    answered, refused = (record.fields for record in caplog.records if record.name == "app.access")
    assert answered["route"] == "/predict"
    assert answered["label"] == cat_label
    assert answered["outcome"] == "ok"
    assert answered["abstain"] is said["abstain"] is not None
    assert (refused["status"], refused["outcome"]) == (422, "undecodable_image")
    metrics = own_client.get("/metrics").text
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


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{index}.png", content)) for index, content in enumerate(contents)]


def test_a_batch_is_answered_in_order(client: TestClient) -> None:
    names = sorted(DATA.glob("*.png"))
    singles = [client.post("/predict", content=name.read_bytes()).json() for name in names]
    answer = client.post("/predict/batch", files=files(*(name.read_bytes() for name in names))).json()
    BatchResponse.model_validate(answer)
    assert set(answer) == {"model", "results", "timing_ms"}
    assert answer["model"] == singles[0]["model"]
    assert len(answer["results"]) == len(names)
    for result, single in zip(answer["results"], singles, strict=True):
        assert set(result) == RESULT
        for same in ("views", "prediction_set", "abstain", "ood_threshold"):
            assert result[same] == single[same]
        assert result["ood_score"] == pytest.approx(single["ood_score"], rel=1e-4)
        expected = {item["label"]: item["probability"] for item in single["predictions"]}
        found = {item["label"]: item["probability"] for item in result["predictions"]}
        assert found == pytest.approx(expected, abs=1e-5)  # a batch of another size rounds otherwise
    assert 0 < answer["timing_ms"]["inference"] <= answer["timing_ms"]["total"]


def test_the_smallest_and_the_largest_batch_are_accepted(client: TestClient, cat: bytes) -> None:
    for count in (1, 32):
        answer = client.post("/predict/batch?top_k=1", files=files(*[cat] * count))
        assert [len(result["predictions"]) for result in answer.json()["results"]] == [1] * count


def test_an_empty_or_too_large_batch_is_refused(make_client: MakeClient, cat: bytes) -> None:
    client = make_client()
    problem = assert_problem(client.post("/predict/batch", files=files(*[cat] * 33)), 400, "malformed_request")
    assert "32" in problem["detail"]
    assert_problem(client.post("/predict/batch", files={"file": cat}), 422, "invalid_parameter")
    assert_problem(client.post("/predict/batch"), 415, "unsupported_media_type")
    assert_problem(client.post("/predict/batch", content=cat), 415, "unsupported_media_type")
    assert_problem(client.post("/predict/batch?top_k=11", files=files(cat)), 422, "invalid_parameter")
    assert_problem(client.post("/predict/batch?partial=maybe", files=files(cat)), 422, "invalid_parameter")
    small = make_client(queue_images=7, views=3)  # what can never fit must not be told to try again
    assert small.post("/predict/batch", files=files(cat, cat)).status_code == 200
    assert_problem(small.post("/predict/batch", files=files(cat, cat, cat)), 400, "malformed_request")


def test_a_batch_is_refused_whole_and_every_bad_image_named(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(max_file_bytes=5000)
    parts = [*files(cat, b"hello", cat, cat[:-40], b""), ("files", ("big.png", bytes(5001)))]
    problem = assert_problem(client.post("/predict/batch", files=parts), 422, "invalid_batch")
    assert [(item["index"], item["filename"], item["code"]) for item in problem["errors"]] == [
        (1, "1.png", "unsupported_media_type"),
        (3, "3.png", "undecodable_image"),
        (4, "4.png", "undecodable_image"),
        (5, "big.png", "payload_too_large"),
    ]
    assert problem["detail"].startswith("4 of 6 images")
    BatchProblemDocument.model_validate(problem)
    assert "prediction_confidence_count 0.0" in client.get("/metrics").text


def test_an_image_without_a_name_is_named_by_its_index(client: TestClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\nhello\r\n--x--\r\n'
    answer = client.post("/predict/batch", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    (error,) = assert_problem(answer, 422, "invalid_batch")["errors"]
    assert set(error) == {"index", "code", "detail"}


@pytest.mark.parametrize("character", ["x", "\u0001", "\u732b"])
def test_the_size_of_an_answer_does_not_depend_on_file_names(client: TestClient, character: str) -> None:
    head = 'Content-Disposition: form-data; name="files"; filename="' + character * 100_000 + '"\r\n\r\nhello\r\n'
    body = ("".join(f"--x\r\n{head}" for _ in range(32)) + "--x--\r\n").encode()
    answer = client.post("/predict/batch", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 64_000


def test_a_long_file_name_is_shortened_in_the_answer(client: TestClient) -> None:
    parts = [("files", ("n" * 256, b"hello"))]
    (error,) = assert_problem(client.post("/predict/batch", files=parts), 422, "invalid_batch")["errors"]
    assert error["filename"] == "n" * 255


@pytest.mark.parametrize("digits", [100, 4300, 4301, 10_000])
@pytest.mark.parametrize("query", ["top_k={}", "coverage={}", "coverage=0.{}", "top_k=1e{}", "partial={}"])
def test_parameters_of_many_digits_are_refused_in_a_short_message(
    client: TestClient, cat: bytes, query: str, digits: int
) -> None:
    address = f"/predict/batch?{query.format('9' * digits)}"
    answer = client.post(address, files=files(cat))
    assert_problem(answer, 422, "invalid_parameter")
    assert len(answer.content) < 10_000


def test_a_partial_batch_answers_for_the_good_images(own_client: TestClient, cat: bytes, cat_label: str) -> None:
    answer = own_client.post("/predict/batch?partial=true&top_k=1", files=files(cat, b"hello", cat))
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first["predictions"][0]["label"] == third["predictions"][0]["label"] == cat_label
    assert set(second) == {"error"}
    assert second["error"]["code"] == "unsupported_media_type"
    assert second["error"]["instance"] == answer.headers["x-request-id"]
    metrics = own_client.get("/metrics").text
    assert f'predictions_total{{label="{cat_label}"}} 2.0' in metrics
    nothing = own_client.post("/predict/batch?partial=true", files=files(b"hello"))
    assert nothing.json()["timing_ms"]["inference"] == 0


def test_a_batch_takes_as_many_places_as_it_has_images_and_gives_them_back(make_client: MakeClient, cat: bytes) -> None:
    client = make_client(queue_images=40)
    places = client.app.state.service.places
    with places.reserve(9):
        refused = client.post("/predict/batch", files=files(*[cat] * 32))
        assert_problem(refused, 429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert client.post("/predict/batch", files=files(*[cat] * 31)).status_code == 200
    assert client.post("/predict/batch", files=files(*[cat] * 32)).status_code == 200
    assert_problem(client.post("/predict/batch", files=files(b"hello")), 422, "invalid_batch")
    assert places.reserved == 0


def test_an_error_of_the_service_fails_the_whole_batch(make_client: MakeClient, cat: bytes, loaded: tuple) -> None:
    release = threading.Event()

    class Slow(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            release.wait(30)
            return loaded[1].run(images, maps)

    client = make_client(session=Slow(), deadline_seconds=0.5)
    response = client.post("/predict/batch?partial=true", files=files(cat, b"hello"))
    release.set()
    assert_problem(response, 504, "deadline_exceeded")


async def test_a_batch_whose_client_leaves_is_withdrawn(loaded: tuple, cat: bytes) -> None:
    begun, release, computed = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    class Held(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            computed.append(len(images))
            loop.call_soon_threadsafe(begun.set)
            release.wait(30)
            return loaded[1].run(images, maps)

    app = create_app(Settings(model_dir=BUNDLE, inference_threads=1, max_batch_images=1), (loaded[0], Held()))
    request = httpx.Request("POST", "http://x/predict/batch", files=files(*[cat] * 9))
    messages = iter([{"type": "http.request", "body": request.read(), "more_body": False}])
    sent: list[dict] = []

    async def receive() -> dict:
        for message in messages:
            return message
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict/batch",
        "query_string": b"",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }
    async with app.router.lifespan_context(app):
        before = asyncio.all_tasks()
        await app(scope, receive, send)
        assert app.state.service.places.reserved == 0
        while asyncio.all_tasks() - before:  # those of the images, which have been told to end
            await asyncio.sleep(0)
        release.set()
    assert sent[0]["status"] == 499
    assert computed == [1]
