"""The clients: `Client` for threads, `AsyncClient` for asyncio."""

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self, TypeVar

from ..api.schemas import BatchResponse, Model, PredictResponse
from ..bundle.report import Report
from ..image_source import ImageSource
from ..imaging.kinds import Kind
from .answers import MAX_ANSWER_BYTES, Answer, AnswerReader
from .calls import Call, Explanation, description, explain, predict, predict_batch, report
from .deadline import Deadline, deadline_seconds
from .errors import NoAnswerError, client_errors
from .http import httpx
from .retries import Outcome, pause_seconds

T = TypeVar("T")


class Client:
    """A client that threads may share. `close` it, or use it in a `with` statement.

    timeout            seconds for connecting, and for each read and write
    deadline           seconds for one whole attempt; by default 60, or `timeout` if it is longer
    max_answer_bytes   the largest body of an answer that is read
    retries            attempts after the first one

    Raises ValueError for a `url` without http:// or https://, and httpx.InvalidURL for one that is malformed otherwise.
    Calls raise ClientError, and OSError, TypeError or ValueError for wrong arguments.
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
        self._deadline = Deadline(deadline_seconds(deadline, timeout))
        self._max_answer_bytes = max_answer_bytes
        self._retries = retries
        self._sleep = sleep

    def predict(
        self,
        image: ImageSource,
        top_k: int = 5,
        *,
        coverage: float | None = None,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> PredictResponse:
        """The most probable classes, and a prediction set with this coverage; by default the model's coverage.

        Here and below, `kind` overrules how the service tells thumbnails from photographs, and `model` names one of its
        models.
        """
        return self._run(predict(image, top_k, coverage, kind, model))

    def predict_batch(
        self,
        images: Iterable[ImageSource],
        top_k: int = 5,
        *,
        partial: bool = False,
        coverage: float | None = None,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> BatchResponse:
        """One result for each image, in order. With `partial`, an unusable image becomes an ImageFailure."""
        return self._run(predict_batch(images, top_k, partial, coverage, kind, model))

    def explain(
        self,
        image: ImageSource,
        class_id: int | None = None,
        *,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> Explanation:
        """The regions of the image that speak for a class; by default for the most probable class."""
        return self._run(explain(image, class_id, kind, model))

    def report(self, *, model: str | None = None) -> Report:
        """The model's measured quality."""
        return self._run(report(model))

    def model(self, *, model: str | None = None) -> Model:
        """The model's name, version and origin."""
        return self._run(description(model))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        extensions = {"trace": self._deadline.watch}
        request = self._http.build_request(call.method, call.path, extensions=extensions, **call.arguments)
        outcome = self._attempt(request)
        for attempt in range(self._retries):
            pause = pause_seconds(outcome, attempt)
            if pause is None:
                break
            self._sleep(pause)
            outcome = self._attempt(request)
        return call.finish(outcome)

    def _attempt(self, request: httpx.Request) -> Outcome:
        try:
            with client_errors(request):
                return self._send(request)
        except NoAnswerError as error:
            return error

    def _send(self, request: httpx.Request) -> Answer:
        self._deadline.start()
        response = self._http.send(request, stream=True)
        try:
            reader = AnswerReader(response, self._max_answer_bytes)
            for chunk in response.iter_bytes():
                self._deadline.remaining()
                reader.add(chunk)
        finally:
            response.close()
        return reader.answer()


class AsyncClient:
    """Client for asyncio, with the same arguments, calls and errors."""

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
        self._deadline_seconds = deadline_seconds(deadline, timeout)
        self._max_answer_bytes = max_answer_bytes
        self._retries = retries
        self._sleep = sleep

    async def predict(
        self,
        image: ImageSource,
        top_k: int = 5,
        *,
        coverage: float | None = None,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> PredictResponse:
        """See Client.predict."""
        return await self._run(await asyncio.to_thread(predict, image, top_k, coverage, kind, model))

    async def predict_batch(
        self,
        images: Iterable[ImageSource],
        top_k: int = 5,
        *,
        partial: bool = False,
        coverage: float | None = None,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> BatchResponse:
        """See Client.predict_batch."""
        return await self._run(await asyncio.to_thread(predict_batch, images, top_k, partial, coverage, kind, model))

    async def explain(
        self,
        image: ImageSource,
        class_id: int | None = None,
        *,
        kind: Kind | None = None,
        model: str | None = None,
    ) -> Explanation:
        """See Client.explain."""
        return await self._run(await asyncio.to_thread(explain, image, class_id, kind, model))

    async def report(self, *, model: str | None = None) -> Report:
        """The model's measured quality."""
        return await self._run(report(model))

    async def model(self, *, model: str | None = None) -> Model:
        """The model's name, version and origin."""
        return await self._run(description(model))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        request = self._http.build_request(call.method, call.path, **call.arguments)
        outcome = await self._attempt(request)
        for attempt in range(self._retries):
            pause = pause_seconds(outcome, attempt)
            if pause is None:
                break
            await self._sleep(pause)
            outcome = await self._attempt(request)
        return call.finish(outcome)

    async def _attempt(self, request: httpx.Request) -> Outcome:
        try:
            with client_errors(request):
                async with asyncio.timeout(self._deadline_seconds):
                    return await self._send(request)
        except NoAnswerError as error:
            return error

    async def _send(self, request: httpx.Request) -> Answer:
        response = await self._http.send(request, stream=True)
        try:
            reader = AnswerReader(response, self._max_answer_bytes)
            async for chunk in response.aiter_bytes():
                reader.add(chunk)
        finally:
            await response.aclose()
        return reader.answer()


def _options(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments for httpx.Client and httpx.AsyncClient. Raises ValueError."""
    address = httpx.URL(url)
    if address.scheme not in ("http", "https") or not address.host:
        hint = "" if "//" in url or not url else f', such as "http://{url}"'
        raise ValueError(f'the address of a service has http:// or https:// and a host{hint}, not "{url}"')
    # A few compressed bytes can become gigabytes, and httpx does not limit how much it unpacks at once.
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # a server could send any number of cookies
    options: dict[str, Any] = {"base_url": url, "headers": headers, "timeout": timeout, "cookies": no_cookies}
    if _is_this_machine(address.host):
        # A proxy is another machine, and NO_PROXY often lacks localhost. SSL_CERT_FILE counts all the same.
        options |= {"trust_env": False, "verify": httpx.create_ssl_context()}
    return options


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, 6.3
    return address.is_loopback or address.is_unspecified
