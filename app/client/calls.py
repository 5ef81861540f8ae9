"""The calls of the service's API: the request of each, and how its answer is read. Both clients share them."""

import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ..api.schemas import BatchResponse, Model, PredictResponse
from ..bundle.report import Report
from ..image_source import ImageSource, encoded, file_name, is_one_image
from ..imaging.kinds import Kind
from .answers import Answer, parsed, problem_document
from .errors import EmptyBatchError, InvalidAnswerError, NoAnswerError, ProblemError, printable
from .retries import Outcome

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CLASSES = 1000  # of a model
CLASS_VALUES = 5  # JSON values of a class in a report, beyond the 20 that MAX_VALUES leaves each
PREDICTION_VALUES = 4  # JSON values of a prediction

T = TypeVar("T")


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG of the regions that speak for the class; `probability` is from 0 to 1."""

    picture: bytes = field(repr=False)
    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class Call(Generic[T]):
    read: Callable[[Answer], T]  # raises ValueError, such as pydantic's ValidationError
    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)  # for httpx's build_request

    def finish(self, outcome: Outcome) -> T:
        """The result of the call. Raises ClientError."""
        if isinstance(outcome, NoAnswerError):
            raise outcome
        if not 200 <= outcome.status < 300:
            raise ProblemError(outcome.status, problem_document(outcome))
        try:
            return self.read(outcome)
        except ValidationError as error:
            raise InvalidAnswerError(_mismatch(error)) from None
        except ValueError as error:
            raise InvalidAnswerError(str(error)) from None


def _mismatch(error: ValidationError) -> str:
    """The first mismatch; only their number if there are more than 100."""
    if error.error_count() > 100:
        return f"the answer is no {error.title}: {error.error_count()} fields are missing or wrong"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return printable(f"the answer is no {error.title}: {place}: {first['msg']}")


def report(model: str | None) -> Call[Report]:
    return Call(parsed(Report, CLASS_VALUES * MOST_CLASSES), "GET", "/metrics/report", {"params": _given(model=model)})


def description(model: str | None) -> Call[Model]:
    return Call(parsed(Model), "GET", "/model", {"params": _given(model=model)})


def predict(
    image: ImageSource, top_k: int, coverage: float | None, kind: Kind | None, model: str | None
) -> Call[PredictResponse]:
    arguments = _one_image(image, top_k=top_k, coverage=coverage, kind=kind, model=model)
    return Call(parsed(PredictResponse, _values(1, top_k)), "POST", "/predict", arguments)


def predict_batch(
    images: Iterable[ImageSource],
    top_k: int,
    partial: bool,
    coverage: float | None,
    kind: Kind | None,
    model: str | None,
) -> Call[BatchResponse]:
    """Raises EmptyBatchError if there is no image, and TypeError for one image in place of several."""
    if is_one_image(images):
        raise TypeError(f"a batch is a list of images, not one image ({type(images).__name__}): use [image]")
    files = [("files", (file_name(image, index), encoded(image))) for index, image in enumerate(images)]
    if not files:
        raise EmptyBatchError("the batch has no image")
    parameters = _given(top_k=top_k, partial=partial, coverage=coverage, kind=kind, model=model)
    arguments = {"params": parameters, "files": files}
    return Call(parsed(BatchResponse, _values(len(files), top_k)), "POST", "/predict/batch", arguments)


def explain(image: ImageSource, class_id: int | None, kind: Kind | None, model: str | None) -> Call[Explanation]:
    arguments = _one_image(image, class_id=class_id, kind=kind, model=model)
    return Call(_read_explanation, "POST", "/explain", arguments)


class _ExplanationHeaders(BaseModel):
    class_id: int = Field(ge=0, alias="x-class-id")
    label: str = Field(alias="x-class-label")
    probability: float = Field(ge=0, le=1, alias="x-class-probability")


def _read_explanation(answer: Answer) -> Explanation:
    if not answer.content.startswith(PNG_SIGNATURE):
        raise ValueError("the answer is no PNG")
    headers = _ExplanationHeaders.model_validate(dict(answer.headers))
    label = urllib.parse.unquote(headers.label)
    return Explanation(answer.content, headers.class_id, label, headers.probability)


def _values(images: int, top_k: int) -> int:
    """About how many JSON values the predictions and prediction sets of `images` may have."""
    return images * (PREDICTION_VALUES * max(0, min(top_k, MOST_CLASSES)) + MOST_CLASSES)


def _one_image(image: ImageSource, **parameters: object) -> dict[str, Any]:
    # The service reads any other body than JSON and multipart as an image, and detects the format itself.
    return {
        "params": _given(**parameters),
        "content": encoded(image),
        "headers": {"Content-Type": "application/octet-stream"},
    }


def _given(**parameters: object) -> dict[str, object]:
    """The parameters that are not None; for the others the service uses its defaults."""
    return {name: value for name, value in parameters.items() if value is not None}
