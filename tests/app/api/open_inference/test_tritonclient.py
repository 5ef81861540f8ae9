"""The Open Inference Protocol as its most used client speaks it, against a server in a process of its own."""

import asyncio
import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.app.server import serve
from tests.conftest import DATA, ROOT

HEADER = "Inference-Header-Content-Length"
INFER = "/v2/models/cifar10/infer"
PAGE = ROOT / "docs" / "inference-protocol.md"


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serve(INFERENCE_THREADS=2) as (process, client):
        # Hundreds of requests: a log that nobody reads would fill its pipe, and the server wait for a reader.
        assert process.stderr is not None
        log = threading.Thread(target=process.stderr.read)
        log.start()
        yield client
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == 0
        log.join()


@pytest.fixture(scope="module")
def address(server: httpx.Client) -> str:
    return f"{server.base_url.host}:{server.base_url.port}"


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
async def aio(address: str) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [2, 32, 32, 3]: the cat and the ship."""
    return np.stack([np.array(Image.open(DATA / name).convert("RGB")) for name in ("cat.png", "ship.png")])


@pytest.fixture(scope="module")
def files() -> np.ndarray:
    """The same two, as files: object [2]."""
    return np.array([(DATA / name).read_bytes() for name in ("cat.png", "ship.png")], dtype=object)


@pytest.fixture(scope="module")
def predicted(server: httpx.Client, files: np.ndarray) -> list[list[dict]]:
    """What /predict says of them: all classes of each, most probable first."""
    return [server.post("/predict?top_k=10", content=content).json()["predictions"] for content in files]


@pytest.fixture(scope="module")
def expected(predicted: list[list[dict]]) -> np.ndarray:
    """float64 [2, 10]: the same, in the order of the classes."""
    return np.array(
        [[item["probability"] for item in sorted(row, key=lambda item: item["class_id"])] for row in predicted]
    )


def tensor(values: np.ndarray, name: str = "images", datatype: str = "UINT8", binary: bool = True) -> object:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def wanted(binary: bool = True, classes: int = 0, name: str = "probabilities") -> object:
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=classes)


def close_to(expected: np.ndarray) -> object:
    return pytest.approx(expected, abs=2e-6)


class TestSync:
    def test_metadata_configuration_and_statistics_are_found(self, client: triton.InferenceServerClient) -> None:
        assert client.is_server_live() and client.is_server_ready()
        assert client.get_server_metadata()["name"] == "cifar10-classifier"
        assert [model["name"] for model in client.get_model_repository_index()] == ["cifar10", "cifar10_image"]
        for model in ("cifar10", "cifar10_image"):
            for version in ("", "1"):
                assert client.is_model_ready(model, version)
                assert client.get_model_metadata(model, version)["name"] == model
                assert client.get_model_config(model, version)["max_batch_size"] == 32
                (statistics,) = client.get_inference_statistics(model, version)["model_stats"]
                assert statistics["name"] == model
        assert len(client.get_inference_statistics()["model_stats"]) == 2
        assert client.is_server_live(query_params={"test_1": 1, "test_2": 2})

    def test_unknown_models_and_unsupported_extensions_are_404(self, client: triton.InferenceServerClient) -> None:
        assert not client.is_model_ready("other")
        assert not client.is_model_ready("cifar10", "2")
        for call in (
            lambda: client.get_model_metadata("other"),
            lambda: client.get_model_config("cifar10", "2"),
            lambda: client.load_model("cifar10"),
            lambda: client.unload_model("cifar10"),
            lambda: client.get_trace_settings(),
            lambda: client.update_trace_settings("cifar10", {"trace_level": "OFF"}),
            lambda: client.get_log_settings(),
            lambda: client.update_log_settings({"log_info": True}),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.register_system_shared_memory("a", "/a", 1),
            lambda: client.get_cuda_shared_memory_status(),
            lambda: client.unregister_cuda_shared_memory(),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == "404"
            assert "decoding" not in caught.value.message()

    @pytest.mark.parametrize("sent", [True, False], ids=["binary request", "JSON request"])
    @pytest.mark.parametrize("answered", [True, False, None], ids=["binary answer", "JSON answer", "no outputs named"])
    @pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
    def test_pixels_are_classified_in_every_encoding(
        self,
        client: triton.InferenceServerClient,
        pixels: np.ndarray,
        expected: np.ndarray,
        sent: bool,
        answered: bool | None,
        packing: str | None,
    ) -> None:
        result = client.infer(
            "cifar10",
            [tensor(pixels, binary=sent)],
            outputs=None if answered is None else [wanted(answered)],
            model_version="1" if packing else "",
            request_id="42",
            request_compression_algorithm=packing,
            response_compression_algorithm=packing,
            query_params={"test_1": 1},
            parameters={"custom": "x"},
            priority=1,
            timeout=1_000_000,
        )
        probabilities = result.as_numpy("probabilities")
        assert probabilities.dtype == np.float32
        assert probabilities == close_to(expected)
        assert result.get_response()["id"] == "42"
        assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("cifar10", "1")
        assert ("data" in result.get_output("probabilities")) is (answered is False)

    def test_encoded_files_are_classified(
        self, client: triton.InferenceServerClient, files: np.ndarray, expected: np.ndarray
    ) -> None:
        result = client.infer("cifar10_image", [tensor(files, "image", "BYTES")])
        assert result.as_numpy("probabilities") == close_to(expected)

    def test_a_full_batch_is_classified(
        self, client: triton.InferenceServerClient, pixels: np.ndarray, expected: np.ndarray
    ) -> None:
        result = client.infer("cifar10", [tensor(np.concatenate([pixels] * 16))])
        assert result.as_numpy("probabilities") == close_to(np.concatenate([expected] * 16))

    @pytest.mark.parametrize("binary", [True, False])
    def test_the_classification_extension_names_classes(
        self, client: triton.InferenceServerClient, pixels: np.ndarray, predicted: list[list[dict]], binary: bool
    ) -> None:
        result = client.infer("cifar10", [tensor(pixels)], outputs=[wanted(binary, classes=3)])
        names = result.as_numpy("probabilities")
        assert names.shape == (2, 3)
        for row, best in zip(names, predicted, strict=True):
            for item, prediction in zip(row, best[:3], strict=True):
                value, index, label = (item.decode() if binary else item).split(":")
                assert float(value) == pytest.approx(prediction["probability"], abs=2e-6)
                assert (int(index), label) == (prediction["class_id"], prediction["label"])

    def test_asynchronous_calls_return_their_own_results(
        self, address: str, pixels: np.ndarray, expected: np.ndarray
    ) -> None:
        with triton.InferenceServerClient(address, concurrency=4) as client:
            calls = [client.async_infer("cifar10", [tensor(pixels)], request_id=str(n)) for n in range(8)]
            for number, call in enumerate(calls):
                result = call.get_result()
                assert result.get_response()["id"] == str(number)
                assert result.as_numpy("probabilities") == close_to(expected)

    def test_a_raw_request_is_answered_in_binary(
        self, server: httpx.Client, files: np.ndarray, expected: np.ndarray
    ) -> None:
        response = server.post("/v2/models/cifar10_image/infer", content=files[0], headers={HEADER: "0"})
        result = triton.InferenceServerClient.parse_response_body(
            response.content, header_length=int(response.headers[HEADER])
        )
        assert result.as_numpy("probabilities") == close_to(expected[:1])

    @pytest.mark.parametrize(
        ("model", "version", "made", "output", "status"),
        [
            ("other", "", tensor(np.zeros((1, 32, 32, 3), np.uint8)), "probabilities", "404"),
            ("cifar10", "2", tensor(np.zeros((1, 32, 32, 3), np.uint8)), "probabilities", "404"),
            ("cifar10", "", tensor(np.zeros((1, 32, 32, 3), np.uint8)), "labels", "400"),
            ("cifar10", "", tensor(np.zeros((1, 32, 32, 3), np.uint8), "image"), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((1, 3, 32, 32), np.uint8)), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((32, 32, 3), np.uint8)), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((0, 32, 32, 3), np.uint8)), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((33, 32, 32, 3), np.uint8)), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((1, 32, 32, 3), np.float32), datatype="FP32"), "probabilities", "400"),
            ("cifar10", "", tensor(np.zeros((1, 32, 32, 3), np.int64), datatype="INT64"), "probabilities", "400"),
            ("cifar10_image", "", tensor(np.array([[b"x"]], object), "image", "BYTES"), "probabilities", "400"),
            ("cifar10_image", "", tensor(np.array([b"hello"], object), "image", "BYTES"), "probabilities", "415"),
            ("cifar10_image", "", tensor(np.array([b""], object), "image", "BYTES"), "probabilities", "422"),
        ],
    )
    def test_refusals_raise_with_their_status(
        self, client: triton.InferenceServerClient, model: str, version: str, made: object, output: str, status: str
    ) -> None:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [made], version, outputs=[wanted(name=output)])
        assert caught.value.status() == status
        assert "decoding" not in caught.value.message()
        assert client.is_server_live()

    def test_shared_memory_is_refused(self, client: triton.InferenceServerClient) -> None:
        made = triton.InferInput("images", [1, 32, 32, 3], "UINT8")
        made.set_shared_memory("region", 3072)
        with pytest.raises(InferenceServerException, match="shared memory is not supported") as caught:
            client.infer("cifar10", [made])
        assert caught.value.status() == "400"


class TestAsyncio:
    async def test_the_asyncio_client_works(
        self,
        aio: triton_aio.InferenceServerClient,
        pixels: np.ndarray,
        files: np.ndarray,
        expected: np.ndarray,
    ) -> None:
        assert await aio.is_server_live() and await aio.is_server_ready() and await aio.is_model_ready("cifar10", "1")
        assert "binary_tensor_data" in (await aio.get_server_metadata())["extensions"]
        assert (await aio.get_model_metadata("cifar10"))["versions"] == ["1"]
        assert (await aio.get_model_config("cifar10"))["max_batch_size"] == 32
        assert len((await aio.get_inference_statistics())["model_stats"]) == 2
        assert len(await aio.get_model_repository_index()) == 2
        results = await asyncio.gather(
            *(
                aio.infer(
                    "cifar10", [tensor(pixels, binary=sent)], outputs=[wanted(answered)], request_id=packing or ""
                )
                for sent in (True, False)
                for answered in (True, False)
                for packing in (None, "gzip", "deflate")
            ),
            aio.infer("cifar10_image", [tensor(files, "image", "BYTES")]),
            *(aio.infer("cifar10", [tensor(pixels)], request_compression_algorithm=p) for p in ("gzip", "deflate")),
        )
        for result in results:
            assert result.as_numpy("probabilities") == close_to(expected)
        named = await aio.infer("cifar10", [tensor(pixels)], outputs=[wanted(classes=1)])
        assert named.as_numpy("probabilities").shape == (2, 1)
        for call in (aio.get_model_metadata("other"), aio.infer("cifar10", [tensor(pixels[..., :1])])):
            with pytest.raises(InferenceServerException) as caught:
                await call
            assert caught.value.status() in ("404", "400")
            assert "decoding" not in caught.value.message()


def test_the_steps_of_triton_s_image_client_work(
    client: triton.InferenceServerClient, predicted: list[list[dict]]
) -> None:
    """What NVIDIA's image_client.py does, and what it insists on: metadata, configuration, classification."""
    metadata = client.get_model_metadata("cifar10")
    config = client.get_model_config("cifar10")
    (input_metadata,), (output_metadata,), (input_config,) = metadata["inputs"], metadata["outputs"], config["input"]
    assert output_metadata["datatype"] == "FP32"
    assert config["max_batch_size"] > 0
    assert sum(size > 1 for size in output_metadata["shape"][1:]) == 1  # a vector, after the batch
    assert len(input_metadata["shape"]) == 4
    assert input_config["format"] == "FORMAT_NHWC"
    _, height, width, channels = input_metadata["shape"]
    assert channels == 3

    images = []
    for name in ("cat.png", "ship.png"):
        resized = Image.open(DATA / name).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.array(resized).astype(triton_to_np_dtype(input_metadata["datatype"])))
    result = client.infer(
        "cifar10",
        [tensor(np.stack(images), input_metadata["name"], input_metadata["datatype"])],
        request_id="1",
        outputs=[triton.InferRequestedOutput(output_metadata["name"], class_count=2)],
    )
    assert result.get_response()["id"] == "1"
    answers = result.as_numpy(output_metadata["name"])
    assert len(answers) == 2
    for row, (best, *_) in zip(answers, predicted, strict=True):
        value, index, label = "".join(chr(character) for character in row[0]).split(":")
        assert float(value) == pytest.approx(best["probability"], abs=2e-6)
        assert (int(index), label) == (best["class_id"], best["label"])


