"""A typed client of the service, on httpx (extra `client`).

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict("cat.png")            # or bytes, or a PIL image
        print(answer.predictions[0].label)

    async with AsyncClient("http://127.0.0.1:8000", api_key="secret") as client:
        answer = await client.predict_batch(["cat.png", "dog.png"], top_k=3)

No call changes anything on the server, so a failed call may be repeated. The client repeats it

- when the service is busy (429, 503), after the seconds of Retry-After;
- when the connection fails;
- when a proxy says that its connection failed (500 or 502 without a problem document).

It does not repeat a call that took too long: that would only add load.

Whatever a server does, a call ends in an answer or in one of these errors:

    ClientError
    ├── ProblemError               the service, or a proxy, answered with an error
    ├── NoAnswerError              no whole answer arrived; also an httpx.TransportError, with httpx's own as its cause
    │   └── AnswerTimeoutError     not in time; also an httpx.TimeoutException
    └── InvalidAnswerError         what arrived is too large, or is not what the service answers

The caller's own mistakes are raised as they are: OSError for an image file that cannot be read, httpx.InvalidURL for a
URL that is malformed.

An attempt takes `deadline` seconds at most, and an answer `max_answer_bytes`. The client asks for answers without
compression and refuses compressed ones, so no answer grows on arrival; it ignores cookies and redirects.
"""

import asyncio
import email.utils
import io
import math
import os
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from .api.schemas import BatchResponse, Model, PredictResponse
from .bundle.report import Report

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "AnswerTimeoutError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Explanation",
    "ImageSource",
    "InvalidAnswerError",
    "NoAnswerError",
    "ProblemError",
]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"
"""A path, an encoded image, or a PIL image."""

DEADLINE_SECONDS = 60
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # a hundred times a report
# JSON values in an answer. Each may become a kilobyte of objects and of complaints about them, so the number of bytes
# alone does not bound the memory. A report has 1200 values, a batch of 32 images with all ten classes 1700.
MAX_VALUES = 20_000
WRITE_BYTES = 64 * 1024  # sent between two looks at the clock
FIRST_PAUSE_SECONDS = 0.5  # if there is no Retry-After; doubled with each attempt
LONGEST_PAUSE_SECONDS = 60  # a service that asks for more is as good as gone
# The server was not reached, or closed a connection that had been idle; nothing says that it is slow.
BROKEN_CONNECTION = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
PROBLEM = "application/problem+json"
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class ClientError(Exception):
    """The base of everything that a server can cause."""


class ProblemError(ClientError):
    """The service, or a proxy, answered with an error.

    status, code, title, detail, instance      of the problem document; `document` is all of it

    These are the server's words, of any length and with any characters; str() is one printable line.
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
        return _line(f"{self.status} {self.code}: {self.detail} (request {self.instance})")


class NoAnswerError(ClientError, httpx.TransportError):
    """No whole answer arrived: the server is not there, broke off, or does not speak HTTP."""


class AnswerTimeoutError(NoAnswerError, httpx.TimeoutException):
    """No whole answer arrived in time. The service may have done the work all the same."""


class InvalidAnswerError(ClientError):
    """An answer that the service does not give: too large, compressed, not JSON, or without a field or header."""


@dataclass(frozen=True)
class Explanation:
    """`picture` is a PNG that shows where the image speaks for the class; `probability` is from 0 to 1."""

    picture: bytes = field(repr=False)
    class_id: int
    label: str
    probability: float


class Client:
    """A client for any number of threads; `close` it, or use it in a `with` statement.

    timeout            seconds for connecting, and for each wait for bytes
    deadline           seconds for a whole attempt; by default 60, or `timeout` if that is longer
    max_answer_bytes   the size of an answer's body
    retries            attempts after the first one

    Raises ClientError and, for what the caller passed, OSError or httpx.InvalidURL.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout: float = 30,
        *,
        retries: int = 3,
        deadline: float | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = httpx.Client(transport=transport, **_options(url, api_key, timeout))
        self._clock = _Clock(_deadline(deadline, timeout))
        self._max_answer_bytes = max_answer_bytes
        self._retries = retries
        self._sleep = sleep

    def predict(self, image: ImageSource, top_k: int = 5, *, coverage: float | None = None) -> PredictResponse:
        """Which classes the image shows, most probable first; `coverage`, by default the model's, of the set."""
        return self._run(_predict(image, top_k, coverage))

    def predict_batch(
        self, images: Iterable[ImageSource], top_k: int = 5, *, partial: bool = False, coverage: float | None = None
    ) -> BatchResponse:
        """One result for each image, in order; with `partial` an ImageFailure for one that cannot be used."""
        return self._run(_predict_batch(images, top_k, partial, coverage))

    def explain(self, image: ImageSource, class_id: int | None = None) -> Explanation:
        """Where the image speaks for a class, by default for the most probable one."""
        return self._run(_explain(image, class_id))

    def report(self) -> Report:
        """How good the model is, measured when it was made."""
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
        extensions = {"trace": self._clock.watch}
        request = self._http.build_request(call.method, call.path, extensions=extensions, **call.arguments)
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
            with _client_errors(request):
                return self._send(request)
        except NoAnswerError as error:
            return error

    def _send(self, request: httpx.Request) -> "_Answer":
        self._clock.start()
        response = self._http.send(request, stream=True)
        try:
            content = _Content(response, self._max_answer_bytes)
            for chunk in response.iter_bytes():
                self._clock.remaining()
                content.add(chunk)
        finally:
            response.close()
        return content.answer()


