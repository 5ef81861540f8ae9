"""/v2: the Open Inference Protocol, for tritonclient and other clients of the protocol.

It shares the engine, queue, limits and errors with /predict. Query parameters and Content-Type are ignored: clients
send none, or a wrong one. Answers are never compressed: tritonclient's asyncio client cannot read compressed ones.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from ... import __version__
from ...errors import InvalidParameter, MalformedRequest, NotFound
from ..bodies import read_body
from ..fair_share import check_places
from ..problems import PROBLEM_RESPONSES
from ..request_context import context_of
from ..routes import health
from ..schemas import BINARY, ProblemDocument
from ..service import RunningService, Service
from . import inference
from .documents import (
    InferenceResponse,
    LoadedBundle,
    ModelConfiguration,
    ModelMetadata,
    ModelNames,
    ModelReady,
    RepositoryEntry,
    ServerLive,
    ServerMetadata,
    ServerReady,
    StatisticsOfModels,
)
from .models import VERSION, ServedModel
from .responses import output_of, render, trust_of
from .schema import MESSAGE


def _operation_id(route: APIRoute) -> str:
    return f"v2_{route.name}"


router = APIRouter(prefix="/v2", tags=["open inference protocol"], generate_unique_id_function=_operation_id)

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"]
REPOSITORY = "model_repository"  # the extension that ADMIN_KEYS adds
MAX_LOAD_BYTES = 4096
HEADER_LENGTH = "Inference-Header-Content-Length"

BODY = {
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": "Bytes of JSON before the binary tensors; by default the body is JSON alone.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "description": f"JSON, and after it the binary tensors; {HEADER_LENGTH} says where the JSON ends.",
        "content": {
            "application/json": {"schema": MESSAGE},
            "application/octet-stream": {"schema": BINARY},
        },
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": BINARY}}},
    **PROBLEM_RESPONSES,
}
LOAD_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "ADMIN_KEYS has no such key."},
    404: {"description": "There is no such model, or loading is off."},
    409: {"description": "Another model is being loaded, or this one cannot be: it goes on as it was."},
    413: {"description": "The body is larger than an empty one may be."},
    422: {"description": "A load has no parameters."},
    504: {"description": "The load goes on after the deadline."},
}
NO_MODEL: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such model, or version of it."}}


async def _served(service: RunningService, model: str) -> ServedModel:
    return inference.served_model(service, model)


async def _check_version(version: str) -> None:
    inference.check_version(version)


Model = Annotated[ServedModel, Depends(_served)]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def _of_model(method: str, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """A route of a model, with and without its version in the path."""
    options["responses"] = NO_MODEL | options.get("responses", {})

    def add(endpoint: Endpoint) -> Endpoint:
        router.add_api_route(f"/models/{{model}}{path}", endpoint, methods=[method], **options)
        router.add_api_route(
            f"/models/{{model}}/versions/{{version}}{path}",
            endpoint,
            methods=[method],
            name=f"{endpoint.__name__}_of_version",
            dependencies=[Depends(_check_version)],
            **options,
        )
        return endpoint

    return add


@router.get("", response_model=ServerMetadata)
@router.get("/", include_in_schema=False)  # so in the protocol's OpenAPI document; clients follow no redirect
async def server(service: RunningService) -> dict[str, Any]:
    """The server's name and version, and the protocol's extensions that it supports."""
    return {"name": "cifar10-classifier", "version": __version__, "extensions": _extensions(service)}


@router.get("/health/live", response_model=ServerLive)
async def live() -> dict[str, bool]:
    """As /livez."""
    return {"live": True}


@router.get("/health/ready", response_model=ServerReady, responses={503: {"model": ProblemDocument}})
async def ready(service: RunningService) -> dict[str, bool]:
    """As /readyz."""
    await health.readyz(service)
    return {"ready": True, "live": True}


@router.get("/models", response_model=ModelNames)
async def models(service: RunningService) -> dict[str, list[str]]:
    """The models' names."""
    return {"models": list(service.models)}


@router.get("/models/stats", response_model=StatisticsOfModels)
async def all_statistics(service: RunningService) -> dict[str, Any]:
    """The statistics of all models."""
    return {"model_stats": await service.statistics(service.models.values())}


@router.post("/repository/index", response_model=list[RepositoryEntry])
async def repository(service: RunningService) -> list[dict[str, str]]:
    """The models, whether they are ready, and why the last load failed. The request's body is ignored."""
    entries = []
    for name, served in service.models.items():
        alive = service.repository.models[served.of].classifier.engine.alive
        reason = service.repository.reason(served.of) if alive else "died"
        entries.append(
            {"name": name, "version": VERSION, "state": "READY" if alive else "UNAVAILABLE", "reason": reason}
        )
    return entries


