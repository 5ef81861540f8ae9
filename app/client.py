"""A typed client of the service, on httpx (extra `client`).

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict("cat.png")            # or bytes, or a PIL image
        print(answer.predictions[0].label)

    async with AsyncClient("http://127.0.0.1:8000", api_key="secret") as client:
        answer = await client.predict_batch(["cat.png", "dog.png"], top_k=3)

No call changes anything on the server. So a call is repeated when the service is busy (429, 503: after the seconds
of Retry-After), when the connection fails, and when what stands before the service says that its connection failed
(500, 502, without a problem document: those are the service's own); not when an answer takes too long, which would
only add load.
What remains after the last attempt is raised: ProblemError for an answer that is an error, httpx.TransportError
(timeouts among them) where there is no answer.
"""

import asyncio
import email.utils
import io
import os
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel

from .api.schemas import BatchResponse, Model, PredictResponse
from .bundle.report import Report

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AsyncClient", "Client", "Explanation", "ImageSource", "ProblemError"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"
"""A path, an encoded image, or a PIL image."""

FIRST_PAUSE_SECONDS = 0.5  # where there is no Retry-After; doubled with each attempt
LONGEST_PAUSE_SECONDS = 60  # a service that asks for more is as good as gone
# The server was not reached, or closed a connection that had been idle; nothing says that it is slow.
BROKEN_CONNECTION = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
PROBLEM = "application/problem+json"
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class ProblemError(Exception):
    """The service, or something before it, answered with an error.

    status, code, title, detail, instance      of the problem document; `document` is all of it
    """

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        self.status = status
        self.document = document
        self.code = str(document.get("code", ""))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.instance = str(document.get("instance", ""))
        super().__init__(status, document)  # all that pickling needs

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail} (request {self.instance})"


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG: where the image speaks for the class."""

    picture: bytes = field(repr=False)
    class_id: int
    label: str
    probability: float


class Client:
    """`timeout` is in seconds, of connecting and of each wait for bytes; `retries` come after the first attempt."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout: float = 30,
        *,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout, transport=transport)
        self._retries = retries
        self._sleep = sleep

    def predict(self, image: ImageSource, top_k: int = 5, *, coverage: float | None = None) -> PredictResponse:
        """Which classes the image shows, most probable first; `coverage`, by default the model's, of the set."""
        return self._run(_predict(image, top_k, coverage))

    def predict_batch(
        self, images: Iterable[ImageSource], top_k: int = 5, *, partial: bool = False, coverage: float | None = None
    ) -> BatchResponse:
        """One result an image, in order; with `partial` an ImageFailure for one that cannot be used."""
        return self._run(_predict_batch(images, top_k, partial, coverage))

    def explain(self, image: ImageSource, class_id: int | None = None) -> Explanation:
        """Where the image speaks for a class, by default for the most probable one."""
        return self._run(_explain(image, class_id))

    def report(self) -> Report:
        """How good the model is, as it was measured when it was made."""
        return self._run(REPORT)

    def model(self) -> Model:
        """Which model answers, and where it comes from."""
        return self._run(MODEL)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: "_Call[T]") -> T:
        request = self._http.build_request(call.method, call.path, **call.arguments)
        outcome = self._attempt(request)
        for attempt in range(self._retries):
            pause = _pause(outcome, attempt)
            if pause is None:
                break
            self._sleep(pause)
            outcome = self._attempt(request)
        return call.finish(outcome)

    def _attempt(self, request: httpx.Request) -> "_Outcome":
        try:
            return self._http.send(request)
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout: float = 30,
        *,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout, transport=transport)
        self._retries = retries
        self._sleep = sleep

    async def predict(self, image: ImageSource, top_k: int = 5, *, coverage: float | None = None) -> PredictResponse:
        """Which classes the image shows, most probable first; `coverage`, by default the model's, of the set."""
        return await self._run(await asyncio.to_thread(_predict, image, top_k, coverage))

    async def predict_batch(
        self, images: Iterable[ImageSource], top_k: int = 5, *, partial: bool = False, coverage: float | None = None
    ) -> BatchResponse:
        """One result an image, in order; with `partial` an ImageFailure for one that cannot be used."""
        return await self._run(await asyncio.to_thread(_predict_batch, images, top_k, partial, coverage))

    async def explain(self, image: ImageSource, class_id: int | None = None) -> Explanation:
        """Where the image speaks for a class, by default for the most probable one."""
        return await self._run(await asyncio.to_thread(_explain, image, class_id))

    async def report(self) -> Report:
        """How good the model is, as it was measured when it was made."""
        return await self._run(REPORT)

    async def model(self) -> Model:
        """Which model answers, and where it comes from."""
        return await self._run(MODEL)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, call: "_Call[T]") -> T:
        request = self._http.build_request(call.method, call.path, **call.arguments)
        outcome = await self._attempt(request)
        for attempt in range(self._retries):
            pause = _pause(outcome, attempt)
            if pause is None:
                break
            await self._sleep(pause)
            outcome = await self._attempt(request)
        return call.finish(outcome)

    async def _attempt(self, request: httpx.Request) -> "_Outcome":
        try:
            return await self._http.send(request)
        except httpx.TransportError as error:
            return error