class AsyncClient:
    """The same for asyncio: the same arguments, calls and errors."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout: float = 30,
        *,
        retries: int = 3,
        deadline: float | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **_options(url, api_key, timeout))
        self._deadline = _deadline(deadline, timeout)
        self._max_answer_bytes = max_answer_bytes
        self._retries = retries
        self._sleep = sleep

    async def predict(self, image: ImageSource, top_k: int = 5, *, coverage: float | None = None) -> PredictResponse:
        """Which classes the image shows, most probable first; `coverage`, by default the model's, of the set."""
        return await self._run(await asyncio.to_thread(_predict, image, top_k, coverage))

    async def predict_batch(
        self, images: Iterable[ImageSource], top_k: int = 5, *, partial: bool = False, coverage: float | None = None
    ) -> BatchResponse:
        """One result for each image, in order; with `partial` an ImageFailure for one that cannot be used."""
        return await self._run(await asyncio.to_thread(_predict_batch, images, top_k, partial, coverage))

    async def explain(self, image: ImageSource, class_id: int | None = None) -> Explanation:
        """Where the image speaks for a class, by default for the most probable one."""
        return await self._run(await asyncio.to_thread(_explain, image, class_id))

    async def report(self) -> Report:
        """How good the model is, measured when it was made."""
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
            with _client_errors(request):
                async with asyncio.timeout(self._deadline):
                    return await self._send(request)
        except NoAnswerError as error:
            return error

    async def _send(self, request: httpx.Request) -> "_Answer":
        response = await self._http.send(request, stream=True)
        try:
            content = _Content(response, self._max_answer_bytes)
            async for chunk in response.aiter_bytes():
                content.add(chunk)
        finally:
            await response.aclose()
        return content.answer()


class _Clock(threading.local):
    """Ends an attempt of the sync client at its deadline.

    httpx limits each wait alone: a server that sends a byte now and then would hold a call for ever. asyncio.timeout
    ends the async client's attempts; here the waits on a connection are cut short instead.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = math.inf

    def start(self) -> None:
        self._end = time.monotonic() + self._seconds

    def remaining(self) -> float:
        """Seconds until the deadline, more than 0. Raises AnswerTimeoutError."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise AnswerTimeoutError(f"no whole answer within {self._seconds:g} s")
        return seconds

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpx: it hands over each new connection, whose waits then end at the deadline."""
        if not event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
            return
        stream = info["return_value"]
        read, write = stream.read, stream.write

        def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
            content: bytes = read(max_bytes, self._shorter(timeout))
            return content

        def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
            view = memoryview(buffer)
            for start in range(0, len(view), WRITE_BYTES):
                write(view[start : start + WRITE_BYTES], self._shorter(timeout))

        stream.read, stream.write = read_in_time, write_in_time

    def _shorter(self, timeout: float | None) -> float:
        remaining = self.remaining()
        return remaining if timeout is None else min(timeout, remaining)


@contextmanager
def _client_errors(request: httpx.Request) -> Iterator[None]:
    """Raises what httpx raises, and the end of asyncio.timeout, as a ClientError."""
    try:
        yield
    except ClientError:
        raise
    except (httpx.TimeoutException, TimeoutError) as error:
        raise AnswerTimeoutError(_reason(error, "no whole answer in time"), request=request) from error
    except httpx.TransportError as error:
        raise NoAnswerError(_reason(error, "the connection failed"), request=request) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # of headers: a redirect, a cookie, a date
        raise InvalidAnswerError(_reason(error, "the answer's headers make no sense")) from error


def _reason(error: Exception, otherwise: str) -> str:
    return _line(str(error)) or otherwise


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    headers: httpx.Headers
    content: bytes


class _Content:
    """Collects an answer's body up to a limit, in bytes. Raises InvalidAnswerError for more, and for compression."""

    def __init__(self, response: httpx.Response, max_bytes: int) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise InvalidAnswerError(f"the answer is compressed, which was not asked for: {_line(encoding)}")
        self._response = response
        self._max_bytes = max_bytes
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        if len(self._content) > self._max_bytes:
            raise InvalidAnswerError(f"the answer has more than {self._max_bytes} bytes (max_answer_bytes)")

    def answer(self) -> _Answer:
        response = self._response
        return _Answer(response.status_code, response.reason_phrase, response.headers, bytes(self._content))


