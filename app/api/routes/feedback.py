"""POST /feedback: what an image really showed. The route exists only where FEEDBACK_DIR is set."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError

from ...errors import InvalidParameter, PayloadTooLarge
from ...validation_errors import one_line
from ..problems import PROBLEM_RESPONSES
from ..request_context import context_of
from ..schemas import ProblemDocument
from ..service import RunningService

router = APIRouter(tags=["predict"])

MAX_BYTES = 4096


class FeedbackRequest(BaseModel):
    """The true class of an image that was classified before."""

    request_id: str = Field(description="X-Request-ID of the answer of /predict.", max_length=64, examples=["a1b2c3"])
    label: str = Field(description="One of the model's classes.", max_length=1024, examples=["cat"])


class FeedbackResponse(BaseModel):
    """What it says of that answer."""

    correct: bool = Field(description="The most probable class was the true one.")
    covered: bool | None = Field(description="The prediction set held the true class; null without a set.")


BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": FeedbackRequest.model_json_schema()}},
    }
}


@router.post(
    "/feedback",
    responses={**PROBLEM_RESPONSES, 404: {"model": ProblemDocument}, 500: {"model": ProblemDocument}},
    openapi_extra=BODY,
)
async def feedback(request: Request, service: RunningService) -> FeedbackResponse:
    """Tell the true class of an image, once for each answer of /predict, within an hour of it."""
    given = await _read(request)
    verdict = await service.judge(given.request_id, given.label)
    service.metrics.count_feedback(verdict)
    context_of(request.scope).log = {"of": given.request_id, "correct": verdict.correct, "covered": verdict.covered}
    return FeedbackResponse(correct=verdict.correct, covered=verdict.covered)


async def _read(request: Request) -> FeedbackRequest:
    """Raises PayloadTooLarge before JSON is parsed that would take the event loop long, and InvalidParameter."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise PayloadTooLarge(f"feedback has at most {MAX_BYTES} bytes")
    try:
        return FeedbackRequest.model_validate_json(bytes(content))
    except ValidationError as error:
        raise InvalidParameter(one_line(error.errors(include_url=False, include_input=False), "feedback")) from None
