"""What a request may cost: bytes, pixels and time. Pure ASGI, so that a client that leaves is seen.

Admission       middleware: refuses images at their headers while no place is free
BodyLimits      middleware: counts bytes while they stream, and gives every request its one deadline and the budget
Budget          a number of bytes that all requests share; more is refused
PixelBudget     a number of pixels that all decodes share; more waits its turn
unless_gone     work that ends when its client leaves
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Container, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import (
    ClientGone,
    DeadlineExceeded,
    MalformedRequest,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
)
from .prefix import route_path

T = TypeVar("T")


class Budget:
    """Bytes that are in memory at once for all requests together. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, amount: int) -> None:
        """Raises Overloaded when the rest is smaller; nothing is taken then."""
        if self.used + amount > self.limit:
            raise Overloaded("the memory for request bodies is full")
        self.used += amount

    def give_back(self, amount: int) -> None:
        self.used -= amount


class PixelBudget:
    """Pixels that are decoded at once, in the order of arrival.

    An image that is larger than the whole budget waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def hold_at_once(self, pixels: int) -> Iterator[bool]:
        """Yields whether the pixels were free, and are now held. For any thread."""
        pixels = min(pixels, self.limit)
        held = self._take(pixels)
        try:
            yield held
        finally:
            if held:
                self._give_back(pixels)

    @asynccontextmanager
    async def hold(self, pixels: int, deadline: float) -> AsyncIterator[None]:
        """Wait for the pixels. Raises DeadlineExceeded when `deadline` (time.monotonic() seconds) passes first."""
        pixels = min(pixels, self.limit)
        await self._acquire(pixels, deadline)
        try:
            yield
        finally:
            self._give_back(pixels)

    def _take(self, pixels: int) -> bool:
        with self._lock:
            free = not self._waiting and self.used + pixels <= self.limit
            if free:
                self.used += pixels
            return free

    async def _acquire(self, pixels: int, deadline: float) -> None:
        if self._take(pixels):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (pixels, turn)
        with self._lock:
            self._waiting.append(entry)
        self._give_back(0)  # room may have come meanwhile
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await turn
        except BaseException as error:
            with self._lock:
                came = entry not in self._waiting  # in the same moment
                if not came:
                    self._waiting.remove(entry)
            self._give_back(pixels if came else 0)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("no time was left to decode the image: the service is busy") from None
            raise

    def _give_back(self, pixels: int) -> None:
        """And let in who waits, as far as there is room."""
        with self._lock:
            self.used -= pixels
            while self._waiting and self.used + self._waiting[0][0] <= self.limit:
                next_pixels, turn = self._waiting.popleft()
                self.used += next_pixels
                turn.get_loop().call_soon_threadsafe(_set, turn)


def _set(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)


class Admission:
    """Refuses at its headers what brings an image, while not one place is free; routes then count more exactly.

    Under overload most requests end here: routing and FastAPI's dependencies would cost two thirds of a refusal.
    """

    def __init__(self, app: ASGIApp, paths: Container[str]) -> None:
        self.app = app
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (path := route_path(scope)) in self.paths:
            scope["state"]["route"] = path
            with scope["app"].state.service.engine.reserve(1):
                pass
        await self.app(scope, receive, send)


class BodyLimits:
    """Refuses what is too large at its headers or, where these say nothing or lie, at the byte too many."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, deadline_seconds: float, budget: Budget) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.deadline_seconds = deadline_seconds
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline = time.monotonic() + self.deadline_seconds
        scope.setdefault("state", {}).update(deadline=deadline, budget=self.budget)
        declared = declared_length(Headers(scope=scope))
        if declared > self.max_bytes:
            raise PayloadTooLarge(f"the request has {declared} bytes, at most {self.max_bytes} are accepted")
        self.budget.take(declared)
        taken = declared
        received = 0
        whole = False

        async def limited() -> Message:
            nonlocal received, taken, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout(f"the request did not arrive within {self.deadline_seconds:g} s") from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if received > self.max_bytes:
                    raise PayloadTooLarge(f"the request has more than the {self.max_bytes} bytes that are accepted")
                if received > taken:
                    self.budget.take(received - taken)
                    taken = received
            return message

        try:
            await self.app(scope, limited, send)
        finally:
            self.budget.give_back(taken)


def declared_length(headers: Headers) -> int:
    """Content-Length in bytes, 0 where there is none. Raises MalformedRequest when it is not a number."""
    value = headers.get("content-length", "0")
    if not (value.isascii() and value.isdigit()):
        raise MalformedRequest("Content-Length must be a number of bytes")
    return int(value)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client leaves first, `work` is cancelled and ClientGone raised.

    The request's body must have been read: what can still come is a disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    gone, cancelling = False, task.cancelling()

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    leaving = asyncio.ensure_future(_disconnect(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:  # nobody else wants the task to end
            raise ClientGone("the client left before its answer") from None
        raise
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
