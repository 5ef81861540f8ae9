import base64
import gzip
import io
import json
import logging
import threading
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app import __version__
from app.api.open_inference import parser
from app.api.open_inference.parser import LARGE_JSON_BYTES
from app.inference.sessions import Outputs, Session
from tests.app.problems import assert_problem
from tests.conftest import DATA

MakeClient = Callable[..., TestClient]

INFER = "/v2/models/cifar10/infer"
INFER_FILES = "/v2/models/cifar10_image/infer"
HEADER = "Inference-Header-Content-Length"
IMAGE = 32 * 32 * 3
MODELS = ["cifar10", "cifar10_image"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [2, 32, 32, 3]: the cat and the ship."""
    return np.stack([np.array(Image.open(DATA / name).convert("RGB")) for name in ("cat.png", "ship.png")])


def tensor(count: int = 1, **changes: object) -> dict:
    return {"name": "images", "shape": [count, 32, 32, 3], "datatype": "UINT8", **changes}


def good(**members: object) -> dict:
    return {"inputs": [tensor(data=[7] * IMAGE)], **members}


def binary_request(images: np.ndarray, **members: object) -> dict:
    """Keyword arguments for a post."""
    text = json.dumps({"inputs": [tensor(len(images), parameters={"binary_data_size": images.size})], **members})
    return {"content": text.encode() + images.tobytes(), "headers": {HEADER: str(len(text))}}


def probabilities(response: object) -> np.ndarray:
    """float32 [N, 10] of a response, whichever form it has."""
    assert response.status_code == 200, response.text
    length = response.headers.get(HEADER)
    (output,) = json.loads(response.content[: int(length)] if length else response.content)["outputs"]
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    data = np.frombuffer(response.content[int(length) :], "<f4") if length else np.array(output["data"], np.float32)
    return data.reshape(output["shape"])


def assert_still_serving(client: TestClient) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.post(INFER, json=good()).status_code == 200


class TestAboutTheServer:
    @pytest.mark.parametrize("path", ["/v2", "/v2/"])
    def test_server_metadata(self, client: TestClient, path: str) -> None:
        response = client.get(path, follow_redirects=False)
        assert response.json() == {
            "name": "cifar10-classifier",
            "version": __version__,
            "extensions": ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"],
        }

    def test_health_probes_follow_the_state_of_the_service(self, client: TestClient) -> None:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True, "live": True}
        assert client.get("/v2/models/cifar10/ready").json() == {"name": "cifar10", "ready": True}
        client.app.state.service.draining = True
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/cifar10/ready", "/v2/models/cifar10/versions/1/ready"):
            assert_problem(client.get(path), 503, "unavailable")

    def test_both_models_are_listed(self, client: TestClient) -> None:
        assert client.get("/v2/models").json() == {"models": MODELS}
        for extra in ({}, {"json": {"ready": True}}):
            index = client.post("/v2/repository/index", **extra).json()
            assert index == [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in MODELS]

    @pytest.mark.parametrize("version", ["", "/versions/1"])
    def test_model_metadata(self, client: TestClient, version: str) -> None:
        assert client.get(f"/v2/models/cifar10{version}").json() == {
            "name": "cifar10",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
        }
        assert client.get(f"/v2/models/cifar10_image{version}").json()["inputs"] == [
            {"name": "image", "datatype": "BYTES", "shape": [-1]}
        ]

    @pytest.mark.parametrize("version", ["", "/versions/1"])
    def test_model_configuration(self, client: TestClient, version: str) -> None:
        config = client.get(f"/v2/models/cifar10{version}/config").json()
        assert (config["name"], config["platform"], config["max_batch_size"]) == ("cifar10", "onnxruntime_onnx", 32)
        assert config["input"] == [
            {"name": "images", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [32, 32, 3]}
        ]
        (output,) = config["output"]
        assert (output["name"], output["data_type"], output["dims"]) == ("probabilities", "TYPE_FP32", [10])
        (files,) = client.get(f"/v2/models/cifar10_image{version}/config").json()["input"]
        assert (files["data_type"], files["dims"]) == ("TYPE_STRING", [])

    @pytest.mark.parametrize("what", ["", "/ready", "/config", "/stats"])
    def test_unknown_models_and_versions_are_404(self, client: TestClient, what: str) -> None:
        for model in ("other/versions/1", "other", "CIFAR10", "x" * 999, "cifar10/versions/2", "cifar10/versions/one"):
            document = assert_problem(client.get(f"/v2/models/{model}{what}"), 404, "not_found")
            assert len(document["detail"]) < 200
        for model in ("other", "cifar10/versions/2"):
            assert_problem(client.post(f"/v2/models/{model}/infer", json=good()), 404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "repository/models/cifar10/load"),
            ("POST", "repository/models/cifar10/unload"),
            ("GET", "trace/setting"),
            ("POST", "trace/setting"),
            ("GET", "models/cifar10/trace/setting"),
            ("GET", "logging"),
            ("POST", "logging"),
            ("GET", "systemsharedmemory/status"),
            ("POST", "systemsharedmemory/region/a/register"),
            ("GET", "cudasharedmemory/region/a/status"),
            ("POST", "cudasharedmemory/unregister"),
        ],
    )
    def test_unsupported_extensions_of_triton_are_404(self, client: TestClient, method: str, path: str) -> None:
        assert "extensions" in assert_problem(client.request(method, f"/v2/{path}"), 404, "not_found")["detail"]

    def test_other_methods_are_405(self, client: TestClient) -> None:
        for method, path in (
            ("GET", INFER),
            ("PUT", INFER),
            ("POST", "/v2"),
            ("POST", "/v2/health/live"),
            ("GET", "/v2/repository/index"),
            ("DELETE", "/v2/models/cifar10"),
        ):
            response = client.request(method, path)
            assert_problem(response, 405, "method_not_allowed")
            assert response.headers["allow"] in ("GET, HEAD", "POST")

    def test_probes_need_no_key_and_the_rest_does(self, make_client: MakeClient) -> None:
        client = make_client(api_keys="secret")
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        assert_problem(client.get("/v2"), 401, "unauthorized")
        assert_problem(client.post(INFER, json=good()), 401, "unauthorized")


class TestInference:
    def test_every_encoding_gives_the_probabilities_of_predict(self, client: TestClient, pixels: np.ndarray) -> None:
        files = [(DATA / name).read_bytes() for name in ("cat.png", "ship.png")]
        expected = np.zeros((2, 10))
        for row, content in zip(expected, files, strict=True):
            for prediction in client.post("/predict?top_k=10", content=content).json()["predictions"]:
                row[prediction["class_id"]] = prediction["probability"]
        base64_files = [base64.b64encode(content).decode() for content in files]
        packed = b"".join(len(content).to_bytes(4, "little") + content for content in files)
        named = {"name": "image", "shape": [2], "datatype": "BYTES"}
        text = json.dumps({"inputs": [{**named, "parameters": {"binary_data_size": len(packed)}}]}).encode()
        for response in (
            client.post(INFER, json={"inputs": [tensor(2, data=pixels.tolist())]}),
            client.post(INFER, **binary_request(pixels)),
            client.post(INFER, **binary_request(pixels, parameters={"binary_data_output": True})),
            client.post(INFER.replace("/infer", "/versions/1/infer"), **binary_request(pixels)),
            client.post(INFER_FILES, json={"inputs": [{**named, "data": base64_files}]}),
            client.post(INFER_FILES, content=text + packed, headers={HEADER: str(len(text))}),
        ):
            np.testing.assert_allclose(probabilities(response), expected, atol=2e-6)

    @pytest.mark.parametrize("count", [1, 7, 8, 9, 32])
    def test_images_keep_their_order(self, make_client: MakeClient, count: int) -> None:
        class FirstPixel(Session):
            def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
                assert images.flags.c_contiguous and images.dtype == np.uint8
                assert len(images) <= 8
                return Outputs(np.eye(10, dtype=np.float32)[images[:, 0, 0, 0] % 10] * 20)

        client = make_client(session=FirstPixel(), inference_threads=2)
        images = np.zeros((count, 32, 32, 3), np.uint8)
        images[:, 0, 0, 0] = np.random.default_rng(1).permutation(count)
        answer = probabilities(client.post(INFER, **binary_request(images)))
        np.testing.assert_array_equal(answer.argmax(1), images[:, 0, 0, 0] % 10)

    def test_raw_requests_are_classified(self, client: TestClient, pixels: np.ndarray, cat: bytes) -> None:
        raw = {HEADER: "0"}
        by_pixels = client.post(INFER, content=pixels[:1].tobytes(), headers=raw)
        by_file = client.post(INFER_FILES, content=cat, headers=raw)
        assert by_file.headers["content-type"] == "application/octet-stream"
        np.testing.assert_allclose(probabilities(by_pixels), probabilities(by_file), atol=1e-6)
        assert_problem(client.post(INFER, content=cat, headers=raw), 400, "malformed_request")
        assert_problem(client.post(INFER_FILES, headers=raw), 422, "undecodable_image")

    def test_the_classification_extension_names_classes(
        self, client: TestClient, pixels: np.ndarray, cat: bytes
    ) -> None:
        outputs = [{"name": "probabilities", "parameters": {"classification": 3}}]
        request = {"inputs": [tensor(data=pixels[0].tolist())], "outputs": outputs}
        (output,) = client.post(INFER, json=request).json()["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [1, 3])
        predictions = client.post("/predict?top_k=3", content=cat).json()["predictions"]
        for text, prediction in zip(output["data"], predictions, strict=True):
            value, index, label = text.split(":")
            assert (int(index), label) == (prediction["class_id"], prediction["label"])
            assert float(value) == pytest.approx(prediction["probability"], abs=2e-6)

    def test_parameters_say_how_far_to_trust_each_image(self, client: TestClient) -> None:
        files = [(DATA / name).read_bytes() for name in ("cat.png", "ship.png")]
        predicted = [client.post("/predict", content=content).json() for content in files]
        data = [base64.b64encode(content).decode() for content in files]
        document = client.post(
            INFER_FILES, json={"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": data}]}
        ).json()
        trust = {name: json.loads(text) for name, text in document["parameters"].items()}
        names = ("prediction_set", "abstain", "ood_score", "measured_on")
        assert trust == {name: [answer[name] for answer in predicted] for name in names}
        assert len(document["outputs"]) == 1

    @pytest.mark.parametrize("kind", ["thumbnails", "photographs"])
    def test_a_parameter_overrules_the_kind_of_the_files(self, client: TestClient, cat: bytes, kind: str) -> None:
        given = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(cat).decode()]}
        document = client.post(INFER_FILES, json={"inputs": [given], "parameters": {"kind": kind}}).json()
        of_input = {"inputs": [given | {"parameters": {"kind": kind}}]}
        assert client.post(INFER_FILES, json=of_input).json()["outputs"] == document["outputs"]
        predicted = client.post(f"/predict?kind={kind}&top_k=10", content=cat).json()
        assert document["parameters"]["measured_on"] == f'["{kind}"]'
        by_class = {one["class_id"]: one["probability"] for one in predicted["predictions"]}
        assert document["outputs"][0]["data"] == pytest.approx([by_class[index] for index in range(10)], abs=2e-6)

    def test_pixels_are_thumbnails(self, client: TestClient) -> None:
        assert client.post(INFER, json=good(parameters={"kind": "thumbnails"})).status_code == 200
        refused = client.post(INFER, json=good(parameters={"kind": "photographs"}))
        assert "pixels are thumbnails" in refused.json()["error"]
        other = client.post(INFER, json=good(parameters={"kind": "films"}))
        assert other.status_code == 400 and "'thumbnails' or 'photographs'" in other.json()["error"]

    def test_the_id_is_echoed_or_generated(self, client: TestClient) -> None:
        assert client.post(INFER, json=good(id="42")).json()["id"] == "42"
        response = client.post(INFER, json=good(), headers={"X-Request-ID": "mine"})
        assert response.json()["id"] == response.headers["x-request-id"] == "mine"

    @pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "multipart/form-data", "image/png"])
    def test_the_content_type_and_the_query_are_ignored(self, client: TestClient, kind: str) -> None:
        response = client.post(
            f"{INFER}?test_1=1&top_k=x&model=other&version=2&name=a",
            content=json.dumps(good()),
            headers={"Content-Type": kind, "Accept-Encoding": "gzip, deflate, br"},
        )
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert "content-encoding" not in response.headers
        assert client.get("/v2/models/cifar10?version=9&model=x").json()["name"] == "cifar10"

    def test_compressed_requests_are_accepted(self, client: TestClient, pixels: np.ndarray) -> None:
        plain = binary_request(pixels)
        expected = probabilities(client.post(INFER, **plain))
        for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            response = client.post(
                INFER,
                content=compress(plain["content"]),
                headers={**plain["headers"], "Content-Encoding": encoding},
            )
            np.testing.assert_allclose(probabilities(response), expected, atol=1e-6)
        response = client.post(INFER, content=b"not gzip", headers={"Content-Encoding": "gzip"})
        assert_problem(response, 400, "malformed_request")
        response = client.post(INFER, **(plain | {"headers": {"Content-Encoding": "br"}}))
        assert_problem(response, 415, "unsupported_media_type")

    def test_a_file_that_cannot_be_used_is_named(self, make_client: MakeClient, cat: bytes) -> None:
        client = make_client(max_file_bytes=len(cat))
        for bad, status, code in (
            (b"hello", 415, "unsupported_media_type"),
            (b"", 422, "undecodable_image"),
            (cat[:-40], 422, "undecodable_image"),
            (bytes(len(cat) + 1), 413, "payload_too_large"),
        ):
            data = [base64.b64encode(content).decode() for content in (cat, bad, b"%PDF")]
            request = {"inputs": [{"name": "image", "shape": [3], "datatype": "BYTES", "data": data}]}
            document = assert_problem(client.post(INFER_FILES, json=request), status, code)
            assert document["detail"].startswith("image 1: ")
        assert_still_serving(client)

    def test_a_photo_gets_its_views(self, make_client: MakeClient) -> None:
        counts = []

        class Count(Session):
            def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
                counts.append(len(images))
                return Outputs(np.zeros((len(images), 10), np.float32))

        photo = io.BytesIO()
        Image.new("RGB", (200, 100)).save(photo, "PNG")
        response = make_client(session=Count(), views=3).post(
            INFER_FILES, content=photo.getvalue(), headers={HEADER: "0"}
        )
        assert probabilities(response).shape == (1, 10)
        assert counts == [3]


class TestRefusals:
    """After each the service lives, and answers the next request."""

    @pytest.mark.parametrize(
        "value", ["99999999999", "-1", "abc", "", " ", "1e3", "0x10", "9" * 5000, "\u0663", "1, 2"]
    )
    def test_an_invalid_json_length_is_refused(self, client: TestClient, value: str) -> None:
        response = client.post(INFER, json=good(), headers={HEADER: value.encode()})
        assert len(assert_problem(response, 400, "malformed_request")["detail"]) < 200
        assert_still_serving(client)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"nonsense",
            json.dumps({"inputs": [tensor(shape=[16, (1 << 60) + 2], data=[0] * 32)]}).encode(),
            json.dumps({"inputs": [tensor(shape=[-1, 32, 32, 3], data=[0] * IMAGE)]}).encode(),
            json.dumps({"inputs": [tensor(33, data=[0] * (33 * IMAGE))]}).encode(),
            json.dumps({"inputs": [tensor(datatype="FP32", data=[0.5] * IMAGE)]}).encode(),
            json.dumps({"inputs": [tensor(parameters={"binary_data_size": IMAGE})]}).encode(),
            json.dumps(good(outputs=[{"name": "labels"}])).encode(),
            json.dumps(good(outputs=[{"name": "probabilities"}] * 2)).encode(),
            json.dumps(good(deep="HERE")).replace('"HERE"', "[" * 120 + "]" * 120).encode(),
            json.dumps(good(deep="HERE")).replace('"HERE"', "[" * 250_000 + "]" * 250_000).encode(),
            b'{"inputs":' * 250_000,
        ],
    )
    def test_malformed_messages_are_refused(self, client: TestClient, body: bytes) -> None:
        assert_problem(client.post(INFER, content=body), 400, "malformed_request")
        assert_still_serving(client)

    def test_too_many_bytes_are_refused(self, make_client: MakeClient) -> None:
        client = make_client(max_request_bytes=50_000)
        assert_problem(client.post(INFER, content=bytes(50_001)), 413, "payload_too_large")
        assert_problem(client.post(INFER, content=iter([bytes(30_000)] * 2)), 413, "payload_too_large")
        for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            bomb = client.post(INFER, content=compress(bytes(20_000_000)), headers={"Content-Encoding": encoding})
            assert_problem(bomb, 413, "payload_too_large")
        assert_still_serving(client)

    def test_decompressed_bytes_count_towards_the_memory_for_bodies(self, make_client: MakeClient) -> None:
        client = make_client(max_inflight_body_bytes=50_000)
        for _ in range(3):
            response = client.post(INFER, content=gzip.compress(bytes(1_000_000)), headers={"Content-Encoding": "gzip"})
            assert_problem(response, 429, "overloaded")
            assert_still_serving(client)

    def test_requests_are_refused_while_the_queue_is_full(self, make_client: MakeClient) -> None:
        client = make_client(queue_images=10)
        four = binary_request(np.zeros((4, 32, 32, 3), np.uint8))
        places = client.app.state.service.places
        with places.reserve(10):
            refused = client.post(INFER, content=b"not even read")
        assert_problem(refused, 429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        with places.reserve(7):
            assert_problem(client.post(INFER, **four), 429, "overloaded")
            assert client.post(INFER, json=good()).status_code == 200
        with places.reserve(6):
            assert client.post(INFER, **four).status_code == 200
        assert places.reserved == 0

    def test_large_json_is_answered_like_small_json(self, client: TestClient) -> None:
        small, large = good(), {"inputs": [tensor(8, data=[7] * 8 * IMAGE)]}
        assert len(json.dumps(small)) < LARGE_JSON_BYTES < len(json.dumps(large))
        (one,), (eight,) = (client.post(INFER, json=request).json()["outputs"] for request in (small, large))
        np.testing.assert_allclose(eight["data"], one["data"] * 8, atol=1e-6)

    def test_large_json_that_waits_too_long_for_the_parser_is_504(
        self, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = make_client(deadline_seconds=0.3)
        release = threading.Event()
        monkeypatch.setattr(parser, "_start", lambda: release.wait(30) and None)
        try:
            response = client.post(INFER, json={"inputs": [tensor(8, data=[200] * 8 * IMAGE)]})
            assert_problem(response, 504, "deadline_exceeded")
            assert client.post(INFER, json=good()).status_code == 200
        finally:
            release.set()
        assert client.app.state.service.places.reserved == 0

    @pytest.mark.parametrize(
        "message",
        [
            json.dumps(good(id="\0" * 257)),
            json.dumps(good(id="x" * 1_000_000)),
            json.dumps(good(parameters={"\0" * 9000: {}})),
            json.dumps(good(parameters={str(number): [] for number in range(900)})),
            json.dumps(good(outputs=[{"name": "\0" * 9000}] * 300)),
            json.dumps({"inputs": [tensor(datatype="\0" * 900, data=[0])]}),
            json.dumps({"inputs": [tensor(name="\0" * 900, data=[0])] * 90}),
            json.dumps({"inputs": [tensor(shape=[10**200] * 1000, data=[0])]}),
            json.dumps(good(outputs=[{"name": "probabilities", "parameters": {"classification": "9" * 4000}}])),
            json.dumps(good()).replace("[7,", "[1e400,"),
            json.dumps(good()).replace("[7,", "[" + "9" * 4000 + ","),
            "{" + '"id": "a",' * 900 + '"inputs": []}',
        ],
    )
    def test_a_refusal_is_short_for_any_message(self, client: TestClient, message: str) -> None:
        response = client.post(INFER, content=message)
        assert_problem(response, 400, "malformed_request")
        assert len(response.content) < 4096
        packed = client.post(INFER, content=gzip.compress(message.encode()), headers={"Content-Encoding": "gzip"})
        assert packed.json()["detail"] == response.json()["detail"]

    def test_an_answer_after_the_deadline_is_504(self, make_client: MakeClient) -> None:
        release = threading.Event()

        class Slow(Session):
            def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
                release.wait(30)
                return Outputs(np.zeros((len(images), 10), np.float32))

        client = make_client(session=Slow(), deadline_seconds=0.3)
        response = client.post(INFER, **binary_request(np.zeros((32, 32, 32, 3), np.uint8)))
        release.set()
        assert_problem(response, 504, "deadline_exceeded")
        assert client.app.state.service.places.reserved == 0
        assert_still_serving(client)

    def test_a_dead_engine_is_503(self, make_client: MakeClient) -> None:
        class Broken(Session):
            def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
                raise RuntimeError

        client = make_client(session=Broken())
        for _ in range(2):
            assert_problem(client.post(INFER, json=good()), 503, "unavailable")
        for path in ("/v2/health/ready", "/v2/models/cifar10/ready"):
            assert_problem(client.get(path), 503, "unavailable")
        assert client.get("/v2/health/live").status_code == 200
        assert {entry["state"] for entry in client.post("/v2/repository/index").json()} == {"UNAVAILABLE"}


class TestAccounts:
    def test_statistics_count_requests_and_failures(self, own_client: TestClient, pixels: np.ndarray) -> None:
        own_client.post(INFER, **binary_request(pixels))
        own_client.post(INFER, json=good())
        own_client.post(INFER, content=b"bad")
        (all_of_it,) = own_client.get("/v2/models/cifar10/stats").json()["model_stats"]
        assert own_client.get("/v2/models/cifar10/versions/1/stats").json()["model_stats"] == [all_of_it]
        both = own_client.get("/v2/models/stats").json()["model_stats"]
        assert [entry["name"] for entry in both] == MODELS
        assert both[0] == all_of_it
        assert (all_of_it["name"], all_of_it["version"]) == ("cifar10", "1")
        assert (all_of_it["inference_count"], all_of_it["execution_count"]) == (3, 2)
        spent = all_of_it["inference_stats"]
        assert (spent["success"]["count"], spent["fail"]["count"]) == (2, 1)
        stages = ("queue", "compute_input", "compute_infer", "compute_output")
        assert {spent[name]["count"] for name in stages} == {2}
        assert min(spent[name]["ns"] for name in stages) > 0
        assert sum(spent[name]["ns"] for name in stages) <= spent["success"]["ns"]
        assert [entry["batch_size"] for entry in all_of_it["batch_stats"]] == [1, 2]
        assert both[1]["inference_count"] == 0

    def test_metrics_and_log_show_the_requests(
        self, own_client: TestClient, pixels: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "app.access"):
            own_client.get("/v2/health/ready")
            own_client.post(INFER, **binary_request(pixels))
            own_client.post("/v2/models/cifar10/versions/1/infer", content=b"bad")
        answered, refused = (record.fields for record in caplog.records if record.name == "app.access")
        assert (answered["route"], answered["model"], answered["images"]) == ("/v2/models/{model}/infer", "cifar10", 2)
        assert refused["route"] == "/v2/models/{model}/versions/{version}/infer"
        assert refused["outcome"] == "malformed_request"
        metrics = own_client.get("/metrics").text
        assert 'predict_requests_total{outcome="ok",route="/v2/models/{model}/infer"} 1.0' in metrics
        assert "prediction_confidence_count 2.0" in metrics
        assert 'predict_stage_seconds_count{stage="total"} 1.0' in metrics
        assert 'predict_stage_seconds_count{stage="inference"} 2.0' in metrics