@router.post("/repository/models/{model}/load", response_model=LoadedBundle, responses=LOAD_PROBLEMS)
async def load(request: Request, service: RunningService, model: str) -> dict[str, str]:
    """Load the model's folder anew and let what it holds answer, once it is verified; on any fault nothing changes.

    Needs one of ADMIN_KEYS. The body is empty or an empty object: where the folder is, is a setting.
    """
    if not service.settings.admin_keys:
        raise NotFound(f"loading needs ADMIN_KEYS, which are not set; supported extensions: {', '.join(EXTENSIONS)}")
    name = (await _served(service, model)).of
    async with read_body(request, MAX_LOAD_BYTES) as body:
        _check_empty(body)
    loaded = await service.load(name, context_of(request.scope).deadline)
    manifest = loaded.bundle.manifest
    context_of(request.scope).log = {"model": name, "version": manifest.version}
    return {"name": model, "bundle": manifest.name, "version": manifest.version, "digest": manifest.digest}


def _check_empty(body: bytearray) -> None:
    """Raises InvalidParameter for parameters, as of Triton, which takes a model's files here."""
    try:
        message = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or any(message.values()):
        raise InvalidParameter("a load has no parameters: send no body, or {}")


@_of_model("GET", "", response_model=ModelMetadata)
async def metadata(model: Model) -> dict[str, Any]:
    """The model's input and output tensors."""
    return model.metadata()


@_of_model("GET", "/ready", response_model=ModelReady, responses={503: {"model": ProblemDocument}})
async def model_ready(service: RunningService, model: Model) -> dict[str, Any]:
    """Whether the model is ready: it is whenever the server is."""
    await health.readyz(service)
    return {"name": model.name, "ready": True}


@_of_model("GET", "/config", response_model=ModelConfiguration)
async def config(model: Model) -> dict[str, Any]:
    """Triton's model configuration."""
    return model.config()


@_of_model("GET", "/stats", response_model=StatisticsOfModels)
async def statistics(service: RunningService, model: Model) -> dict[str, Any]:
    """Counts and durations since the model was loaded (`ns`: nanoseconds, `last_inference`: Unix milliseconds)."""
    return {"model_stats": await service.statistics([model])}


@_of_model("POST", "/infer", response_model=InferenceResponse, responses=ANSWERS, openapi_extra=BODY)
async def infer(request: Request, service: RunningService, model: str) -> Response:
    """Calibrated probabilities, or with the output parameter `classification` the best classes by name."""
    started = time.monotonic()
    served = await _served(service, model)
    with inference.counting_failures(served, started):
        return await _infer(request, service, served, started)


@router.api_route("/repository/models/{model}/{action}", methods=["POST"], include_in_schema=False)
@router.api_route("/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/models/{model}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/logging", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/systemsharedmemory/{action:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/cudasharedmemory/{action:path}", methods=["GET", "POST"], include_in_schema=False)
async def absent(service: RunningService) -> Response:
    """Triton's controls for operators; the settings take their place here."""
    raise NotFound(
        "unloading, tracing, logging and shared memory cannot be controlled over HTTP here;"
        f" supported extensions: {', '.join(_extensions(service))}"
    )


def _extensions(service: Service) -> list[str]:
    return [*EXTENSIONS, *([REPOSITORY] if service.settings.admin_keys else [])]


async def _infer(request: Request, service: Service, served: ServedModel, started: float) -> Response:
    header_length = _header_length(request)
    context = context_of(request.scope)
    context.began = started
    with service.repository.models[served.of] as model:
        check_places(request, served.views)  # a request holds at least one image; its body tells how many more
        async with read_body(request, service.settings.max_request_bytes) as body:
            context.read = time.monotonic()
            content, json_length = await inference.infer(
                request,
                service,
                served,
                model,
                lambda: service.parser.parse(body, header_length, served, context.deadline, context.client),
                lambda asked, results: render(
                    asked,
                    output_of(asked, [result.probabilities for result in results], served),
                    trust_of(results),
                    served,
                    context.request_id,
                ),
            )
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(json_length)})


def _header_length(request: Request) -> int | None:
    value = request.headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", value):
        raise MalformedRequest(f"{HEADER_LENGTH} is a number of bytes, not {value[:40]!r}")
    return int(value)
