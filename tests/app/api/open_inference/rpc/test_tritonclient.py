"""The protocol over gRPC as its most used client speaks it, synchronous and asynchronous."""

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from app.api.open_inference.rpc.grpc_predict_v2_pb2 import DESCRIPTOR
from tests.app.api.open_inference.rpc.conftest import Client, Served, tensor, wanted

NOTHING = np.zeros((1, 32, 32, 3), np.uint8)


async def predicted(served: Served, contents: np.ndarray) -> list[dict[str, Any]]:
    """What /predict says of the files, with all classes."""
    return [(await served.http.post("/predict?top_k=10", content=content)).json() for content in contents]


async def expected(served: Served, contents: np.ndarray) -> np.ndarray:
    """float64 [N, 10], in the order of the classes."""
    rows = [
        sorted(answer["predictions"], key=lambda item: item["class_id"]) for answer in await predicted(served, contents)
    ]
    return np.array([[item["probability"] for item in row] for row in rows])


def test_the_messages_are_those_that_tritonclient_has() -> None:
    def fields(message: Any) -> set[tuple[str, int, int, bool]]:
        return {(field.name, field.number, field.type, field.is_repeated) for field in message.fields}

    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    found = [(message, theirs[name]) for name, message in DESCRIPTOR.message_types_by_name.items()]
    assert len(found) == 14
    for ours, their in found:
        assert fields(ours) <= fields(their)
        found += [(nested, their.nested_types_by_name[nested.name]) for nested in ours.nested_types]
    (service,) = DESCRIPTOR.services_by_name.values()
    calls = service_pb2.DESCRIPTOR.services_by_name[service.name].methods_by_name
    assert all(calls[method.name].input_type.name == method.input_type.name for method in service.methods)


async def test_server_and_models_are_described_as_over_http(remote: Client, served: Served) -> None:
    assert await remote.is_server_live() and await remote.is_server_ready()
    about = await remote.get_server_metadata(as_json=True)
    told = (await served.http.get("/v2")).json()
    assert (about["name"], about["version"]) == (told["name"], told["version"])
    assert about["extensions"] == ["classification", "parameters"]
    for model in ("cifar10", "cifar10_image"):
        for version in ("", "1"):
            assert await remote.is_model_ready(model, version)
            metadata = await remote.get_model_metadata(model, version, as_json=True)
            told = (await served.http.get(f"/v2/models/{model}")).json()
            for tensors in (*metadata["inputs"], *metadata["outputs"]):
                tensors["shape"] = list(map(int, tensors["shape"]))
            assert metadata == told


async def test_probabilities_and_trust_are_those_of_predict(
    remote: Client, served: Served, pixels: np.ndarray, files: np.ndarray
) -> None:
    answers = await predicted(served, files)
    for model, made in (("cifar10", tensor(pixels)), ("cifar10_image", tensor(files, "image", "BYTES"))):
        result = await remote.infer(model, [made], request_id="42", parameters={"custom": "x"}, priority=1)
        probabilities = result.as_numpy("probabilities")
        assert probabilities.dtype == np.float32
        assert probabilities == pytest.approx(await expected(served, files), abs=2e-6)
        response = result.get_response()
        assert (response.model_name, response.model_version, response.id) == (model, "1", "42")
        assert len(response.outputs) == len(response.raw_output_contents) == 1
        trust = {name: json.loads(value.string_param) for name, value in response.parameters.items()}
        assert trust == {name: [answer[name] for answer in answers] for name in trust}
        assert set(trust) == {"prediction_set", "abstain", "ood_score", "measured_on"}


async def test_a_parameter_overrules_the_kind_of_the_files(remote: Client, files: np.ndarray) -> None:
    given = [tensor(files, "image", "BYTES")]
    result = await remote.infer("cifar10_image", given, parameters={"kind": "photographs"})
    measured = result.get_response().parameters["measured_on"].string_param
    assert json.loads(measured) == ["photographs"] * len(files)


