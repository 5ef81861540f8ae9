"""The limits of a request's body: its bytes, the memory that all bodies share, and one deadline for the request."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import MalformedRequest, Overloaded, PayloadTooLarge, RequestTimeout
from ..request_context import context_of


class Budget:
    """Bytes that all requests together may hold in memory. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, amount: int) -> None:
        """Raises Overloaded, and takes nothing, when less is left."""
        if self.used + amount > self.limit:
            raise Overloaded("the memory for request bodies is full")
        self.used += amount

    def give_back(self, amount: int) -> None:
        self.used -= amount


class BodyLimits:
    """Refuses a body that is too large: by its headers, or at the first byte over the limit if they do not tell."""

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
        context = context_of(scope)
        context.deadline, context.budget = deadline, self.budget
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
    """Content-Length in bytes; 0 if the header is missing. Raises MalformedRequest if it is not a number."""
    value = headers.get("content-length", "0")
    if not (value.isascii() and value.isdigit()):
        raise MalformedRequest("Content-Length must be a number of bytes")
    return int(value)