class TestHostileClients:
    """What breaks servers, over a real socket; after each the next good request is answered."""

    @pytest.fixture(autouse=True)
    def still_serving(
        self, client: triton.InferenceServerClient, pixels: np.ndarray, expected: np.ndarray
    ) -> Iterator[None]:
        yield
        assert client.is_server_live()
        assert client.infer("cifar10", [tensor(pixels)]).as_numpy("probabilities") == close_to(expected)

    @pytest.mark.parametrize("value", ["99999999999", "-1", "abc", "9" * 5000])
    def test_an_invalid_json_length_is_refused(self, server: httpx.Client, value: str) -> None:
        assert server.post(INFER, content=b"{}", headers={HEADER: value}).status_code == 400

    @pytest.mark.parametrize("depth", [120, 250_000])
    def test_deeply_nested_json_is_refused(self, server: httpx.Client, depth: int) -> None:
        for opening, closing in ((b"[", b"]"), (b'{"inputs":', b"}")):
            response = server.post(INFER, content=opening * depth + b"1" + closing * depth)
            assert (response.status_code, response.json()["code"]) == (400, "malformed_request")

    def test_a_gzip_bomb_is_refused(self, server: httpx.Client) -> None:
        bomb = gzip.compress(bytes(200_000_000), 1)
        response = server.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 413

    def test_a_body_in_chunks_of_one_byte_is_accepted(
        self, server: httpx.Client, pixels: np.ndarray, expected: np.ndarray
    ) -> None:
        body = json.dumps({"inputs": [{"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": 0}]})
        body = body.replace('"data": 0', f'"data": {pixels[0].ravel().tolist()}')

        def chunks() -> Iterator[bytes]:
            for character in body.encode():
                yield bytes([character])

        response = server.post(INFER, content=chunks())
        assert response.status_code == 200
        data = np.array(response.json()["outputs"][0]["data"]).reshape(1, 10)
        assert data == close_to(expected[:1])

    def test_clients_that_disconnect_early_do_no_harm(self, address: str) -> None:
        host, port = address.split(":")
        request = f"POST {INFER} HTTP/1.1\r\nHost: {host}\r\n{HEADER}: 0\r\nContent-Length: 3072\r\n\r\n".encode()
        for sent in (request[:50], request, request + bytes(100), request + bytes(3072)):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copy(DATA / "cat.png", tmp_path)
    return tmp_path


