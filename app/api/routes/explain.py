"""POST /explain: where in the image the model sees a class."""

import time
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ...errors import InvalidParameter
from ...inference.loaded_model import LoadedModel
from ..disconnect import unless_gone
from ..fair_share import hold_places
from ..problems import PROBLEM_RESPONSES
from ..query import check_query
from ..request_context import context_of
from ..schemas import BINARY, ProblemDocument
from ..service import ModelQuery, RunningService
from ..uploads import read_image
from .predict import BODY, ImageKind, log_of

router = APIRouter(tags=["predict"])

HEADERS = {
    "X-Class-Id": ("integer", "The explained class."),
    "X-Class-Label": ("string", "Its label, percent-encoded."),
    "X-Class-Probability": ("number", "Its calibrated probability for the view that is explained."),
}
PICTURE = {
    "description": "The image as the network saw it, in grey and enlarged, under the class's activation map: from dark"
    " blue, where nothing speaks for the class, to yellow.",
    "content": {"image/png": {"schema": BINARY}},
    "headers": {name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in HEADERS.items()},
}


@router.post(
    "/explain",
    response_class=Response,
    responses={200: PICTURE, **PROBLEM_RESPONSES, 404: {"model": ProblemDocument}, 500: {"model": ProblemDocument}},
    openapi_extra=BODY,
)
async def explain(
    request: Request,
    service: RunningService,
    class_id: Annotated[int | None, Query(ge=0, description="By default the most probable class.")] = None,
    kind: ImageKind = None,
    model: ModelQuery = None,
) -> Response:
    """Where in the image the model sees a class: a PNG, the exact class activation map over the image."""
    check_query(request)
    # Not counted as a prediction: a client explains an image that it has classified before.
    context = context_of(request.scope)
    with service.model(model) as asked:
        _check(class_id, asked)
        context.began = time.monotonic()
        content = await read_image(request, service.settings.max_file_bytes)
        context.read = time.monotonic()
        async with hold_places(request, 1):
            explanation = await unless_gone(
                request, asked.classifier.explain(content, class_id, context.deadline, context.client, kind)
            )
    context.results = [explanation.result]
    label = asked.classifier.labels[explanation.class_id]
    context.log = log_of(model) | {"label": label, "abstain": explanation.result.abstain}
    values = (
        str(explanation.class_id),
        quote(label),
        f"{explanation.result.probabilities[explanation.class_id]:.6f}",
    )
    return Response(explanation.picture, media_type="image/png", headers=dict(zip(HEADERS, values, strict=True)))


def _check(class_id: int | None, asked: LoadedModel) -> None:
    """Raises InvalidParameter for a class that the model does not have."""
    classes = len(asked.classifier.labels)
    if class_id is not None and class_id >= classes:
        raise InvalidParameter(f"class_id: it must be from 0 to {classes - 1} (given: {str(class_id)[:40]})")