_Outcome: TypeAlias = httpx.Response | httpx.TransportError


@dataclass(frozen=True)
class _Call(Generic[T]):
    """What both clients send alike, and what they make of the outcome."""

    read: Callable[[httpx.Response], T]
    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)  # of httpx's build_request

    def finish(self, outcome: _Outcome) -> T:
        if isinstance(outcome, httpx.TransportError):
            raise outcome
        if not outcome.is_success:
            raise ProblemError(outcome.status_code, _document(outcome))
        return self.read(outcome)


def _as(kind: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: kind.model_validate_json(response.content)


REPORT = _Call(_as(Report), "GET", "/metrics/report")
MODEL = _Call(_as(Model), "GET", "/model")


def _predict(image: ImageSource, top_k: int, coverage: float | None) -> _Call[PredictResponse]:
    arguments = _one_image(image, top_k=top_k, coverage=coverage)
    return _Call(_as(PredictResponse), "POST", "/predict", arguments)


def _predict_batch(
    images: Iterable[ImageSource], top_k: int, partial: bool, coverage: float | None
) -> _Call[BatchResponse]:
    arguments = {
        "params": _given(top_k=top_k, partial=partial, coverage=coverage),
        "files": [("files", (_name(image, index), _encoded(image))) for index, image in enumerate(images)],
    }
    return _Call(_as(BatchResponse), "POST", "/predict/batch", arguments)


def _explain(image: ImageSource, class_id: int | None) -> _Call[Explanation]:
    def read(response: httpx.Response) -> Explanation:
        return Explanation(
            picture=response.content,
            class_id=int(response.headers["X-Class-Id"]),
            label=urllib.parse.unquote(response.headers["X-Class-Label"]),
            probability=float(response.headers["X-Class-Probability"]),
        )

    return _Call(read, "POST", "/explain", _one_image(image, class_id=class_id))


def _one_image(image: ImageSource, **parameters: object) -> dict[str, Any]:
    # No image is JSON or multipart, whatever its first bytes: the service looks at the content.
    return {
        "params": _given(**parameters),
        "content": _encoded(image),
        "headers": {"Content-Type": "application/octet-stream"},
    }


def _given(**parameters: object) -> dict[str, object]:
    """Without those that are None: the service knows its defaults."""
    return {name: value for name, value in parameters.items() if value is not None}


def _encoded(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from PIL import ImageOps  # whoever has an image has Pillow

    upright = ImageOps.exif_transpose(image)  # a PNG of it would say nothing of its orientation
    buffer = io.BytesIO()
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _name(image: ImageSource, index: int) -> str:
    """What the service's problem documents call the image."""
    if not isinstance(image, str | os.PathLike):
        return f"{index}"
    return Path(image).name.encode(errors="backslashreplace").decode()  # a file's name need not be Unicode


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _pause(outcome: _Outcome, attempt: int) -> float | None:
    """Seconds to wait before trying again; None when another attempt would not help."""
    backoff: float = FIRST_PAUSE_SECONDS * 2**attempt
    if isinstance(outcome, httpx.TransportError):
        return backoff if isinstance(outcome, BROKEN_CONNECTION) else None
    if outcome.status_code in (500, 502) and outcome.headers.get("Content-Type") != PROBLEM:
        return backoff
    if outcome.status_code not in (429, 503):
        return None
    pause = _retry_after(outcome.headers.get("Retry-After", ""))
    pause = backoff if pause is None else pause
    return pause if pause <= LONGEST_PAUSE_SECONDS else None


def _retry_after(value: str) -> float | None:
    """Seconds, from a number of them or from a date (RFC 9110, 10.2.3); None for neither."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _document(response: httpx.Response) -> dict[str, Any]:
    """The problem document; where a proxy answered with something else, one made of that."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and "code" in document:
        return document
    return {"code": "http_error", "title": response.reason_phrase, "detail": response.text[:200]}
