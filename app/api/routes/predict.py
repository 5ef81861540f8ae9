"""POST /predict: one image in, its most probable classes out. POST /predict/batch: the same for up to 32."""

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request

from ...errors import InvalidBatch, InvalidParameter, Problem
from ...imaging.decode import check_size
from ...inference.classifier import Classification
from ..middleware.limits import unless_gone
from ..middleware.prefix import prefix_of
from ..problems import problem_document
from ..schemas import (
    BatchFault,
    BatchProblemDocument,
    BatchResponse,
    ImageFailure,
    ModelName,
    PredictResponse,
    ProblemDocument,
    Timing,
)
from ..service import ServiceState
from ..uploads import Upload, read_image, read_images

router = APIRouter(tags=["predict"])

BATCH_IMAGES = 32

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The image, as a multipart part named `file` or as the raw body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": BINARY},
                    "additionalProperties": False,
                },
            },
            "application/octet-stream": {"schema": BINARY},
            "image/*": {"schema": BINARY},
        },
    }
}
BATCH_BODY = {
    "requestBody": {
        "required": True,
        "description": "The images, as multipart parts that are all named `files`.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": BINARY, "minItems": 1, "maxItems": BATCH_IMAGES}
                    },
                    "additionalProperties": False,
                },
            },
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {"application/problem+json": {"schema": schema}}}
    for schema in [{"$ref": "#/components/schemas/ProblemDocument"}]
    for status, description in {
        400: "The request cannot be parsed.",
        401: "An API key is needed.",
        408: "The body came too slowly.",
        413: "Too many bytes or pixels.",
        415: "Not a format that is accepted.",
        422: "No image, an image that cannot be decoded, or a parameter out of range.",
        429: "The service is busy: try again after Retry-After seconds.",
        503: "The service is shutting down or its engine has died.",
        504: "No answer within the deadline.",
    }.items()
}
BATCH_PROBLEM = {
    "description": "Images that cannot be used, each named in `errors`; no image, or a parameter out of range.",
    "model": BatchProblemDocument,
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/BatchProblemDocument"}}},
}


class Wanted(NamedTuple):
    """What of an answer goes over the wire."""

    top_k: int
    coverage: float | None


TopK = Annotated[int, Query(ge=1, description="How many classes to name, at most all.")]
Coverage = Annotated[
    float | None,
    Query(description="Of the prediction sets; `GET /model` lists the model's levels and its default."),
]


def _wanted(service: ServiceState, top_k: int, coverage: float | None) -> Wanted:
    """Raises InvalidParameter for what this model does not have."""
    classes, levels = len(service.bundle.manifest.classes), service.classifier.levels
    if top_k > classes:
        raise InvalidParameter(f"top_k: it must be from 1 to {classes} (given: {top_k})")
    if coverage is not None and coverage not in levels:
        allowed = f"it must be one of {', '.join(map(str, levels))}" if levels else "this model has no prediction sets"
        raise InvalidParameter(f"coverage: {allowed} (given: {coverage})")
    return Wanted(top_k, coverage)


# Without dependencies, other than other routes: to resolve one takes a tenth of the event loop's time for a request.
@router.post("/predict", responses={**PROBLEMS, 500: {"model": ProblemDocument}}, openapi_extra=BODY)
async def predict(request: Request, top_k: TopK = 5, coverage: Coverage = None) -> PredictResponse:
    """Which classes the image shows, most probable first, and how far to trust that."""
    started = time.monotonic()
    service: ServiceState = request.app.state.service
    wanted = _wanted(service, top_k, coverage)
    with service.engine.reserve(service.settings.views):
        content = await read_image(request, service.settings.max_file_bytes)
        read_seconds = time.monotonic() - started
        result = await unless_gone(request, service.classifier.classify(content, request.state.deadline))
    total_seconds = time.monotonic() - started
    service.observe([result], read_seconds=read_seconds, total_seconds=total_seconds)
    request.state.log = {
        "label": service.classifier.classes[result.class_id],
        "confidence": round(result.confidence, 4),
        "abstain": result.abstain,
    }
    return PredictResponse(
        model=_model_name(service),
        timing_ms=_timing([result], total_seconds),
        **dict(service.classifier.result(result, *wanted)),
    )