async def test_the_classification_parameter_names_classes(remote: Client, served: Served, files: np.ndarray) -> None:
    result = await remote.infer("cifar10_image", [tensor(files, "image", "BYTES")], outputs=[wanted(classes=3)])
    for row, answer in zip(result.as_numpy("probabilities"), await predicted(served, files), strict=True):
        for item, prediction in zip(row, answer["predictions"][:3], strict=True):
            value, index, label = item.decode().split(":")
            assert float(value) == pytest.approx(prediction["probability"], abs=2e-6)
            assert (int(index), label) == (prediction["class_id"], prediction["label"])


@pytest.mark.parametrize(
    ("model", "version", "made", "output", "status", "text"),
    [
        ("other", "", tensor(NOTHING), "probabilities", "NOT_FOUND", "there are cifar10, cifar10_image"),
        ("", "", tensor(NOTHING), "probabilities", "NOT_FOUND", "there is no model ''"),
        ("cifar10", "2", tensor(NOTHING), "probabilities", "NOT_FOUND", "there is no version '2'"),
        ("cifar10", "", tensor(NOTHING), "labels", "INVALID_ARGUMENT", "outputs: this model has one, 'probabilities'"),
        ("cifar10", "", tensor(NOTHING, "image"), "probabilities", "INVALID_ARGUMENT", "inputs: this model has one"),
        ("cifar10", "", tensor(NOTHING[0]), "probabilities", "INVALID_ARGUMENT", "its shape is [-1, 32, 32, 3]"),
        ("cifar10", "", tensor(NOTHING[:0]), "probabilities", "INVALID_ARGUMENT", "1 to 32 images, not 0"),
        ("cifar10", "", tensor(NOTHING.repeat(33, 0)), "probabilities", "INVALID_ARGUMENT", "1 to 32 images, not 33"),
        (
            *("cifar10", "", tensor(NOTHING.astype(np.float32), datatype="FP32"), "probabilities"),
            *("INVALID_ARGUMENT", "its datatype is UINT8, not 'FP32'"),
        ),
        (
            *("cifar10_image", "", tensor(np.array([b"hello"], object), "image", "BYTES"), "probabilities"),
            *("INVALID_ARGUMENT", "image 0: "),
        ),
        (
            *("cifar10_image", "", tensor(np.array([b""], object), "image", "BYTES"), "probabilities"),
            *("INVALID_ARGUMENT", "image 0: "),
        ),
    ],
)
async def test_refusals_have_their_status_and_say_what_is_wrong(
    remote: Client, model: str, version: str, made: Any, output: str, status: str, text: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await remote.infer(model, [made], version, outputs=[wanted(name=output)])
    assert caught.value.status() == f"StatusCode.{status}"
    assert text in caught.value.message()


async def test_a_corrupt_image_is_refused_with_the_text_of_the_problem_document(
    remote: Client, served: Served, files: np.ndarray
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await remote.infer("cifar10_image", [tensor(np.array([files[0], files[1][:-40]], object), "image", "BYTES")])
    problem = (await served.http.post("/predict", content=files[1][:-40])).json()
    assert caught.value.message() == f"image 1: {problem['detail']}"


async def test_unknown_models_have_no_metadata_and_no_readiness(remote: Client) -> None:
    for call in (remote.get_model_metadata, remote.is_model_ready):
        for model in (("other",), ("cifar10", "2"), ("x" * 3000,)):
            with pytest.raises(InferenceServerException) as caught:
                await call(*model)
            assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_shared_memory_is_refused(remote: Client) -> None:
    made = tensor(NOTHING)
    made.set_shared_memory("region", 3072)
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        await remote.infer("cifar10", [made])


async def test_what_triton_has_beside_the_protocol_is_unimplemented(remote: Client) -> None:
    for call in (remote.get_model_config, remote.load_model, remote.get_inference_statistics):
        with pytest.raises(InferenceServerException) as caught:
            await call("cifar10")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_compressed_messages_are_refused(remote: Client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await remote.infer("cifar10", [tensor(NOTHING)], compression_algorithm="gzip")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
