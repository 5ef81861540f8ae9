"""Keys, limits, deadlines, health, reflection and the end of the service, over gRPC."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from starlette.testclient import TestClient

from app.api.open_inference.rpc import bridge
from app.api.open_inference.rpc.arrivals import QUICK
from app.api.open_inference.rpc.grpc_predict_v2_pb2 import (
    DESCRIPTOR,
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ServerReadyResponse,
)
from app.api.open_inference.rpc.server import CALLS
from app.bundle.reader import Bundle
from app.inference.sessions import Outputs, Session
from app.main import create_app
from app.settings import Settings, SettingsError
from app.telemetry import pipeline
from tests.app.api.open_inference.rpc.conftest import Served, serving
from tests.app.telemetry.receiver import receiving
from tests.conftest import SMALL_BUNDLE

SERVICE = "/inference.GRPCInferenceService"
INFER = f"{SERVICE}/ModelInfer"
IMAGE = 32 * 32 * 3
Input = ModelInferRequest.InferInputTensor
Serve = Callable[..., Any]


def good(**changes: Any) -> ModelInferRequest:
    images = Input(name="images", datatype="UINT8", shape=[1, 32, 32, 3])
    return ModelInferRequest(
        **{"model_name": "cifar10", "inputs": [images], "raw_input_contents": [bytes(IMAGE)], **changes}
    )


def typed(**contents: Any) -> ModelInferRequest:
    images = Input(name="images", datatype="UINT8", shape=[1, 32, 32, 3], contents=InferTensorContents(**contents))
    return good(inputs=[images], raw_input_contents=[])


def files(*contents: bytes, raw: bytes | None = None) -> ModelInferRequest:
    image = Input(name="image", datatype="BYTES", shape=[max(1, len(contents))])
    if raw is None:
        image.contents.bytes_contents.extend(contents)
    return good(model_name="cifar10_image", inputs=[image], raw_input_contents=[] if raw is None else [raw])


def shaped(*shape: int) -> ModelInferRequest:
    return good(inputs=[Input(name="images", datatype="UINT8", shape=shape)])


async def ask(served: Served, request: Any, path: str = INFER, **options: Any) -> ModelInferResponse:
    content = request if isinstance(request, bytes) else request.SerializeToString()
    async with served.channel() as channel:
        return ModelInferResponse.FromString(await channel.unary_unary(path)(content, **options))


async def refusal(served: Served, request: Any, path: str = INFER, **options: Any) -> tuple[str, str]:
    """Status and text."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, request, path, **options)
    return caught.value.code().name, caught.value.details()