@router.post(
    "/predict/batch",
    responses={**PROBLEMS, 422: BATCH_PROBLEM, 500: {"model": ProblemDocument}},
    openapi_extra=BATCH_BODY,
)
async def predict_batch(
    request: Request,
    partial: Annotated[bool, Query(description="Answer for the good images although others are bad.")] = False,
    top_k: TopK = 5,
    coverage: Coverage = None,
) -> BatchResponse:
    """Which classes each of 1 to 32 images shows, in the order of the images, and how far to trust that.

    One image that cannot be used refuses the batch, and the answer names every such image;
    with `partial=true` it fails alone, with a problem document in its place.
    """
    started = time.monotonic()
    service: ServiceState = request.app.state.service
    wanted = _wanted(service, top_k, coverage)
    views = service.settings.views
    most = min(BATCH_IMAGES, service.settings.queue_images // views)
    # How many images will come is known only when they are here: room for the most, and the rest is given back.
    with service.engine.reserve(most * views) as keep:
        uploads = await read_images(request, most)
        keep(len(uploads) * views)
        read_seconds = time.monotonic() - started
        results = await unless_gone(request, _classify_all(service, uploads, request.state.deadline))
    good = [result for result in results if not isinstance(result, Problem)]
    if len(good) < len(results) and not partial:
        raise _refusal(uploads, results)
    total_seconds = time.monotonic() - started
    service.observe(good, read_seconds=read_seconds, total_seconds=total_seconds)
    request.state.log = {
        "images": len(results),
        "failed": len(results) - len(good),
        "abstained": sum(bool(result.abstain) for result in good),
    }
    return BatchResponse(
        model=_model_name(service),
        results=[
            ImageFailure(error=problem_document(result, request.state.request_id, prefix_of(request.scope)))
            if isinstance(result, Problem)
            else service.classifier.result(result, *wanted)
            for result in results
        ],
        timing_ms=_timing(good, total_seconds),
    )


async def _classify_all(
    service: ServiceState, uploads: Iterable[Upload], deadline: float
) -> list[Classification | Problem]:
    """In order; a Problem where an image is at fault. Raises the first error that is not an image's own."""

    async def classify(content: bytes) -> Classification:
        check_size(content, service.settings.max_file_bytes)
        return await service.classifier.classify(content, deadline)

    # Each for itself: the engine's workers share them, and decoding overlaps with computing.
    outcomes = await asyncio.gather(*(classify(upload.content) for upload in uploads), return_exceptions=True)
    results: list[Classification | Problem] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not (isinstance(outcome, Problem) and outcome.status < 500):
            raise outcome
        results.append(outcome)
    return results


def _refusal(uploads: Iterable[Upload], results: list[Classification | Problem]) -> InvalidBatch:
    errors = [
        BatchFault(code=result.code, detail=result.detail, index=index, filename=upload.filename)
        for index, (upload, result) in enumerate(zip(uploads, results, strict=True))
        if isinstance(result, Problem)
    ]
    first = errors[0]
    return InvalidBatch(
        f"{len(errors)} of {len(results)} images cannot be used; the first is number {first.index}: {first.detail}",
        [error.model_dump(exclude_none=True) for error in errors],
    )


def _model_name(service: ServiceState) -> ModelName:
    return ModelName(name=service.bundle.manifest.name, version=service.bundle.manifest.version)


def _timing(results: list[Classification], total_seconds: float) -> Timing:
    """The longest of each stage, in milliseconds."""

    def longest(seconds: Iterable[float]) -> float:
        return round(max(seconds, default=0.0) * 1000, 3)

    return Timing(
        decode=longest(result.decode_seconds for result in results),
        queue=longest(result.queue_seconds for result in results),
        inference=longest(result.inference_seconds for result in results),
        total=longest([total_seconds]),
    )
