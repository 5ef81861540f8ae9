"""POST /predict: one image in, its most probable classes out."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app.classifier import Classification, top_k
from app.limits import unless_gone
from app.problems import InvalidParameter, ProblemDocument
from app.schemas import ModelName, Prediction, PredictResponse, Timing
from app.state import Service, ServiceState
from app.uploads import read_image

router = APIRouter(tags=["predict"])

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "description": "The image, as a multipart part named `file` or as the raw body.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY}},
            },
            "application/octet-stream": {"schema": BINARY},
            "image/*": {"schema": BINARY},
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


@router.post("/predict", responses={**PROBLEMS, 500: {"model": ProblemDocument}}, openapi_extra=BODY)
async def predict(
    request: Request,
    service: Service,
    top_k: Annotated[int, Query(ge=1, description="How many classes to name, at most all.")] = 5,
) -> PredictResponse:
    """Which classes the image shows, most probable first."""
    started = time.monotonic()
    classes = len(service.bundle.manifest.classes)
    if top_k > classes:
        raise InvalidParameter(f"top_k: it must be from 1 to {classes} (given: {top_k})")
    with service.engine.reserve(service.settings.views):
        content = await read_image(request, service.settings.max_file_bytes)
        read_seconds = time.monotonic() - started
        result = await unless_gone(request, service.classifier.classify(content, request.state.deadline))
    timing = _observe(request, service, result, read_seconds, time.monotonic() - started)
    manifest = service.bundle.manifest
    return PredictResponse(
        model=ModelName(name=manifest.name, version=manifest.version),
        predictions=_ranked(service, result, top_k),
        views=result.views,
        timing_ms=timing,
    )


def _ranked(service: ServiceState, result: Classification, count: int) -> list[Prediction]:
    labels = service.bundle.manifest.classes
    return [
        Prediction(
            label=labels[class_id], class_id=class_id, probability=round(float(result.probabilities[class_id]), 6)
        )
        for class_id in top_k(result.probabilities, count)
    ]


def _observe(
    request: Request, service: ServiceState, result: Classification, read_seconds: float, total_seconds: float
) -> Timing:
    telemetry = service.telemetry
    stages = {
        "read": read_seconds,
        "decode": result.decode_seconds,
        "queue": result.queue_seconds,
        "inference": result.inference_seconds,
        "total": total_seconds,
    }
    for stage, seconds in stages.items():
        telemetry.stage_seconds.labels(stage).observe(seconds)
    (best,) = top_k(result.probabilities, 1)
    label = service.bundle.manifest.classes[best]
    confidence = float(result.probabilities[best])
    telemetry.predictions.labels(label).inc()
    telemetry.confidence.observe(confidence)
    request.state.log = {"label": label, "confidence": round(confidence, 4)}
    return Timing(**{stage: round(seconds * 1000, 3) for stage, seconds in stages.items() if stage != "read"})
