"""The six calls, the health check and reflection, as routes: only app.api.open_inference.rpc.bridge calls them."""

import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from starlette.responses import Response

from .... import __version__
from ....errors import NotFound, Unavailable
from ...bodies import read_body
from ...paths import GRPC
from ...request_context import context_of
from ...service import RunningService, Service
from .. import inference
from ..models import ServedModel
from ..responses import output_of, trust_of
from . import grpc_predict_v2_pb2 as protocol
from .messages import Kind, inference_request, inference_response, read
from .wire import split

EXTENSION = "grpc"  # in a scope's `extensions`, of a request that came as a call
EXTENSIONS = ["classification", "parameters"]  # of the protocol, as far as the six calls have them
SERVICES = ("inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")
HEALTHY_NAMES = ("", SERVICES[0])  # what the health check knows
MAX_BYTES = 4096  # of a message that holds names alone


async def _only_calls(request: Request) -> None:
    if EXTENSION not in request.scope.get("extensions", {}):
        raise NotFound(NotFound.title)


router = APIRouter(include_in_schema=False, dependencies=[Depends(_only_calls)])


@router.post(f"{GRPC}/ServerLive")
async def server_live() -> Response:
    return _answer(protocol.ServerLiveResponse(live=True))


@router.post(f"{GRPC}/ServerReady")
async def server_ready(service: RunningService) -> Response:
    return _answer(protocol.ServerReadyResponse(ready=is_ready(service)))


@router.post(f"{GRPC}/ModelReady")
async def model_ready(request: Request, service: RunningService) -> Response:
    asked = await _read(request, protocol.ModelReadyRequest)
    _served(service, asked.name, asked.version)
    return _answer(protocol.ModelReadyResponse(ready=is_ready(service)))


@router.post(f"{GRPC}/ServerMetadata")
async def server_metadata() -> Response:
    return _answer(
        protocol.ServerMetadataResponse(name="cifar10-classifier", version=__version__, extensions=EXTENSIONS)
    )


@router.post(f"{GRPC}/ModelMetadata")
async def model_metadata(request: Request, service: RunningService) -> Response:
    asked = await _read(request, protocol.ModelMetadataRequest)
    return _answer(protocol.ModelMetadataResponse(**_served(service, asked.name, asked.version).metadata()))


@router.post(f"{GRPC}/ModelInfer")
async def model_infer(request: Request, service: RunningService) -> Response:
    context = context_of(request.scope)
    context.began = time.monotonic()
    async with read_body(request, service.settings.max_request_bytes) as body:
        context.read = time.monotonic()
        head, tensors = split(body)
        asked = read(protocol.ModelInferRequest, head)
        served = _served(service, asked.model_name, asked.model_version)
        with inference.counting_failures(served, context.began), service.repository.models[served.of] as model:
            content = await inference.infer(
                request,
                service,
                served,
                model,
                lambda: inference_request(asked, tensors, served),
                lambda parsed, results: inference_response(
                    parsed,
                    output_of(parsed, [result.probabilities for result in results], served),
                    trust_of(results),
                    served,
                    context.request_id,
                ),
            )
    return Response(content)


@router.post("/grpc.health.v1.Health/Check")
async def check(request: Request, service: RunningService) -> Response:
    asked = await _read(request, HealthCheckRequest)
    if asked.service not in HEALTHY_NAMES:
        raise NotFound(f"there is no service {asked.service[:40]!r}")
    return _answer(HealthCheckResponse(status=health_of(service, asked.service)))


@router.post("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
async def reflect(request: Request) -> Response:
    """One question of the stream."""
    asked = await _read(request, ServerReflectionRequest)

    async def questions() -> AsyncIterator[ServerReflectionRequest]:
        yield asked

    async for answer in _reflection().ServerReflectionInfo(questions(), None):
        return _answer(answer)
    raise AssertionError("reflection answers every question")


def is_ready(service: Service) -> bool:
    try:
        service.check_ready()
    except Unavailable:
        return False
    return True


def health_of(service: Service, name: str) -> "HealthCheckResponse.ServingStatus":
    """What the health service says of a service's name."""
    if name not in HEALTHY_NAMES:
        return HealthCheckResponse.SERVICE_UNKNOWN
    return HealthCheckResponse.SERVING if is_ready(service) else HealthCheckResponse.NOT_SERVING


async def _read(request: Request, kind: type[Kind]) -> Kind:
    async with read_body(request, MAX_BYTES) as body:
        return read(kind, bytes(body))


def _served(service: Service, name: str, version: str) -> ServedModel:
    """Raises NotFound. Without a version, the model's only one is meant."""
    served = inference.served_model(service, name)
    if version:
        inference.check_version(version)
    return served


def _answer(message: Message) -> Response:
    return Response(message.SerializeToString())


def _reflection() -> reflection.ReflectionServicer:
    """It has a pool of its own, because the protocol's definition is in none that other packages see."""
    pool = DescriptorPool()
    for file in (protocol.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return reflection.ReflectionServicer(SERVICES, pool=pool)
