"""Limits for a request's body: size, rate, shared memory, and the request's deadline."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import MalformedRequest, Overloaded, PayloadTooLarge, RequestTimeout
from ..fair_share import Claim, FairShare
from ..request_context import RequestContext, context_of


class BodyLimits:
    """Refuses a body that is too large, too slow, or does not fit into the memory for bodies.

    A body that is too large is refused by its headers, or at the first byte over the limit. Memory is counted when
    bytes arrive, not when they are announced. A body may lag by half the deadline behind `min_rate`, in bytes a second.
    A displaced request is answered 429 (see fair_share).
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, deadline_seconds: float, min_rate: int, share: FairShare
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.deadline_seconds = deadline_seconds
        self.min_rate = min_rate
        self.share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = context_of(scope)
        context.deadline = min(context.deadline, time.monotonic() + self.deadline_seconds)
        if declared := declared_length(Headers(scope=scope)):
            if declared > self.max_bytes:
                raise PayloadTooLarge(f"the request has {declared} bytes, at most {self.max_bytes} are accepted")
            self.share.check_bytes(context.client, declared)
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        claim = context.claim = Claim(self.share, context.client, task)

        async def send_without_claim(message: Message) -> None:
            claim.answered = True
            self.share.release(claim)  # a request that is being answered is not displaced
            await send(message)

        try:
            await self.app(scope, self._limited(receive, context, claim), send_without_claim)
        except asyncio.CancelledError:
            if claim.displaced and task.uncancel() <= cancelling:  # nothing else cancelled the task as well
                raise Overloaded("the service is busy, and clients who ask for less come first") from None
            raise
        finally:
            self.share.release(claim)

    def _limited(self, receive: Receive, context: RequestContext, claim: Claim) -> Receive:
        received = 0
        whole = False
        due = time.monotonic() + self.deadline_seconds / 2

        async def limited() -> Message:
            nonlocal received, whole, due
            if whole or claim.answered:  # what it reads now is only the disconnect
                return await receive()
            try:
                async with asyncio.timeout(min(due, context.deadline) - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                if claim.answered:
                    return await receive()
                raise RequestTimeout(
                    f"the request came too slowly: it must arrive within {self.deadline_seconds:g} s, "
                    f"at {self.min_rate} bytes a second or more"
                ) from None
            if claim.answered:
                return message
            if context.fault:
                raise context.fault
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                whole = not message.get("more_body", False)
                if received > self.max_bytes:
                    raise PayloadTooLarge(f"the request has more than the {self.max_bytes} bytes that are accepted")
                due = min(due + size / self.min_rate, time.monotonic() + self.deadline_seconds / 2)
                await claim.take_bytes(size)
            return message

        return limited


def declared_length(headers: Headers) -> int:
    """Content-Length in bytes; 0 if the header is missing. Raises MalformedRequest if it is not a number."""
    value = headers.get("content-length", "0")
    if not (value.isascii() and value.isdigit()):
        raise MalformedRequest("Content-Length must be a number of bytes")
    return int(value)
