"""POST /predict: one image in, its most probable classes out. POST /predict/batch: the same for up to 32."""

import time
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from ...errors import InvalidBatch, Problem
from ...imaging.kinds import Kind
from ...inference.answers import Classification
from ...inference.classifier import DEFAULT_TOP_K
from ...inference.loaded_model import LoadedModel
from ..disconnect import unless_gone
from ..fair_share import hold_places
from ..paths import prefix_of
from ..problems import PROBLEM_RESPONSES, problem_document
from ..query import check_query
from ..request_context import context_of
from ..schemas import (
    BINARY,
    BatchFault,
    BatchProblemDocument,
    BatchResponse,
    ImageFailure,
    ModelName,
    PredictResponse,
    ProblemDocument,
    Timing,
)
from ..service import ModelQuery, Service
from ..uploads import MAX_IMAGES, Upload, most_images, read_image, read_images

router = APIRouter(tags=["predict"])

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
                    "properties": {"files": {"type": "array", "items": BINARY, "minItems": 1, "maxItems": MAX_IMAGES}},
                    "additionalProperties": False,
                },
            },
        },
    }
}
BATCH_PROBLEM = {
    "description": "Images that cannot be used, each named in `errors`; no image, or a parameter out of range.",
    "model": BatchProblemDocument,
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/BatchProblemDocument"}}},
}

MAX_FILENAME_CHARACTERS = 255  # of an answer, which would otherwise grow with the names that a client sends

TopK = Annotated[int, Query(ge=1, description="How many classes to name, at most all.")]
Coverage = Annotated[
    float | None,
    Query(description="Coverage of the prediction sets; `GET /model` lists the model's levels and its default."),
]

ImageKind = Annotated[
    Kind | None,
    Query(description="Treat the image as one of this kind. By default its size decides: a side of 64 pixels or more."),
]


# Unlike other routes it has no FastAPI dependencies: each would take a tenth of the event loop's time for a request.
@router.post("/predict", responses={**PROBLEM_RESPONSES, 500: {"model": ProblemDocument}}, openapi_extra=BODY)
async def predict(
    request: Request,
    top_k: TopK = DEFAULT_TOP_K,
    coverage: Coverage = None,
    kind: ImageKind = None,
    model: ModelQuery = None,
) -> PredictResponse:
    """Which classes the image shows, most probable first, and how far to trust that."""
    check_query(request)
    service: Service = request.app.state.service
    context = context_of(request.scope)
    with service.model(model) as asked:
        asked.classifier.check(top_k, coverage)
        context.began = time.monotonic()
        content = await read_image(request, service.settings.max_file_bytes)
        context.read = time.monotonic()
        async with hold_places(request, service.settings.views):
            classifying = asked.classifier.classify(content, context.deadline, context.client, kind, here=context.alone)
            result = await unless_gone(request, classifying)
    total_seconds = service.observe(context, asked, [result])
    context.log = log_of(model) | {
        "label": result.label,
        "confidence": round(result.confidence, 4),
        "abstain": result.abstain,
    }
    answer = result.answer(top_k, coverage)
    if service.feedback:
        service.feedback.remember(context.request_id, answer, result, asked.classifier.labels)
    return PredictResponse(model=_name_of(asked), timing_ms=_timing([result], total_seconds), **dict(answer))


@router.post(
    "/predict/batch",
    responses={**PROBLEM_RESPONSES, 422: BATCH_PROBLEM, 500: {"model": ProblemDocument}},
    openapi_extra=BATCH_BODY,
)
async def predict_batch(
    request: Request,
    partial: Annotated[bool, Query(description="Classify the usable images even if others cannot be used.")] = False,
    top_k: TopK = DEFAULT_TOP_K,
    coverage: Coverage = None,
    kind: ImageKind = None,
    model: ModelQuery = None,
) -> BatchResponse:
    """Which classes each of 1 to 32 images shows, in the order of the images, and how far to trust that.

    One image that cannot be used refuses the batch, and the answer names every such image;
    with `partial=true` it fails alone, with a problem document in its place.
    """
    check_query(request)
    service: Service = request.app.state.service
    context = context_of(request.scope)
    with service.model(model) as asked:
        asked.classifier.check(top_k, coverage)
        views = service.settings.views
        most = most_images(service.settings.queue_images, views)
        context.began = time.monotonic()
        uploads = await read_images(request, most)
        context.read = time.monotonic()
        async with hold_places(request, len(uploads) * views):
            contents = [upload.content for upload in uploads]
            classifying = asked.classifier.classify_batch(contents, context.deadline, context.client, kind)
            results = await unless_gone(request, classifying)
    good = [result for result in results if not isinstance(result, Problem)]
    if len(good) < len(results) and not partial:
        raise _refusal(uploads, results)
    total_seconds = service.observe(context, asked, good)
    context.log = log_of(model) | {
        "images": len(results),
        "failed": len(results) - len(good),
        "abstained": sum(bool(result.abstain) for result in good),
    }
    return BatchResponse(
        model=_name_of(asked),
        results=[
            ImageFailure(error=problem_document(result, context.request_id, prefix_of(request.scope)))
            if isinstance(result, Problem)
            else result.answer(top_k, coverage)
            for result in results
        ],
        timing_ms=_timing(good, total_seconds),
    )


def _refusal(uploads: Iterable[Upload], results: list[Classification | Problem]) -> InvalidBatch:
    errors = [
        BatchFault(
            code=result.code,
            detail=result.detail,
            index=index,
            filename=upload.filename and upload.filename[:MAX_FILENAME_CHARACTERS],
        )
        for index, (upload, result) in enumerate(zip(uploads, results, strict=True))
        if isinstance(result, Problem)
    ]
    first = errors[0]
    return InvalidBatch(
        f"{len(errors)} of {len(results)} images cannot be used; the first is number {first.index}: {first.detail}",
        [error.model_dump(exclude_none=True) for error in errors],
    )


def log_of(model: str | None) -> dict[str, Any]:
    """What the log says of the model that a request names."""
    return {} if model is None else {"model": model}


def _name_of(model: LoadedModel) -> ModelName:
    return ModelName(name=model.bundle.manifest.name, version=model.bundle.manifest.version)


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
