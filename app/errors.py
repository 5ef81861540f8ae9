"""The errors that a request can meet: each kind has an HTTP status, a code and a title.

    Problem                      the base class
    ├── MalformedRequest         400  the multipart, JSON or protocol message cannot be parsed
    ├── Unauthorized             401  no API key, or an unknown one
    ├── NotFound                 404
    ├── MethodNotAllowed         405
    ├── RequestTimeout           408  the body came too slowly
    ├── LoadInProgress           409  another model is being loaded
    ├── LoadFailed               409  what a model's folder holds was not loaded, and the model goes on as it was
    ├── PayloadTooLarge          413  too many bytes
    ├── ImageTooLarge            413  too many pixels
    ├── UnsupportedMediaType     415  the service does not accept this image format or this kind of body
    ├── UndecodableImage         422  the image is empty, cut short or corrupt
    ├── TooExpensive             422  decoding the image or parsing the JSON takes too much time or memory
    ├── InvalidParameter         422  a parameter or the file is missing, unknown or out of range
    ├── InvalidBatch             422  some images of a batch cannot be used; the member `errors` names them
    ├── Overloaded               429  the queue or a memory budget is full: retry after Retry-After seconds
    ├── ClientGone               499  the client disconnected before its answer: only logs and metrics see it
    ├── Internal                 500  a bug; the log has its cause under the request's id
    ├── Unavailable              503  the service is shutting down, its engine has died, or memory is short
    └── DeadlineExceeded         504  no answer within the deadline

app.api.problems turns them into HTTP answers. GET /problems/<code> shows the docstring of each kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class Problem(Exception):
    """The base of all errors that are answered with a problem document (RFC 9457).

    `detail` tells the client what was wrong and what is allowed. The answer carries `headers`.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members: dict[str, Any] = {}  # extension members of the problem document


class MalformedRequest(Problem):
    """The multipart, JSON or protocol message cannot be parsed."""

    status, code, title = 400, "malformed_request", "The request cannot be parsed"


class Unauthorized(Problem):
    """The request has no API key, or an unknown one."""

    status, code, title = 401, "unauthorized", "An API key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"WWW-Authenticate": "Bearer"})


class NotFound(Problem):
    """There is nothing at this address."""

    status, code, title = 404, "not_found", "There is nothing here"


class MethodNotAllowed(Problem):
    """The address exists, but it does not accept this method. The Allow header lists the methods that it accepts."""

    status, code, title = 405, "method_not_allowed", "The method is not allowed here"


class RequestTimeout(Problem):
    """The request's body did not arrive within the deadline."""

    status, code, title = 408, "request_timeout", "The request came too slowly"


class LoadInProgress(Problem):
    """A model is being loaded, and one is loaded at a time. Send the request again when that has ended."""

    status, code, title = 409, "load_in_progress", "Another model is being loaded"


class LoadFailed(Problem):
    """What the model's folder holds cannot be loaded, or there is too little memory for it. The model goes on as it
    was."""

    status, code, title = 409, "load_failed", "The model was not loaded"


class PayloadTooLarge(Problem):
    """The request has more bytes than the service accepts. The service ignores the rest and closes the connection."""

    status, code, title = 413, "payload_too_large", "The request is too large"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"Connection": "close"})


class ImageTooLarge(Problem):
    """The image has more pixels than the service decodes."""

    status, code, title = 413, "image_too_large", "The image has too many pixels"


class UnsupportedMediaType(Problem):
    """The service does not accept this image format or this kind of body."""

    status, code, title = 415, "unsupported_media_type", "This format is not accepted"


class UndecodableImage(Problem):
    """The image is empty, cut short or corrupt."""

    status, code, title = 422, "undecodable_image", "The image cannot be decoded"


class TooExpensive(Problem):
    """Decoding the image or parsing the JSON takes more processor time or memory than the service allows."""

    status, code, title = 422, "too_expensive", "The request is too expensive"


class InvalidParameter(Problem):
    """A parameter or the file is missing, unknown or out of range."""

    status, code, title = 422, "invalid_parameter", "A parameter is missing or invalid"


class InvalidBatch(Problem):
    """Some images of the batch cannot be used, so none was classified. `errors` lists each with its own code."""

    status, code, title = 422, "invalid_batch", "Some images of the batch cannot be used"

    def __init__(self, detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(detail)
        self.members["errors"] = list(errors)


class ClientGone(Problem):
    """The client disconnected before its answer. Only logs and metrics show this code; the number is nginx's."""

    status, code, title = 499, "client_gone", "The client left"


class Overloaded(Problem):
    """The queue or a memory budget is full. Nothing was done: send the request again after Retry-After seconds."""

    status, code, title = 429, "overloaded", "The service is busy"

    def __init__(self, detail: str, retry_after_seconds: int = 1) -> None:
        super().__init__(detail, {"Retry-After": str(retry_after_seconds)})


class Internal(Problem):
    """The service met a bug. Its log has the cause under the request's id."""

    status, code, title = 500, "internal", "Something went wrong in the service"


class Unavailable(Problem):
    """The service is shutting down, its engine has died, or it has too little memory now."""

    status, code, title = 503, "unavailable", "The service is not available"


class DeadlineExceeded(Problem):
    """The answer was not ready within the deadline."""

    status, code, title = 504, "deadline_exceeded", "The answer took too long"


BY_CODE: dict[str, type[Problem]] = {kind.code: kind for kind in Problem.__subclasses__()}


def forget_tracebacks(error: BaseException) -> None:
    """Remove the tracebacks of an error and of the errors that caused it.

    A traceback holds the variables of all calls that it names, here an upload. Often one of these variables holds the
    error, and then only the garbage collector, which the service rarely runs, would free the upload.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]