_Outcome: TypeAlias = _Answer | NoAnswerError


@dataclass(frozen=True)
class _Call(Generic[T]):
    """What both clients send alike, and what they make of the outcome."""

    read: Callable[[_Answer], T]  # raises ValueError, ValidationError among them
    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)  # of httpx's build_request

    def finish(self, outcome: _Outcome) -> T:
        if isinstance(outcome, NoAnswerError):
            raise outcome
        if not 200 <= outcome.status < 300:
            raise ProblemError(outcome.status, _document(outcome))
        try:
            return self.read(outcome)
        except ValidationError as error:
            raise InvalidAnswerError(_mismatch(error)) from None
        except ValueError as error:
            raise InvalidAnswerError(str(error)) from None


def _mismatch(error: ValidationError) -> str:
    """The first of what may be very many mismatches."""
    if error.error_count() > 100:
        return f"the answer is no {error.title}: {error.error_count()} fields are missing or wrong"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return _line(f"the answer is no {error.title}: {place}: {first['msg']}")


def _line(text: str) -> str:
    """A server's words on one printable line of at most 500 characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:500])[:500]


def _json(content: bytes) -> bytes:
    """The content, if it has a sensible number of JSON values. Raises ValueError."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"the answer has more than {MAX_VALUES} JSON values")
    return content


def _as(kind: type[M]) -> Callable[[_Answer], M]:
    return lambda answer: kind.model_validate_json(_json(answer.content))


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


class _ExplanationHeaders(BaseModel):
    class_id: int = Field(ge=0, alias="x-class-id")
    label: str = Field(alias="x-class-label")
    probability: float = Field(ge=0, le=1, alias="x-class-probability")


def _read_explanation(answer: _Answer) -> Explanation:
    if not answer.content.startswith(PNG_SIGNATURE):
        raise ValueError("the answer is no PNG")
    headers = _ExplanationHeaders.model_validate(dict(answer.headers))
    label = urllib.parse.unquote(headers.label)
    return Explanation(answer.content, headers.class_id, label, headers.probability)


def _explain(image: ImageSource, class_id: int | None) -> _Call[Explanation]:
    return _Call(_read_explanation, "POST", "/explain", _one_image(image, class_id=class_id))


def _one_image(image: ImageSource, **parameters: object) -> dict[str, Any]:
    # No image is JSON or multipart, whatever its first bytes: the service looks at the content.
    return {
        "params": _given(**parameters),
        "content": _encoded(image),
        "headers": {"Content-Type": "application/octet-stream"},
    }


def _given(**parameters: object) -> dict[str, object]:
    """The parameters that are not None: the service knows its defaults."""
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


def _options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Of httpx's clients, sync and async."""
    # A few compressed bytes can become gigabytes, and httpx has no limit on what it unpacks at once.
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # a server could send ever more of them
    return {"base_url": url, "headers": headers, "timeout": timeout, "cookies": no_cookies}


def _deadline(seconds: float | None, timeout: float | None) -> float:
    if seconds is not None:
        return seconds
    return math.inf if timeout is None else max(DEADLINE_SECONDS, timeout)


def _pause(outcome: _Outcome, attempt: int) -> float | None:
    """Seconds to wait before trying again; None when another attempt would not help."""
    backoff: float = FIRST_PAUSE_SECONDS * 2**attempt
    if isinstance(outcome, NoAnswerError):
        return backoff if isinstance(outcome.__cause__, BROKEN_CONNECTION) else None
    if outcome.status in (500, 502) and outcome.headers.get("Content-Type") != PROBLEM:
        return backoff
    if outcome.status not in (429, 503):
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
    except (ValueError, OverflowError):  # the latter for years and days with very many digits
        return None


def _document(answer: _Answer) -> dict[str, Any]:
    """The problem document; if a proxy answered with something else, one made from that."""
    try:
        document = from_json(_json(answer.content))
    except ValueError:
        document = None
    if isinstance(document, dict) and "code" in document:
        return document
    # Not in the charset that the answer names: Python has some that unpack archives.
    text = answer.content[:1000].decode(errors="replace")[:200]
    return {"code": "http_error", "title": answer.reason, "detail": text}