@pytest.fixture
def best(predicted: list[list[dict]]) -> list[int]:
    """The cat's three most probable classes."""
    return [item["class_id"] for item in predicted[0][:3]]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_the_page_shows_curl_that_works(address: str, workplace: Path, expected: np.ndarray, best: list[int]) -> None:
    raw, in_json = (
        subprocess.run(
            ["sh", "-ec", block.replace("localhost:8000", address)],
            cwd=workplace,
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout.decode()
        for block in blocks("sh")
    )
    length = int(re.search(rf"{HEADER}: (\d+)", raw, re.IGNORECASE).group(1))
    answer = (workplace / "answer.bin").read_bytes()
    assert json.loads(answer[:length])["model_name"] == "cifar10_image"
    assert np.frombuffer(answer[length:], "<f4") == close_to(expected[0])
    document = json.loads(in_json)
    assert document["id"] == "42"
    assert [int(item.split(":")[1]) for item in document["outputs"][0]["data"]] == best


def test_the_page_shows_python_that_works(address: str, workplace: Path, expected: np.ndarray, best: list[int]) -> None:
    (block,) = blocks("python")
    program = block.replace("localhost:8000", address) + "\nprint(probabilities.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workplace, capture_output=True, text=True, check=True, timeout=60
    )
    *shown, probabilities = done.stdout.splitlines()
    assert [int(line.split()[1]) for line in shown] == best
    assert np.array(json.loads(probabilities)) == close_to(expected[:1])