class Held(Session):
    """Computes when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()

    def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
        self.begun.set()
        assert self.let.wait(30)
        return Outputs(np.zeros((len(images), 10), np.float32))

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 30)


class TestTypedContents:
    """A request with typed elements has a typed answer."""

    async def test_pixels_are_classified(self, served: Served, pixels: np.ndarray) -> None:
        raw = await ask(served, good(raw_input_contents=[pixels[:1].tobytes()]))
        answer = await ask(served, typed(uint_contents=pixels[0].ravel().tolist()))
        (output,) = answer.outputs
        assert not answer.raw_output_contents
        assert output.contents.fp32_contents == pytest.approx(
            np.frombuffer(raw.raw_output_contents[0], "<f4"), abs=1e-6
        )

    async def test_files_are_classified_and_classes_named(self, served: Served, cat: bytes) -> None:
        request = files(cat, cat)
        request.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
        (output,) = (await ask(served, request)).outputs
        assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
        assert len(output.contents.bytes_contents) == 4
        assert output.contents.bytes_contents[0].split(b":")[2].decode() in {"cat", "dog", "frog"}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"", "there is no model ''"),
        (b"\xff" * 20, "not in the encoding of protobuf"),
        (b"\x0a\x05cif", "cut short"),
        (b"\x0a\x02\xff\xfe", "the message is no inference.ModelInferRequest"),
        (good(inputs=[]), "not none"),
        (good(inputs=[Input()] * 900), "and 897 more"),
        (b"\x2a\x00" * 100_000, "too many fields"),
        (good(raw_input_contents=[]), "give either `contents` or `raw_input_contents`"),
        (typed(uint_contents=[0]), "`uint_contents` has 1 elements, the shape says 3072"),
        (typed(uint_contents=[256] * IMAGE), "UINT8 is from 0 to 255"),
        (typed(fp32_contents=[0.5] * IMAGE), "in `uint_contents`, not in `fp32_contents`"),
        (typed(bool_contents=[True] * (1 << 21)), "the numbers in `contents` have too many bytes"),
        (typed(bytes_contents=[b""] * 999), "too many fields"),
        (good(inputs=typed(uint_contents=[0]).inputs), "give either `contents` or `raw_input_contents`"),
        (good(raw_input_contents=[b"", b""]), "`raw_input_contents` has 2 tensors"),
        (good(raw_input_contents=[bytes(IMAGE - 1)]), "[1, 32, 32, 3] is 3072 bytes, not 3071"),
        (shaped(1 << 62, 1 << 62, 1 << 62, 3), "its shape is [-1, 32, 32, 3]"),
        (shaped(1 << 62, 32, 32, 3), "1 to 32 images, not 4611686018427387904"),
        (shaped(-1, 32, 32, 3), "inputs.0.shape.0: Input should be greater"),
        (shaped(*[1] * 2000), "its shape is"),
        (shaped(*[1] * 70_000), "too many bytes"),
        (shaped(), "its shape is"),
        (good(id="x" * 257), "at most 256 characters"),
        (good(parameters={"a": InferParameter(string_param="x" * 70_000)}), "too many bytes"),
        (files(), "`bytes_contents` has 0 elements"),
        (files(b"x", b"y", raw=b"\x01\0\0\0x"), "ends within element 1 of 2"),
        (files(raw=b"\xff\xff\xff\xff"), "ends within element 0 of 1"),
        (files(raw=b""), "ends within element 0 of 1"),
        (files(b"x"), "image 0: "),
    ],
)
async def test_hostile_messages_are_refused_and_the_service_lives(served: Served, request_: Any, text: str) -> None:
    status, said = await refusal(served, request_)
    assert status == ("NOT_FOUND" if request_ == b"" else "INVALID_ARGUMENT")
    assert text in said
    assert len(said) < 400
    assert (await ask(served, good())).model_name == "cifar10"


async def test_any_other_call_with_a_large_message_is_refused(served: Served) -> None:
    assert (await refusal(served, bytes(5000), f"{SERVICE}/ModelReady"))[0] == "INVALID_ARGUMENT"
    assert (await refusal(served, b"", f"{SERVICE}/Other"))[0] == "UNIMPLEMENTED"


async def test_the_routes_of_calls_are_none_over_http(served: Served) -> None:
    for call in CALLS:
        assert (await served.http.post(f"{SERVICE}/{call}", content=b"")).status_code == 404
    assert SERVICE not in (await served.http.get("/openapi.json")).text


async def test_an_id_is_given_and_metadata_name_the_request(served: Served) -> None:
    async with served.channel() as channel:
        call = channel.unary_unary(INFER)(good().SerializeToString(), metadata=(("x-request-id", "mine"),))
        assert ModelInferResponse.FromString(await call).id == "mine"
        told = dict(await call.trailing_metadata())
    assert told["x-request-id"] == "mine" and told["traceparent"].startswith("00-")


async def test_keys_are_metadata_and_probes_need_none(serve: Serve) -> None:
    served = await serve(api_keys="secret")
    for metadata in ((), (("authorization", "Bearer wrong"),), (("x-api-key", "wrong"),)):
        status, said = await refusal(served, good(), metadata=metadata)
        assert (status, said) == ("UNAUTHENTICATED", "send a known key in the header `Authorization: Bearer <key>`")
    for metadata in ((("authorization", "Bearer secret"),), (("x-api-key", "secret"),)):
        assert (await ask(served, good(), metadata=metadata)).model_name == "cifar10"
    for probe in (f"{SERVICE}/ServerLive", f"{SERVICE}/ServerReady", "/grpc.health.v1.Health/Check"):
        await ask(served, b"", probe)
    assert (await refusal(served, b"", f"{SERVICE}/ServerMetadata"))[0] == "UNAUTHENTICATED"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reflected(served, ServerReflectionRequest(list_services=""))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_above_the_limit_of_bodies_is_refused(serve: Serve) -> None:
    served = await serve(max_request_bytes=10_000, max_file_bytes=5_000)
    assert (await refusal(served, files(bytes(10_000))))[0] == "RESOURCE_EXHAUSTED"
    assert await refusal(served, files(bytes(5_001))) == (
        "INVALID_ARGUMENT",
        "image 0: the file has 5001 bytes, at most 5000 are accepted",
    )


async def test_a_full_queue_refuses_a_call_before_its_message_has_come(serve: Serve) -> None:
    served = await serve(queue_images=8)
    with served.app.state.service.places.reserve(8):
        async with served.channel() as channel:
            call = channel.stream_unary(INFER)()  # it sends nothing
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call.details() == "the queue of images is full"
            assert {("retry-after", "1"), ("problem-code", "overloaded")} <= set(await call.trailing_metadata())
    assert (await ask(served, good())).model_name == "cifar10"


async def test_a_message_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    served = await serve(deadline_seconds=0.4)
    async with served.channel() as channel:
        call = channel.stream_unary(INFER)()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "too slowly" in await call.details()


async def test_a_client_that_leaves_as_it_is_answered_makes_no_error_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for message in ("ExecuteBatchError raised in core by servicer method [/]", "Unexpected [ValueError] raised"):
        logging.getLogger("grpc._cython.cygrpc").error(message)
    assert [record.getMessage() for record in caplog.records] == ["Unexpected [ValueError] raised"]


async def test_deadlines_of_the_service_and_of_the_client_end_the_work(serve: Serve) -> None:
    session = Held()
    served = await serve(session, deadline_seconds=2)  # in half of it the message must have arrived
    try:
        status, said = await refusal(served, good())
        assert (status, "within the deadline" in said) == ("DEADLINE_EXCEEDED", True)
        assert (await refusal(served, good(), timeout=0.2))[0] == "DEADLINE_EXCEEDED"
        assert (await refusal(served, good(), timeout=0))[0] == "DEADLINE_EXCEEDED"
    finally:
        session.let.set()
    while served.app.state.service.places.reserved:
        await asyncio.sleep(0.01)


async def test_a_client_that_leaves_cancels_its_work(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    session = Held()
    served = await serve(session)
    with caplog.at_level(logging.INFO, "app.access"):
        async with served.channel() as channel:
            call = channel.unary_unary(INFER)(good().SerializeToString())
            waiting = asyncio.ensure_future(call.wait_for_connection())
            await session.until_begun()
            call.cancel()
            await asyncio.wait({waiting})
            while served.app.state.service.places.reserved or not caplog.records:
                await asyncio.sleep(0.01)
    session.let.set()
    assert [record.fields["outcome"] for record in caplog.records] == ["client_gone"]


async def test_calls_that_are_given_up_before_their_message_came_free_their_places(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        async with served.channel() as channel:
            calls = [channel.stream_unary(INFER)() for _ in range(8 * QUICK)]
            await asyncio.gather(*(call.wait_for_connection() for call in calls[:1]))
            for call in calls:
                call.cancel()
        assert (await ask(served, good(), timeout=2)).model_name == "cifar10"
    assert {record.fields["outcome"] for record in caplog.records} <= {"client_gone", "ok"}


async def test_calls_are_logged_and_counted_under_their_names(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        await ask(served, b"", f"{SERVICE}/ServerReady")
        await ask(served, good())
        await refusal(served, good(model_name="other"))
    answered, refused = (record.fields for record in caplog.records if record.name == "app.access")
    assert (answered["route"], answered["model"], answered["images"]) == (INFER, "cifar10", 1)
    assert (refused["route"], refused["outcome"], refused["client"]) == (INFER, "not_found", "127.0.0.1")
    assert f'predict_requests_total{{outcome="not_found",route="{INFER}"}}' in (await served.http.get("/metrics")).text


async def test_a_call_is_a_trace_like_a_request(
    loaded: tuple[Bundle, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver, monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        patch.setenv("OTEL_METRICS_EXPORTER", "none")
        patch.setattr(pipeline, "FLUSH_SECONDS", 60)
        async with serving(loaded) as served, served.channel() as channel:
            call = channel.unary_unary(INFER)(good().SerializeToString())
            await call
            traceparent = dict(await call.trailing_metadata())["traceparent"]
    names = {span.name for span in receiver.spans}
    assert names == {f"POST {INFER}", "read", "queue", "inference"}
    assert {span.trace_id.hex() for span in receiver.spans} == {traceparent.split("-")[1]}


async def test_further_models_answer_under_their_names(serve: Serve) -> None:
    served = await serve(model_dirs={"small": SMALL_BUNDLE})
    answer = await ask(served, good(model_name="small"))
    assert answer.model_name == "small"
    assert answer.raw_output_contents != (await ask(served, good())).raw_output_contents


async def test_forwarded_addresses_count_from_trusted_proxies_alone(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for proxies, seen in (("", "127.0.0.1"), ("127.0.0.1", "10.1.2.3")):
        served = await serve(**({"trusted_proxies": proxies} if proxies else {}))
        caplog.clear()
        with caplog.at_level(logging.INFO, "app.access"):
            await ask(served, good(), metadata=(("x-forwarded-for", "10.1.2.3"),))
        assert [record.fields["client"] for record in caplog.records] == [seen]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("ipv6:%5B::1%5D:5000", ("::1", 5000)),
        ("ipv6:[fe80::1%25eth0]:1", ("fe80::1%eth0", 1)),
        ("unix:", None),
        ("", None),
    ],
)
def test_a_client_is_known_by_its_address(peer: str, client: tuple[str, int] | None) -> None:
    assert bridge.client_of(peer) == client


async def reflected(served: Served, *questions: ServerReflectionRequest) -> list[ServerReflectionResponse]:
    async with served.channel() as channel:
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        answers = call(iter([question.SerializeToString() for question in questions]))
        return [ServerReflectionResponse.FromString(answer) async for answer in answers]


async def test_reflection_describes_the_services(served: Served) -> None:
    names = [SERVICE[1:], "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    listed, *described = await reflected(
        served,
        ServerReflectionRequest(list_services=""),
        *(ServerReflectionRequest(file_containing_symbol=name) for name in (*names, "other")),
    )
    assert sorted(service.name for service in listed.list_services_response.service) == sorted(names)
    *found, missing = described
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in found)
    assert found[0].file_descriptor_response.file_descriptor_proto[0] == DESCRIPTOR.serialized_pb
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def watched(served: Served, name: str) -> AsyncIterator[int]:
    async with served.channel() as channel:
        call = channel.unary_stream("/grpc.health.v1.Health/Watch")
        async for answer in call(HealthCheckRequest(service=name).SerializeToString()):
            yield HealthCheckResponse.FromString(answer).status


async def health(served: Served, name: str) -> int:
    async with served.channel() as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        return HealthCheckResponse.FromString(await call(HealthCheckRequest(service=name).SerializeToString())).status


async def test_health_follows_readiness(serve: Serve) -> None:
    served = await serve()
    service = served.app.state.service
    async with aclosing(watched(served, "")) as watching:
        for draining, expected in ((False, HealthCheckResponse.SERVING), (True, HealthCheckResponse.NOT_SERVING)):
            service.draining = draining
            assert await anext(watching) == expected
            assert {await health(served, name) for name in ("", SERVICE[1:])} == {expected}
            async with served.channel() as channel:
                ready = await channel.unary_unary(f"{SERVICE}/ServerReady")(b"")
            assert ServerReadyResponse.FromString(ready).ready is not draining
        assert (await refusal(served, HealthCheckRequest(service="x"), "/grpc.health.v1.Health/Check"))[
            0
        ] == "NOT_FOUND"
        async with aclosing(watched(served, "x")) as other:
            assert await anext(other) == HealthCheckResponse.SERVICE_UNKNOWN
        await served.app.state.rpc.stop(30)
        assert [status async for status in watching] == []  # the end of the service ends it


class TestStop:
    async def test_what_is_under_way_is_answered_and_nothing_new_is_taken(self, serve: Serve) -> None:
        session = Held()
        served = await serve(session)
        asked = asyncio.ensure_future(ask(served, good()))
        await session.until_begun()
        stopping = asyncio.ensure_future(served.app.state.rpc.stop(30))
        while (await refusal(served, good(), timeout=0.5))[0] != "UNAVAILABLE":
            pass
        session.let.set()
        assert (await asked).model_name == "cifar10"
        await stopping

    async def test_what_is_not_answered_in_time_is_unavailable(self, serve: Serve) -> None:
        session = Held()
        served = await serve(session)
        asked = asyncio.ensure_future(refusal(served, good()))
        await session.until_begun()
        served.app.state.service.draining = True
        await served.app.state.rpc.stop(0)
        session.let.set()
        assert await asked == ("UNAVAILABLE", "the service is shutting down")


async def test_a_port_that_is_taken_is_named(serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"^HOST, GRPC_PORT: cannot serve at '127.0.0.1', port {port}$"):
            await serve(grpc_port=port)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [name for name in sys.modules if name.startswith("app.api.open_inference.rpc")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingsError, match=r"^GRPC_PORT needs the extra 'grpc' \(.*\)$"):
        create_app(Settings(grpc_port=0))


def test_without_a_port_there_is_nothing_of_it(client: TestClient) -> None:
    assert client.app.state.rpc is None
    assert client.post(INFER).status_code == 404
